//! The mask token: which one it is, adding it where there is none, and recording it for whoever loads the folder.

use crate::{
    error::{Result, TokenizerError},
    folder::TOKENIZER_FILE,
    special::{ROLES, SpecialToken},
    tokenizer::Tokenizer,
};
use serde_json::{Map, Value, json};
use std::path::Path;
use tokenizers::AddedToken;

/// The mask token of a model, as resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaskToken {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// True where it had to be added to the tokenizer: the model may need one more row.
    pub added: bool,
    /// True where plain text can spell it, because an ordinary token was chosen by its id: worth a warning, since a text that
    /// holds it then holds masks.
    pub in_text: bool,
}

impl Tokenizer {
    /// Finds the mask token to train with, and adds it where it does not exist.
    ///
    /// An explicit id is taken wherever it exists, also beyond the base vocabulary. Without one it is the token spelled `text`,
    /// and where there is none it is added as a special token. There is no falling back to `unk` or to token 0. Every
    /// special token stays special, the mask token becomes one, and [`files`](Self::files) records it as `mask_token`.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownId`] for an id without a token; [`TokenizerError::MaskIsTaken`] when it is the `bos`, `eos` or
    /// `pad` token; [`TokenizerError::EmptyMask`] for an empty text.
    pub fn resolve_mask_token(&mut self, explicit_id: Option<u32>, text: &str) -> Result<MaskToken> {
        let mut added = false;
        let mut mask = match self.find_mask_token(explicit_id, text) {
            Err(TokenizerError::MaskMissing { text }) => {
                self.add_tokens(vec![AddedToken::from(text.as_str(), true)], Path::new(TOKENIZER_FILE))?;
                added = true;
                self.find_mask_token(None, &text)?
            }
            found => found?,
        };
        mask.added = added;
        if !mask.in_text {
            self.make_special(&mask.text)?;
            self.record_mask(&mask);
        }
        Ok(mask)
    }

    /// Finds the mask token to sample with: as [`resolve_mask_token`](Self::resolve_mask_token), but changes nothing.
    ///
    /// # Errors
    /// As there; and [`TokenizerError::MaskMissing`] where there is no token `text`, since a model that never saw its mask token
    /// cannot fill it in.
    pub fn find_mask_token(&self, explicit_id: Option<u32>, text: &str) -> Result<MaskToken> {
        if explicit_id.is_none() && text.is_empty() {
            return Err(TokenizerError::EmptyMask);
        }
        let missing = || TokenizerError::MaskMissing { text: text.to_owned() };
        let id = explicit_id.map_or_else(|| self.token_to_id(text).ok_or_else(missing), Ok)?;
        let text = self.id_to_token(id).ok_or(TokenizerError::UnknownId { id, len: self.len() })?;
        for role in ["bos", "eos", "pad"] {
            if self.special.role(role).is_some_and(|token| token.id == id) {
                return Err(TokenizerError::MaskIsTaken { id, text, role });
            }
        }
        let in_text = self.text_can_hold(id, &text);
        Ok(MaskToken { id, text, added: false, in_text })
    }

    /// Whether encoding ordinary text can give this token: not an added one, and not one that no merge makes.
    fn text_can_hold(&self, id: u32, text: &str) -> bool {
        if self.inner.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id) {
            return false; // it is found by its spelling, which is guarded
        }
        let tree: Value = serde_json::from_str(&self.json).unwrap_or_default();
        let model = &tree["model"];
        let by_merges = model["type"] == "BPE" && model["ignore_merges"] != true;
        let with_affix = !model["continuing_subword_prefix"].is_null() || !model["end_of_word_suffix"].is_null();
        if !by_merges || with_affix || text.chars().nth(1).is_none() || text.starts_with("<0x") {
            return true;
        }
        let makes = |merge: &Value| match merge {
            Value::String(pair) => pair.split(' ').collect::<String>() == text,
            Value::Array(pair) => pair.iter().filter_map(Value::as_str).collect::<String>() == text,
            _ => false,
        };
        model["merges"].as_array().is_none_or(|merges| merges.iter().any(makes))
    }

    /// Flags a token as special, so that no text of a user is read as it and decoding can leave it out.
    pub(crate) fn make_special(&mut self, text: &str) -> Result<()> {
        let added = self.inner.get_added_vocabulary();
        let known = added.get_vocab().get(text).and_then(|id| added.get_added_tokens_decoder().get(id)).cloned();
        if known.as_ref().is_some_and(|token| token.special) {
            return Ok(());
        }
        let token = known.unwrap_or_else(|| AddedToken::from(text, true)).special(true);
        self.add_tokens(vec![token], Path::new(TOKENIZER_FILE))
    }

    /// Writes the mask token down where transformers looks for it; the token that had the role stays special.
    fn record_mask(&mut self, mask: &MaskToken) {
        let token = SpecialToken { id: mask.id, text: mask.text.clone() };
        let before = self.special.mask.replace(token.clone());
        if before.as_ref() != Some(&token) {
            self.record_role("mask_token", &token, before);
        }
        self.refresh_spellings();
    }

    /// Writes down which token has a role now, and that the one that had it before stays special.
    pub(crate) fn record_role(&mut self, key: &str, token: &SpecialToken, before: Option<SpecialToken>) {
        let mut config = self.config.take().unwrap_or_else(|| self.config_from_scratch());
        if let Some(before) = before {
            list_as_special(&mut config, &before.text);
            if let Some(map) = self.map.as_mut().filter(|map| listed_under(map).is_some()) {
                list_as_special(map, &before.text);
            }
            self.special.additional.push(before);
        }
        config.insert(key.to_owned(), token.text.clone().into());
        if let Some(Value::Object(decoder)) = config.get_mut("added_tokens_decoder") {
            let fields = json!({ "content": token.text, "lstrip": false, "normalized": false, "rstrip": false,
                "single_word": false, "special": true });
            decoder.entry(token.id.to_string()).or_insert(fields)["special"] = true.into();
        }
        if let Some(map) = &mut self.map {
            map.insert(key.to_owned(), token.text.clone().into());
        }
        self.config = Some(config);
    }

    /// A configuration that says what is known of a tokenizer which came without one.
    pub(crate) fn config_from_scratch(&self) -> Map<String, Value> {
        let mut config = Map::new();
        let mut say = |key: &str, value: Value| config.insert(key.to_owned(), value);
        say("tokenizer_class", "PreTrainedTokenizerFast".into());
        say("clean_up_tokenization_spaces", false.into());
        for (role, key) in ROLES {
            say(key, self.special.role(role).map_or(Value::Null, |token| token.text.clone().into()));
        }
        let additional: Vec<&str> = self.special.additional.iter().map(|token| token.text.as_str()).collect();
        if !additional.is_empty() {
            say("additional_special_tokens", additional.into());
        }
        config
    }
}

/// The key under which a configuration lists special tokens without a role, if it does.
fn listed_under(config: &Map<String, Value>) -> Option<&'static str> {
    let keys = ["extra_special_tokens", "additional_special_tokens"];
    keys.into_iter().find(|key| config.get(*key).is_some_and(Value::is_array))
}

/// Puts a token on that list; where there is none, on the one that both generations of transformers read.
fn list_as_special(config: &mut Map<String, Value>, text: &str) {
    let key = listed_under(config).unwrap_or("additional_special_tokens");
    let list = config.entry(key).or_insert_with(|| json!([]));
    if !list.is_array() {
        *list = json!([]);
    }
    let list = list.as_array_mut().expect("it was just made a list");
    let same = |item: &Value| item.as_str().or_else(|| item.get("content")?.as_str()) == Some(text);
    if !list.iter().any(same) {
        list.push(text.into());
    }
}
