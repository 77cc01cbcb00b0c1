//! The tokenizer of a GGUF file as tokenizer.json and tokenizer_config.json.

mod byte_level;
mod sentencepiece;

use super::reader::{File, Value as Stored};
use crate::{config::ModelConfig, error::Result};
use serde_json::{Map, Value, json};

/// What GGUF says a token is.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

/// The tokens of a file, by their ids.
struct Vocabulary<'a> {
    tokens: Vec<String>,
    kinds: &'a [Stored],
    /// Those in use, with their ids.
    ids: Map<String, Value>,
}

/// The files to save beside the model.
pub(super) fn companions(file: &File, config: &ModelConfig) -> Result<Vec<(String, Vec<u8>)>> {
    let mut vocabulary = Vocabulary::of(file, config)?;
    let model = file.required("tokenizer.ggml.model", file.text("tokenizer.ggml.model")?)?;
    let (parts, usually_adds_bos) = match model {
        "gpt2" => byte_level::parts(file, &vocabulary)?,
        "llama" => {
            // They are looked for in the text itself, before its spaces are spelt.
            vocabulary.respell(USER_DEFINED, |token| token.replace('▁', " "));
            (sentencepiece::parts(file, &vocabulary)?, true)
        }
        _ => {
            let accepted = "gpt2, which is byte-level BPE, or llama, which is SentencePiece's BPE";
            return Err(file.unsupported("tokenizer", model, accepted));
        }
    };
    vocabulary.check_unique(file)?;
    let special = |name: &str| vocabulary.special(file, name);
    // Some files pad with, or replace the unknown by, a token that was left out of them.
    let lenient = |name: &str| special(name).unwrap_or(None);
    let (bos, eos) = (special("bos")?, special("eos")?);
    let adds_bos = file.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(usually_adds_bos);
    let adds_eos = file.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let (first, last) = (bos.filter(|_| adds_bos), eos.filter(|_| adds_eos));

    let mut tokenizer = Map::new();
    tokenizer.insert("version".to_owned(), json!("1.0"));
    tokenizer.insert("truncation".to_owned(), Value::Null);
    tokenizer.insert("padding".to_owned(), Value::Null);
    tokenizer.insert("added_tokens".to_owned(), vocabulary.added());
    tokenizer.insert("post_processor".to_owned(), template(first, last));
    tokenizer.extend(parts);

    let mut settings = Map::new();
    settings.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    let pad = lenient("padding").or(eos);
    let roles = [("bos_token", bos), ("eos_token", eos), ("unk_token", lenient("unknown")), ("pad_token", pad)];
    for (key, token) in roles.into_iter().chain([("mask_token", special("mask")?)]) {
        if let Some((_, token)) = token {
            settings.insert(key.to_owned(), json!(token));
        }
    }
    settings.insert("model_max_length".to_owned(), json!(config.max_seq_len()));
    if let Some(template) = file.text("tokenizer.chat_template")? {
        settings.insert("chat_template".to_owned(), json!(template));
    }
    let text = |value: Map<String, Value>| serde_json::to_vec_pretty(&value).expect("a JSON value serialises");
    Ok(vec![("tokenizer.json".to_owned(), text(tokenizer)), ("tokenizer_config.json".to_owned(), text(settings))])
}

impl<'a> Vocabulary<'a> {
    fn of(file: &'a File, config: &ModelConfig) -> Result<Self> {
        let tokens = texts(file, "tokenizer.ggml.tokens")?;
        if tokens.len() as i64 > config.vocab_size {
            let rows = config.vocab_size;
            let message = format!("its tokenizer has {} tokens, but its embedding {rows} rows", tokens.len());
            return Err(file.damaged(message));
        }
        let kinds = match file.list("tokenizer.ggml.token_type")? {
            Some(kinds) if kinds.len() == tokens.len() => kinds,
            Some(kinds) => {
                return Err(file.damaged(format!("it has {} tokens, but the kinds of {}", tokens.len(), kinds.len())));
            }
            None => &[],
        };
        let tokens = tokens.into_iter().map(str::to_owned).collect();
        let mut vocabulary = Self { tokens, kinds, ids: Map::new() };
        vocabulary.number();
        Ok(vocabulary)
    }

    fn number(&mut self) {
        let used = self.tokens.iter().enumerate().filter(|(id, _)| !self.is(*id, UNUSED));
        self.ids = used.map(|(id, token)| (token.clone(), json!(id))).collect();
    }

    /// Spells the tokens of a kind otherwise.
    fn respell(&mut self, kind: i64, spelt: impl Fn(&str) -> String) {
        for id in 0..self.tokens.len() {
            if self.is(id, kind) {
                self.tokens[id] = spelt(&self.tokens[id]);
            }
        }
        self.number();
    }

    /// Refuses a text that has two ids: one of them could not be written down.
    fn check_unique(&self, file: &File) -> Result<()> {
        let is_lost = |(id, token): &(usize, &String)| !self.is(*id, UNUSED) && self.ids[token.as_str()] != json!(id);
        match self.tokens.iter().enumerate().find(is_lost) {
            Some((id, token)) => {
                Err(file.damaged(format!("its tokens {id} and {} are both `{token}`", self.ids[token.as_str()])))
            }
            None => Ok(()),
        }
    }

    fn is(&self, id: usize, kind: i64) -> bool {
        self.kinds.get(id) == Some(&Stored::Integer(kind))
    }

    /// Whether a token stands for text, not for a role or a single byte.
    fn is_text(&self, id: usize) -> bool {
        self.kinds.is_empty() || self.is(id, NORMAL)
    }

    /// The tokens that are found in a text before anything else.
    fn added(&self) -> Value {
        let is_any = |id: usize, kinds: &[i64]| kinds.iter().any(|kind| self.is(id, *kind));
        let added = (0..self.tokens.len()).filter(|id| is_any(*id, &[UNKNOWN, CONTROL, USER_DEFINED]));
        let added = added.map(|id| {
            json!({
                "id": id, "content": self.tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": is_any(id, &[UNKNOWN, CONTROL]),
            })
        });
        Value::Array(added.collect())
    }

    /// The id and text of a special token.
    fn special(&self, file: &File, name: &str) -> Result<Option<(i64, &str)>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(id) = file.integer(&key)? else { return Ok(None) };
        let token = usize::try_from(id).ok().and_then(|id| self.tokens.get(id));
        match token {
            Some(token) => Ok(Some((id, token))),
            None => Err(file.damaged(format!("its `{key}` is {id}, but it has {} tokens", self.tokens.len()))),
        }
    }
}

fn texts<'a>(file: &'a File, key: &str) -> Result<Vec<&'a str>> {
    let list = file.required(key, file.list(key)?)?;
    let text = |item: &'a Stored| if let Stored::Text(text) = item { Some(text.as_str()) } else { None };
    let texts: Option<Vec<_>> = list.iter().map(text).collect();
    texts.ok_or_else(|| file.damaged(format!("its `{key}` is not a list of texts")))
}

/// Tokens that stand before and after every text.
fn template(first: Option<(i64, &str)>, last: Option<(i64, &str)>) -> Value {
    if first.is_none() && last.is_none() {
        return Value::Null;
    }
    let frame = |sequence: &str, type_id: i64| {
        let piece = |token: Option<(i64, &str)>| {
            token.map(|(_, text)| json!({ "SpecialToken": { "id": text, "type_id": type_id } }))
        };
        let middle = Some(json!({ "Sequence": { "id": sequence, "type_id": type_id } }));
        [piece(first), middle, piece(last)].into_iter().flatten().collect::<Vec<_>>()
    };
    let specials = [first, last].into_iter().flatten();
    let specials: Map<String, Value> =
        specials.map(|(id, text)| (text.to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] }))).collect();
    let pair = [frame("A", 0), frame("B", 1)].concat();
    json!({
        "type": "TemplateProcessing",
        "single": frame("A", 0),
        "pair": pair,
        "special_tokens": specials,
    })
}
