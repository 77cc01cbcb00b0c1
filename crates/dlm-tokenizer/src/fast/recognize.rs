//! Which `tokenizer.json` the fast path is proven for. Whatever is not known here is left to the library.

use super::{
    Added, Fast, Normalizer,
    alphabet::Alphabet,
    bpe::{Bpe, Merge},
    words::{Digits, Pattern, Splitter},
};
use aho_corasick::{AhoCorasick, MatchKind};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use tokenizers::AddedToken;
use unicode_normalization_alignments::UnicodeNormalization;

#[derive(Deserialize)]
struct File {
    normalizer: Option<NormalizerFile>,
    pre_tokenizer: PreTokenizer,
    model: Model,
}

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum NormalizerFile {
    #[serde(rename = "NFC")]
    Nfc,
}

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum PreTokenizer {
    ByteLevel {
        add_prefix_space: bool,
        /// Says nothing about ids.
        #[serde(rename = "trim_offsets")]
        _trim_offsets: bool,
        #[serde(default = "yes")]
        use_regex: bool,
    },
    Digits {
        individual_digits: bool,
    },
    Split {
        pattern: SplitPattern,
        behavior: String,
        invert: bool,
    },
    Sequence {
        pretokenizers: Vec<PreTokenizer>,
    },
}

#[derive(Deserialize)]
enum SplitPattern {
    Regex(String),
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    #[serde(rename = "type")]
    kind: String,
    dropout: Option<f64>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    /// Says nothing without an unknown token.
    #[serde(rename = "fuse_unk", default)]
    _fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: HashMap<String, u32>,
    merges: Vec<MergeFile>,
}

/// A merge as newer and as older files spell it.
#[derive(Deserialize)]
#[serde(untagged)]
enum MergeFile {
    Pair(String, String),
    Line(String),
}

impl MergeFile {
    fn pair(&self) -> Option<(&str, &str)> {
        match self {
            Self::Pair(left, right) => Some((left, right)),
            Self::Line(line) => {
                line.split_once(' ').filter(|(left, right)| *left != "#version:" && !right.contains(' '))
            }
        }
    }
}

/// The fast path for a `tokenizer.json` with these added tokens; `None` where it is not proven to give the same ids.
pub(super) fn recognize(json: &str, added: &[(u32, AddedToken)]) -> Option<Fast> {
    let file: File = serde_json::from_str(json).ok()?;
    let normalizer = match file.normalizer {
        None => Normalizer::None,
        Some(NormalizerFile::Nfc) => Normalizer::Nfc,
    };
    let splitter = splitter(&file.pre_tokenizer)?;
    let bpe = bpe(file.model)?;
    let (normalized, plain): (Vec<_>, Vec<_>) = added.iter().partition(|(_, token)| token.normalized);
    Some(Fast {
        normalizer,
        splitter,
        bpe,
        plain: finder(&plain, Normalizer::None)?,
        normalized: finder(&normalized, normalizer)?,
        idle: std::sync::Mutex::default(),
    })
}

fn splitter(file: &PreTokenizer) -> Option<Splitter> {
    let byte_level = |last: &PreTokenizer, own_pattern: bool| {
        let as_wanted = |prefix: bool, regex: bool| !prefix && regex == own_pattern;
        matches!(last, PreTokenizer::ByteLevel { add_prefix_space, use_regex, .. } if as_wanted(*add_prefix_space, *use_regex))
    };
    let steps = match file {
        PreTokenizer::Sequence { pretokenizers } => &pretokenizers[..],
        single => std::slice::from_ref(single),
    };
    match steps {
        [last] if byte_level(last, true) => Some(Splitter::new(Digits::Untouched, Pattern::Gpt2)),
        [PreTokenizer::Digits { individual_digits }, last] if byte_level(last, true) => {
            let digits = if *individual_digits { Digits::Individual } else { Digits::Contiguous };
            Some(Splitter::new(digits, Pattern::Gpt2))
        }
        [PreTokenizer::Split { pattern: SplitPattern::Regex(regex), behavior, invert: false }, last]
            if behavior == "Isolated" && byte_level(last, false) =>
        {
            let known = Pattern::SPELLED.into_iter().find(|(spelled, _)| spelled == regex)?;
            Some(Splitter::new(Digits::Untouched, known.1))
        }
        _ => None,
    }
}

fn bpe(model: Model) -> Option<Bpe> {
    let is_plain = model.kind == "BPE"
        && model.dropout.is_none_or(|dropout| dropout == 0.0)
        && model.unk_token.is_none()
        && model.continuing_subword_prefix.is_none_or(|prefix| prefix.is_empty())
        && model.end_of_word_suffix.is_none_or(|suffix| suffix.is_empty())
        && !model.byte_fallback;
    let distinct: HashSet<u32> = model.vocab.values().copied().collect();
    if !is_plain || distinct.len() != model.vocab.len() {
        return None;
    }
    let alphabet = Alphabet::new();
    let mut merges = Vec::with_capacity(model.merges.len());
    for merge in &model.merges {
        let (left, right) = merge.pair()?;
        let id = |token: &str| model.vocab.get(token).copied();
        alphabet.bytes(left)?;
        alphabet.bytes(right)?;
        merges.push(Merge { pair: (id(left)?, id(right)?), product: id(&format!("{left}{right}"))? });
    }
    // Tokens outside the alphabet, such as special ones, are met by no word.
    let bytes = |(token, id): (&String, &u32)| Some((alphabet.bytes(token)?, *id));
    Bpe::new(model.vocab.iter().filter_map(bytes).collect(), &merges, model.ignore_merges)
}

/// A finder for added tokens; `None` where they ask for more than being found.
fn finder(tokens: &[&(u32, AddedToken)], normalizer: Normalizer) -> Option<Option<Added>> {
    let mut patterns = BTreeMap::new();
    for (id, token) in tokens {
        // Marks may be put into a text and taken out again, so that tokens which hold them would be found where there are none.
        let holds_marks = token.content.chars().any(|character| ('\u{FDD0}'..='\u{FDEF}').contains(&character));
        if token.single_word || token.lstrip || token.rstrip || holds_marks || token.content.is_empty() {
            return None;
        }
        let pattern = match normalizer {
            Normalizer::None => token.content.clone(),
            Normalizer::Nfc => token.content.nfc().map(|(character, _)| character).collect(),
        };
        patterns.insert(pattern, *id);
    }
    if patterns.is_empty() {
        return Some(None);
    }
    let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(patterns.keys()).ok()?;
    Some(Some(Added { finder, ids: patterns.into_values().collect() }))
}
