//! Training a byte-level BPE tokenizer, for pretraining from scratch.

use crate::{
    error::{Result, TokenizerError},
    folder::TOKENIZER_FILE,
    tokenizer::Tokenizer,
};
use serde_json::Map;
use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};
use tokenizers::{
    AddedToken, SplitDelimiterBehavior,
    models::{TrainerWrapper, bpe::BPE, bpe::BpeTrainer},
    pre_tokenizers::{
        PreTokenizerWrapper,
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

/// Words as GPT-4 and Qwen cut them: a word with the space before it, single digits, runs of punctuation, line ends.
const WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The special tokens of a new tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainSpecials {
    /// Ends a text.
    pub eos: String,
    /// Fills rows; a token of its own, so that texts may end in EOS tokens that count.
    pub pad: String,
    /// Hides what is to be predicted.
    pub mask: String,
    /// Begins a text; none by default, since a diffusion model needs no first token to predict from.
    pub bos: Option<String>,
    /// Others, such as `<|im_start|>` and `<|im_end|>` for conversations.
    pub additional: Vec<String>,
}

impl Default for TrainSpecials {
    /// `<|endoftext|>`, `<|pad|>` and `<|diffusion_mask|>`.
    fn default() -> Self {
        Self {
            eos: "<|endoftext|>".to_owned(),
            pad: "<|pad|>".to_owned(),
            mask: "<|diffusion_mask|>".to_owned(),
            bos: None,
            additional: Vec::new(),
        }
    }
}

/// Whether training shows how far it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Progress {
    /// It says nothing.
    #[default]
    Silent,
    /// It draws bars on the terminal.
    Bars,
}

/// How a tokenizer is trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainOptions {
    /// Tokens to aim at, the 256 bytes and the special tokens included; fewer come out where the text has too few pairs.
    pub vocab_size: usize,
    /// Pairs rarer than this are not merged.
    pub min_frequency: u64,
    /// The special tokens; they get the first ids.
    pub specials: TrainSpecials,
    /// Whether it shows how far it is.
    pub progress: Progress,
}

impl TrainOptions {
    /// The usual way to a vocabulary of that size: pairs that occur at least twice, default special tokens, silently.
    #[must_use]
    pub fn new(vocab_size: usize) -> Self {
        Self { vocab_size, min_frequency: 2, specials: TrainSpecials::default(), progress: Progress::Silent }
    }
}

impl Tokenizer {
    /// Trains a byte-level BPE tokenizer, which can spell every text and gives it back exactly.
    ///
    /// The method of GPT-2: words are cut by a pattern, then the most frequent pair of tokens becomes a token until the
    /// vocabulary is full; of equally frequent pairs the one with the smaller ids. The same texts, in any order and on any
    /// number of threads, give the same tokenizer. Memory grows with the number of different words.
    ///
    /// # Errors
    /// [`TokenizerError::NoText`] when the texts are empty; [`TokenizerError::VocabularyTooSmall`] below 256 plus the special
    /// tokens; [`TokenizerError::BadSpecial`] and [`TokenizerError::SpecialIsText`] for unusable special tokens.
    pub fn train_bpe(texts: impl Iterator<Item = String> + Send, options: &TrainOptions) -> Result<Self> {
        let specials = special_texts(&options.specials)?;
        let smallest = 256 + specials.len();
        if options.vocab_size < smallest {
            let (vocab_size, n_specials) = (options.vocab_size, specials.len());
            return Err(TokenizerError::VocabularyTooSmall { vocab_size, n_specials, smallest });
        }
        let train = |source| TokenizerError::Train { source };
        let mut tokenizer = tokenizers::Tokenizer::new(BPE::default());
        let words = Split::new(SplitPattern::Regex(WORDS.to_owned()), SplitDelimiterBehavior::Isolated, false)
            .map_err(train)?;
        let bytes = ByteLevel::new(false, false, false);
        let pre_tokenizer =
            Sequence::new(vec![PreTokenizerWrapper::Split(words), PreTokenizerWrapper::ByteLevel(bytes)]);
        tokenizer.with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(pre_tokenizer)));
        tokenizer.with_post_processor(Some(bytes));
        tokenizer.with_decoder(Some(bytes));

        let trainer = BpeTrainer::builder()
            .vocab_size(options.vocab_size)
            .min_frequency(options.min_frequency)
            .show_progress(options.progress == Progress::Bars)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(specials.iter().map(|text| AddedToken::from(text.as_str(), true)).collect())
            .build();
        let seen = AtomicBool::new(false);
        let texts = texts.inspect(|text| {
            seen.fetch_or(!text.is_empty(), Ordering::Relaxed);
        });
        tokenizer.train(&mut TrainerWrapper::BpeTrainer(trainer), texts).map_err(train)?;
        if !seen.into_inner() {
            return Err(TokenizerError::NoText);
        }
        Self::trained(&tokenizer, &specials, options)
    }

    fn trained(tokenizer: &tokenizers::Tokenizer, specials: &[String], options: &TrainOptions) -> Result<Self> {
        let file = Path::new(TOKENIZER_FILE);
        let mut tokenizer =
            Self::parse(tokenizer.to_string(true).map_err(|source| TokenizerError::Train { source })?, file)?;
        for (role, text) in [
            ("bos", options.specials.bos.as_ref()),
            ("eos", Some(&options.specials.eos)),
            ("pad", Some(&options.specials.pad)),
            ("mask", Some(&options.specials.mask)),
        ] {
            let token = text.map(|text| tokenizer.special_token(text)).transpose()?;
            *tokenizer.special.role_mut(role).expect("a role") = token;
        }
        for text in &options.specials.additional {
            let token = tokenizer.special_token(text)?;
            tokenizer.special.additional.push(token);
        }
        tokenizer.config = Some(tokenizer.config_from_scratch());
        tokenizer.special = crate::SpecialTokens::default();
        tokenizer.resolve_specials(file, &Map::new())?;
        // Merges may have made a token that is spelled like a special one: then words would be read as it.
        for text in specials {
            let id = tokenizer.id_of(text)?;
            let read = tokenizer.encode(text, crate::Specials::AsText)?;
            let inside = tokenizer.encode(&format!(" {text}"), crate::Specials::AsText)?;
            if read.contains(&id) || inside.contains(&id) {
                return Err(TokenizerError::SpecialIsText { text: text.clone() });
            }
        }
        Ok(tokenizer)
    }
}

/// The special tokens in the order of their ids.
fn special_texts(specials: &TrainSpecials) -> Result<Vec<String>> {
    let mut texts: Vec<String> = Vec::new();
    for text in specials.bos.iter().chain([&specials.eos, &specials.pad]) {
        if !texts.contains(text) {
            texts.push(text.clone()); // one token may have several of these roles
        }
    }
    for text in std::iter::once(&specials.mask).chain(&specials.additional) {
        if texts.contains(text) {
            return Err(TokenizerError::BadSpecial { text: text.clone() });
        }
        texts.push(text.clone());
    }
    if texts.iter().any(String::is_empty) {
        return Err(TokenizerError::BadSpecial { text: String::new() });
    }
    Ok(texts)
}
