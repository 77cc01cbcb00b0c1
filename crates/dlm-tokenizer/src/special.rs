//! Special tokens: which tokens begin, end, fill and mask a text, as transformers resolves them.

use crate::error::{Result, TokenizerError};
use serde_json::{Map, Value};
use std::path::Path;
use tokenizers::AddedToken;

/// A special token: its id and how it is spelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialToken {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub text: String,
}

/// The special tokens of a tokenizer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Option<SpecialToken>,
    /// Ends a text.
    pub eos: Option<SpecialToken>,
    /// Fills a row; often the same token as `eos`.
    pub pad: Option<SpecialToken>,
    /// Stands for what the vocabulary cannot spell.
    pub unk: Option<SpecialToken>,
    /// Stands for what diffusion has hidden.
    pub mask: Option<SpecialToken>,
    /// The others: turns of a conversation, tools, classification.
    pub additional: Vec<SpecialToken>,
}

/// The roles that a special token can have by name, with the key of each in `tokenizer_config.json`.
pub(crate) const ROLES: [(&str, &str); 5] =
    [("bos", "bos_token"), ("eos", "eos_token"), ("unk", "unk_token"), ("pad", "pad_token"), ("mask", "mask_token")];

impl SpecialTokens {
    /// The token in the role `bos`, `eos`, `pad`, `unk` or `mask`; `None` for a role without one and for any other word.
    #[must_use]
    pub fn role(&self, role: &str) -> Option<&SpecialToken> {
        match role {
            "bos" => self.bos.as_ref(),
            "eos" => self.eos.as_ref(),
            "pad" => self.pad.as_ref(),
            "unk" => self.unk.as_ref(),
            "mask" => self.mask.as_ref(),
            _ => None,
        }
    }

    /// Every special token, the named ones first, each once.
    pub fn iter(&self) -> impl Iterator<Item = &SpecialToken> {
        let named = ROLES.iter().filter_map(|(role, _)| self.role(role)).chain(&self.additional);
        let mut seen = Vec::new();
        named.filter(move |token| {
            let new = !seen.contains(&token.id);
            seen.push(token.id);
            new
        })
    }

    /// The ids of every special token, ascending: transformers' `all_special_ids`.
    #[must_use]
    pub fn ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.iter().map(|token| token.id).collect();
        ids.sort_unstable();
        ids
    }

    pub(crate) fn role_mut(&mut self, role: &str) -> Option<&mut Option<SpecialToken>> {
        match role {
            "bos" => Some(&mut self.bos),
            "eos" => Some(&mut self.eos),
            "pad" => Some(&mut self.pad),
            "unk" => Some(&mut self.unk),
            "mask" => Some(&mut self.mask),
            _ => None,
        }
    }
}

/// What the files of a folder declare, before it is looked up in the vocabulary.
#[derive(Debug, Default)]
pub(crate) struct Declared {
    /// Role (`bos`, ...) and token.
    pub(crate) named: Vec<(&'static str, AddedToken)>,
    /// The others.
    pub(crate) additional: Vec<AddedToken>,
    /// The old generation's list of added tokens, in the order of their ids.
    pub(crate) added: Vec<AddedToken>,
}

/// Reads the declarations of `tokenizer_config.json`, and of `special_tokens_map.json` where that counts.
///
/// Both generations: `extra_special_tokens`, or `additional_special_tokens` with `added_tokens_decoder`. As in transformers,
/// the map's file overrides the configuration only where that has no `added_tokens_decoder`.
pub(crate) fn declared(path: &Path, config: &Map<String, Value>, map: Option<&Map<String, Value>>) -> Result<Declared> {
    let mut merged = config.clone();
    let decoder = merged.remove("added_tokens_decoder");
    if decoder.is_none() {
        merged.extend(map.into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
    }
    let mut declared = Declared::default();
    for (key, value) in &merged {
        let role = ROLES.iter().find(|(_, name)| name == key).map(|(role, _)| *role);
        match (role, key.as_str()) {
            (Some(role), _) => declared.named.extend(token(path, key, value)?.map(|token| (role, token))),
            (None, "extra_special_tokens" | "additional_special_tokens") => match value {
                Value::Null => {}
                Value::Array(list) => {
                    for item in list {
                        declared.additional.extend(token(path, key, item)?);
                    }
                }
                Value::Object(tokens) if tokens.get("content").is_none() => {
                    for item in tokens.values() {
                        declared.additional.extend(token(path, key, item)?);
                    }
                }
                other => return Err(wrong(path, key, other, "a list of tokens")),
            },
            // A model's own: `image_token`, `cls_token`, ... where it names a token; `add_bos_token` is a flag.
            (None, name) if name.ends_with("_token") && (value.is_string() || value.get("content").is_some()) => {
                declared.additional.extend(token(path, key, value)?);
            }
            _ => {}
        }
    }
    if let Some(decoder) = decoder {
        let Value::Object(decoder) = decoder else {
            return Err(wrong(path, "added_tokens_decoder", &decoder, "an object from ids to tokens"));
        };
        let mut added = Vec::new();
        for (id, item) in &decoder {
            let id: u32 = id.parse().map_err(|_| wrong(path, "added_tokens_decoder", &id.as_str().into(), "ids"))?;
            added.extend(token(path, "added_tokens_decoder", item)?.map(|token| (id, token)));
        }
        added.sort_by_key(|(id, _)| *id);
        declared.added = added.into_iter().map(|(_, token)| token).collect();
    }
    Ok(declared)
}

/// The tokens that transformers' tokenizer classes have in a role which the configuration leaves out.
///
/// The class is the configuration's `tokenizer_class`, except for the families for which transformers knows better.
pub(crate) fn class_defaults(
    tokenizer_class: Option<&str>,
    model_type: Option<&str>,
) -> &'static [(&'static str, &'static str)] {
    let class = match (model_type, tokenizer_class) {
        (Some("qwen2"), _) | (Some("qwen2_moe" | "qwen3" | "qwen3_moe"), None) => "Qwen2Tokenizer",
        (_, Some(class)) => class.strip_suffix("Fast").unwrap_or(class),
        (_, None) => "TokenizersBackend",
    };
    const END: &str = "<|endoftext|>";
    match class {
        "Qwen2Tokenizer" => &[("unk", END), ("eos", END), ("pad", END)],
        "GPT2Tokenizer" => &[("unk", END), ("bos", END), ("eos", END)],
        "LlamaTokenizer" => &[("unk", "<unk>"), ("bos", "<s>"), ("eos", "</s>")],
        _ => &[],
    }
}

/// A token as the files spell it: a string, or an object with its flags; null is none.
fn token(path: &Path, key: &str, value: &Value) -> Result<Option<AddedToken>> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) if text.is_empty() => Ok(None),
        Value::String(text) => Ok(Some(AddedToken::from(text.as_str(), true))),
        Value::Object(fields) => {
            let Some(text) = fields.get("content").and_then(Value::as_str) else {
                return Err(wrong(path, key, value, "a token: a text, or an object with `content`"));
            };
            let flag = |name: &str, default: bool| fields.get(name).and_then(Value::as_bool).unwrap_or(default);
            let token = AddedToken::from(text, flag("special", true));
            let normalized = flag("normalized", token.normalized);
            let token = token.normalized(normalized).single_word(flag("single_word", false));
            Ok(Some(token.lstrip(flag("lstrip", false)).rstrip(flag("rstrip", false))))
        }
        other => Err(wrong(path, key, other, "a token: a text, or an object with `content`")),
    }
}

pub(crate) fn wrong(path: &Path, key: &str, found: &Value, expected: &'static str) -> TokenizerError {
    let mut found = found.to_string();
    if found.chars().count() > 60 {
        found = found.chars().take(60).chain("...".chars()).collect();
    }
    TokenizerError::WrongValue { path: path.to_owned(), key: key.to_owned(), found, expected }
}
