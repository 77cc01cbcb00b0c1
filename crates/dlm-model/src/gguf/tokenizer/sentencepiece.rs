//! SentencePiece's BPE, as Llama 2 and Mistral's first models have it: no words, spaces spelt `▁`, and bytes for what the vocabulary
//! lacks. A file holds no merges but a score for each token, and two neighbours join where that makes the token of the best score.

use super::Vocabulary;
use crate::{
    error::Result,
    gguf::reader::{File, Value as Stored},
};
use serde_json::{Map, Value, json};
use std::{cmp::Reverse, collections::HashSet};

/// The longest token, in bytes, for which merges are sought; SentencePiece learns tokens of 16 characters unless told otherwise.
const LONGEST: usize = 256;
/// Ways to join two tokens to a third that the tokens of a file may have on average; learnt vocabularies have a few.
const MOST_WAYS: usize = 32;

/// The parts of tokenizer.json that tell it, as in those that were published beside such models.
pub(super) fn parts(file: &File, vocabulary: &Vocabulary<'_>) -> Result<Map<String, Value>> {
    let unknown = vocabulary.special(file, "unknown").unwrap_or(None).map(|(_, token)| token);
    let begins_with_space = file.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let replace = |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });
    let mut normalizers = vec![replace(" ", "▁")];
    let mut decoders = vec![replace("▁", " "), json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })];
    if begins_with_space {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let parts = json!({
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "pre_tokenizer": null,
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocabulary.ids,
            "merges": merges(file, vocabulary)?,
        },
    });
    let Value::Object(parts) = parts else { unreachable!("it was written as an object") };
    Ok(parts)
}

/// The merges that scores stand for, the best first: every way to join two tokens to a third.
///
/// Ties are broken as transformers does when it reads such a vocabulary.
fn merges(file: &File, vocabulary: &Vocabulary<'_>) -> Result<Vec<[String; 2]>> {
    let key = "tokenizer.ggml.scores";
    let scores = file.required(key, file.list(key)?)?;
    if scores.len() != vocabulary.tokens.len() {
        let (tokens, scores) = (vocabulary.tokens.len(), scores.len());
        return Err(file.damaged(format!("it has {tokens} tokens, but the scores of {scores}")));
    }
    let number = |score: &Stored| if let Stored::Number(score) = score { Some(*score) } else { None };
    let scores: Option<Vec<f64>> = scores.iter().map(number).collect();
    let mut scores = scores.ok_or_else(|| file.damaged(format!("its `{key}` is not a list of numbers")))?;
    let texts = || vocabulary.tokens.iter().enumerate().filter(|(id, _)| vocabulary.is_text(*id));
    // A converter that does not know the scores writes one for all. SentencePiece numbers tokens in the order in which it learns them.
    if texts().map(|(id, _)| scores[id].to_bits()).collect::<HashSet<_>>().len() == 1 {
        scores = (0..scores.len()).map(|id| -(id as f64)).collect();
    }
    let mut found = Vec::new();
    for (id, token) in texts() {
        let score = scores[id];
        if token.len() > LONGEST {
            return Err(file.damaged(format!("its token {id} has {} bytes, more than {LONGEST}", token.len())));
        }
        let borders = token.char_indices().map(|(at, _)| at).skip(1);
        let parts = borders.map(|at| token.split_at(at));
        let known = |part: &str| {
            let id = usize::try_from(vocabulary.ids.get(part)?.as_u64()?).ok()?;
            vocabulary.is_text(id).then_some(id)
        };
        let parts = parts.filter_map(|(left, right)| Some((known(left)?, known(right)?, left, right)));
        let first = found.len();
        found.extend(parts.map(|(left_id, right_id, left, right)| (score, (left_id, right_id), left, right)));
        found[first..].sort_by_key(|(_, ids, ..)| *ids);
        if found.len() > MOST_WAYS * vocabulary.tokens.len() {
            let most = MOST_WAYS * vocabulary.tokens.len();
            return Err(file.damaged(format!("its tokens are made of others in more than {most} ways")));
        }
    }
    // The best score first, then the longer left part; equal ones stay in the order of their ids.
    let lengths = |left: &str, right: &str| Reverse((left.chars().count(), right.chars().count()));
    found.sort_by(|(a, _, a_left, a_right), (b, _, b_left, b_right)| {
        b.total_cmp(a).then_with(|| lengths(a_left, a_right).cmp(&lengths(b_left, b_right)))
    });
    Ok(found.into_iter().map(|(_, _, left, right)| [left.to_owned(), right.to_owned()]).collect())
}
