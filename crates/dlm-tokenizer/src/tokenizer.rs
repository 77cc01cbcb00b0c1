//! The tokenizer of a model folder: text to ids and back, and what the folder says of its special tokens.

use crate::{
    chat_template::{ChatTemplate, RenderOptions},
    encode::{Part, Specials, Spellings},
    error::{Result, TokenizerError},
    fast::Fast,
    session::Session,
    special::{ROLES, SpecialToken, SpecialTokens},
};
use rayon::prelude::*;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::{
    fmt,
    sync::{Arc, OnceLock},
};

/// Whether decoding spells special tokens or leaves them out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepSpecials {
    /// They are spelled: decoding what was encoded gives the text back.
    Yes,
    /// They are left out: what a reader wants to see.
    No,
}

/// A Hugging Face tokenizer with everything its folder says of it: special tokens, chat templates, configuration.
///
/// [`load`](Self::load) reads one, [`train_bpe`](Self::train_bpe) makes one, [`files`](Self::files) gives what is saved beside
/// a model. Truncation and padding that a `tokenizer.json` asks for are left to the callers: encoding gives every token of the
/// text and nothing else.
#[derive(Clone)]
pub struct Tokenizer {
    pub(crate) inner: tokenizers::Tokenizer,
    /// `tokenizer.json` as it will be saved.
    pub(crate) json: String,
    /// `tokenizer_config.json`.
    pub(crate) config: Option<Map<String, Value>>,
    /// `special_tokens_map.json`.
    pub(crate) map: Option<Map<String, Value>>,
    /// Chat templates that are files of their own, by file name.
    pub(crate) template_files: Vec<(String, String)>,
    /// Chat templates by name; the one called `default` serves when none is named.
    pub(crate) templates: Vec<(String, ChatTemplate)>,
    pub(crate) special: SpecialTokens,
    /// What must be kept from being read as a special token where people say it.
    pub(crate) spellings: Spellings,
    /// The fast path for a tokenizer of a known kind; looked for when it is first needed.
    pub(crate) fast: OnceLock<Option<Arc<Fast>>>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = formatter.debug_struct("Tokenizer");
        fields.field("len", &self.len()).field("special", &self.special).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Encodes a text: its tokens and no others, in particular no BOS or EOS.
    ///
    /// With [`Specials::AsText`] nothing in the text becomes a special token, however it is spelled: the way to read what
    /// users and documents say. With [`Specials::Parse`] special tokens spelled in it are read as such.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`] when the tokenizer cannot spell the text; [`TokenizerError::OneCharacterSpecial`] and
    /// [`TokenizerError::NoMarkLeft`] where a special token cannot be told from text.
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.session().encode_into(text, specials, &mut ids)?;
        Ok(ids)
    }

    /// Encodes many texts, on all threads of the current rayon pool.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), for any of them.
    pub fn encode_batch<T: AsRef<str> + Sync>(&self, texts: &[T], specials: Specials) -> Result<Vec<Vec<u32>>> {
        let encode = |session: &mut Session<'_>, text: &T| {
            let mut ids = Vec::new();
            session.encode_into(text.as_ref(), specials, &mut ids)?;
            Ok(ids)
        };
        texts.par_iter().map_init(|| self.session(), encode).collect()
    }

    /// Encodes a text and puts around it what the tokenizer's post-processor asks for: often a BOS, sometimes an EOS.
    ///
    /// What transformers does unless told otherwise. Training and sampling place these tokens themselves and do without.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with_post_processor(&self, text: &str, specials: Specials) -> Result<Vec<u32>> {
        let parts = [Part { text: text.to_owned(), specials }];
        let encoding = self.encoding_of_parts(&parts)?;
        let framed = self.inner.post_process(encoding, None, true);
        Ok(framed.map_err(|source| TokenizerError::Encode { source })?.get_ids().to_vec())
    }

    /// The text of a sequence of ids.
    ///
    /// Exact for byte-level tokenizers, except where the ids end inside a character: its bytes become `U+FFFD`.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownId`] for an id without a token.
    pub fn decode(&self, ids: &[u32], specials: KeepSpecials) -> Result<String> {
        if let Some(&id) = ids.iter().find(|&&id| self.inner.id_to_token(id).is_none()) {
            return Err(TokenizerError::UnknownId { id, len: self.len() });
        }
        let skip = specials == KeepSpecials::No;
        self.inner.decode(ids, skip).map_err(|source| TokenizerError::Decode { source })
    }

    /// The id of a token, by its spelling in the vocabulary.
    #[must_use]
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// A token's spelling in the vocabulary (`Ġthe` for ` the`); `None` for an id without one.
    #[must_use]
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id);
        added.map(|token| token.content.clone()).or_else(|| self.inner.id_to_token(id))
    }

    /// Number of tokens, added ones included: the rows that an embedding needs, as ids run from 0 without gaps.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // there is no tokenizer without tokens
    pub fn len(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Number of tokens without the added ones: transformers' `vocab_size`.
    #[must_use]
    pub fn base_vocab_size(&self) -> usize {
        self.inner.get_vocab_size(false)
    }

    /// The special tokens, as transformers resolves them.
    #[must_use]
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// The ids of tokens given as roles (`bos`, `eos`, `unk`, `pad`, `mask`) or by their text, ascending, each once.
    ///
    /// A role that the tokenizer does not fill gives none: a setting such as `never_mask = ["bos"]` serves every tokenizer.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownToken`] for a text that is no token.
    pub fn special_ids(&self, names: &[String]) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for name in names {
            if ROLES.iter().any(|(role, _)| role == name) {
                ids.extend(self.special.role(name).map(|token| token.id));
            } else {
                ids.push(self.id_of(name)?);
            }
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// The template that renders conversations, if the folder has one.
    #[must_use]
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template_named("default")
    }

    /// The chat template of that name, where a folder has several (`default`, `tool_use`, `rag`).
    #[must_use]
    pub fn chat_template_named(&self, name: &str) -> Option<&ChatTemplate> {
        self.templates.iter().find(|(other, _)| other == name).map(|(_, template)| template)
    }

    /// What a chat template gets to see of this tokenizer: `bos_token` and its like as variables, and the spellings that must
    /// not be read as special tokens in what people say.
    #[must_use]
    pub fn render_options(&self) -> RenderOptions {
        let tokens = ROLES.iter().filter_map(|(role, key)| Some((*key, self.special.role(role)?)));
        RenderOptions {
            variables: tokens.map(|(key, token)| (key.to_owned(), token.text.clone().into())).collect(),
            specials: self.spellings.clone(),
            ..RenderOptions::default()
        }
    }

    /// SHA-256 of `tokenizer.json` in hexadecimal: prepared data and models carry it to know that they fit.
    #[must_use]
    pub fn hash(&self) -> String {
        Sha256::digest(self.json.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The id of a token's text, or the error that says there is none.
    pub(crate) fn id_of(&self, text: &str) -> Result<u32> {
        self.token_to_id(text).ok_or_else(|| TokenizerError::UnknownToken { text: text.to_owned() })
    }

    /// Whether text is encoded by this crate's own byte-level BPE, rather than by the slower `tokenizers` library; see the
    /// [crate's documentation](crate#speed). The ids are the same.
    #[must_use]
    pub fn is_fast(&self) -> bool {
        self.fast().is_some()
    }

    /// The fast path, if there is one for a tokenizer of this kind.
    pub(crate) fn fast(&self) -> Option<&Arc<Fast>> {
        let recognize = || {
            let added = self.inner.get_added_vocabulary().get_added_tokens_decoder().iter();
            let added: Vec<_> = added.map(|(id, token)| (*id, token.clone())).collect();
            Fast::recognize(&self.json, &added).map(Arc::new)
        };
        self.fast.get_or_init(recognize).as_ref()
    }

    /// Brings up to date which spellings must be kept from user text; due whenever special tokens have changed.
    pub(crate) fn refresh_spellings(&mut self) {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder().values();
        let flagged = added.filter(|token| token.special).map(|token| token.content.clone());
        self.spellings = Spellings::new(flagged.chain(self.special.iter().map(|token| token.text.clone())).collect());
    }

    pub(crate) fn special_token(&self, text: &str) -> Result<SpecialToken> {
        Ok(SpecialToken { id: self.id_of(text)?, text: text.to_owned() })
    }
}
