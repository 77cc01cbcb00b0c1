//! A pipeline: sources, steps, output. Built in Rust, read from TOML, changed by overrides.

use crate::{
    answer_tail::AnswerTail,
    chat_options::Chat,
    error::{DataError, Result, reading},
    limits::Limits,
    overrides,
    remote::Remote,
    source::{self, Mix, OnError, Source},
    spelling,
    step::{Dedup, Pack, Shuffle, Split, Step, Tokenize},
};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// From files to packed rows of token ids.
///
/// The builder, a TOML file and overrides are three spellings of this one type and compare equal when they mean the same.
///
/// ```
/// use dlm_data::{Pack, Pipeline, Tokenize};
///
/// let built = Pipeline::new()
///     .source("books/*.txt")
///     .filter("length(text) > 100")
///     .tokenize(Tokenize::new("tokenizer"))
///     .pack(Pack::new(1024))
///     .output("prepared");
/// let written = Pipeline::from_toml(
///     r#"
///     source = [{ path = "books/*.txt" }]
///     step = [
///         { filter = "length(text) > 100" },
///         { tokenize = { tokenizer = "tokenizer" } },
///         { pack = { sequence_len = 512 } },
///     ]
///     output = { path = "prepared" }
///     "#,
///     "",
/// )?;
/// assert_eq!(built, written.with_override("pack.sequence_len", "1024")?);
/// # Ok::<(), dlm_data::DataError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// What becomes of rows and files that cannot be read, where a source does not say.
    #[serde(default)]
    pub on_error: OnError,
    /// How sources with weights are mixed.
    #[serde(default)]
    pub mix: Mix,
    /// Where rows come from: one after the other, or drawn by weight.
    #[serde(default)]
    pub source: Vec<Source>,
    /// What happens to them, in order.
    #[serde(default)]
    pub step: Vec<Step>,
    /// Where the prepared rows go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Output>,
    /// How much of the machine it may use.
    #[serde(default, skip_serializing_if = "Limits::is_unset")]
    pub resources: Limits,
    /// The folder that relative paths are relative to: the pipeline file's.
    #[serde(skip)]
    pub base: PathBuf,
    /// How sources and tokenizers on other machines are reached.
    #[serde(skip)]
    pub remote: Remote,
}

/// The folder of the prepared data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// The folder.
    pub path: PathBuf,
    /// Tokens in a shard, padding included.
    #[serde(default = "default_shard_tokens")]
    pub shard_tokens: usize,
}

pub(crate) fn default_shard_tokens() -> usize {
    1 << 23
}

impl Pipeline {
    /// A pipeline of nothing, to be built upon.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a pipeline file.
    ///
    /// # Errors
    /// [`DataError::Read`], and [`DataError::Pipeline`] with the line and the nearest known name.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = fs::read_to_string(path).map_err(reading(path))?;
        let base = path.parent().unwrap_or(Path::new(""));
        Self::from_toml(&text, base).map_err(|error| error.in_pipeline(path))
    }

    /// Reads a pipeline from TOML whose paths are relative to `base`.
    ///
    /// # Errors
    /// [`DataError::Pipeline`] with the line and the nearest known name.
    pub fn from_toml(text: &str, base: impl Into<PathBuf>) -> Result<Self> {
        let pipeline = spelling::parse::<Self>(text).map_err(|error| spelling::odd_step(text).unwrap_or(error))?;
        Ok(Self { base: base.into(), ..pipeline })
    }

    /// The pipeline as TOML, every value spelt out.
    ///
    /// # Errors
    /// [`DataError::Pipeline`] when a path is no Unicode or a number is beyond what TOML can say.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|error| DataError::pipeline(error.to_string()))
    }

    /// Changes one value: `pack.sequence_len`, `source.0.path`, `step.2.filter`, `output.path`.
    ///
    /// A step that occurs once is named by its kind, one of several by its kind and number among them (`filter.1`).
    /// The value is TOML, or text.
    ///
    /// # Errors
    /// [`DataError::AmbiguousOverride`] and [`DataError::UnknownOverride`] with the candidates;
    /// [`DataError::Pipeline`] when the value does not fit.
    pub fn with_override(self, key: &str, value: &str) -> Result<Self> {
        overrides::apply(&self, key, value)
    }

    /// Adds the files of a path or pattern, or a [`Source`] with options.
    #[must_use]
    pub fn source(mut self, source: impl Into<Source>) -> Self {
        self.source.push(source.into());
        self
    }

    /// Says how sources with weights are mixed.
    #[must_use]
    pub fn mix(self, mix: Mix) -> Self {
        Self { mix, ..self }
    }

    /// Says what becomes of rows and files that cannot be read, where a source does not say.
    #[must_use]
    pub fn on_error(self, on_error: OnError) -> Self {
        Self { on_error, ..self }
    }

    /// Adds any step.
    #[must_use]
    pub fn step(mut self, step: Step) -> Self {
        self.step.push(step);
        self
    }

    /// Keeps the rows for which an SQL expression is true.
    #[must_use]
    pub fn filter(self, expression: impl Into<String>) -> Self {
        self.step(Step::Filter(expression.into()))
    }

    /// Replaces the columns by SQL expressions.
    #[must_use]
    pub fn select<T: Into<String>>(self, expressions: impl IntoIterator<Item = T>) -> Self {
        self.step(Step::Select(expressions.into_iter().map(Into::into).collect()))
    }

    /// Keeps the first of the rows that are equal in these columns; with none named, in all.
    #[must_use]
    pub fn dedup<T: Into<String>>(self, on: impl IntoIterator<Item = T>) -> Self {
        self.step(Step::Dedup(Dedup { on: on.into_iter().map(Into::into).collect(), near: None }))
    }

    /// Makes a conversation out of columns.
    #[must_use]
    pub fn chat(self, chat: Chat) -> Self {
        self.step(Step::Chat(chat))
    }

    /// Turns text or a conversation into token ids.
    #[must_use]
    pub fn tokenize(self, tokenize: Tokenize) -> Self {
        self.step(Step::Tokenize(tokenize))
    }

    /// Puts documents side by side into rows.
    #[must_use]
    pub fn pack(self, pack: Pack) -> Self {
        self.step(Step::Pack(pack))
    }

    /// Puts tokens behind answers that teach where to stop.
    #[must_use]
    pub fn answer_tail(self, tail: AnswerTail) -> Self {
        self.step(Step::AnswerTail(tail))
    }

    /// Brings the rows into a random order.
    #[must_use]
    pub fn shuffle(self, seed: u64) -> Self {
        self.step(Step::Shuffle(Shuffle { seed }))
    }

    /// Sets a share of the documents aside for validation.
    #[must_use]
    pub fn split(self, validation: f64) -> Self {
        self.step(Step::Split(Split { validation, seed: 0 }))
    }

    /// Says where the prepared rows go.
    #[must_use]
    pub fn output(mut self, path: impl Into<PathBuf>) -> Self {
        self.output = Some(Output { path: path.into(), shard_tokens: default_shard_tokens() });
        self
    }

    /// Says which folder relative paths are relative to.
    #[must_use]
    pub fn relative_to(mut self, base: impl Into<PathBuf>) -> Self {
        self.base = base.into();
        self
    }

    /// The pipeline without what may be secret in addresses, to be written down.
    pub(crate) fn without_secrets(&self) -> Self {
        let mut shown = self.clone();
        for source in &mut shown.source {
            source.path = crate::remote::redacted(&source.path);
        }
        for step in &mut shown.step {
            if let Step::Decontaminate(decontaminate) = step {
                for path in &mut decontaminate.against {
                    *path = crate::remote::redacted(path);
                }
            }
        }
        shown
    }

    /// A path of the pipeline as the process sees it.
    pub(crate) fn resolve(&self, path: &Path) -> PathBuf {
        self.base.join(path)
    }

    /// The tokenize step, if there is one.
    pub(crate) fn tokenize_step(&self) -> Option<&Tokenize> {
        self.step.iter().find_map(|step| match step {
            Step::Tokenize(tokenize) => Some(tokenize),
            _ => None,
        })
    }

    /// What follows answers, where a step says so.
    pub(crate) fn answer_tail_of(&self) -> Option<&AnswerTail> {
        self.step.iter().find_map(|step| match step {
            Step::AnswerTail(AnswerTail::None) => None,
            Step::AnswerTail(tail) => Some(tail),
            _ => None,
        })
    }

    /// How many sorts the steps make.
    pub(crate) fn sorts(&self) -> usize {
        let sorts = |step: &Step| match step {
            Step::Shuffle(_) | Step::Sql(_) => 1,
            Step::Sample(sample) if sample.count.is_some() => 2,
            _ => 0,
        };
        self.step.iter().map(sorts).sum()
    }

    /// The split step, if there is one.
    pub(crate) fn split_step(&self) -> Option<&Split> {
        self.step.iter().find_map(|step| match step {
            Step::Split(split) => Some(split),
            _ => None,
        })
    }

    /// The pack step, if there is one.
    pub(crate) fn pack_step(&self) -> Option<&Pack> {
        self.step.iter().find_map(|step| match step {
            Step::Pack(pack) => Some(pack),
            _ => None,
        })
    }

    /// Checks what the types do not: the order of the steps and the range of their values.
    pub(crate) fn check(&self) -> Result<()> {
        if self.source.is_empty() {
            return Err(DataError::pipeline("there is no `[[source]]`"));
        }
        source::check(&self.source)?;
        if self.mix != Mix::default() && self.source.iter().all(|source| source.weight.is_none()) {
            return Err(DataError::pipeline("`[mix]` says how sources are drawn by weight, and none has a `weight`"));
        }
        if self.output.as_ref().is_some_and(|output| output.shard_tokens == 0) {
            return Err(DataError::pipeline("`output.shard_tokens` is 0, and has to be 1 or more"));
        }
        let position = |name: &str| self.step.iter().position(|step| step.name() == name);
        for name in ["chat", "tokenize", "answer_tail", "pack", "split"] {
            if self.step.iter().filter(|step| step.name() == name).count() > 1 {
                return Err(DataError::pipeline(format!("the step `{name}` can stand only once")));
            }
        }
        if let (Some(chat), Some(tokenize)) = (position("chat"), position("tokenize"))
            && chat > tokenize
        {
            return Err(DataError::pipeline("the step `chat` comes before `tokenize`"));
        }
        if let (Some(pack), Some(tokenize)) = (position("pack"), position("tokenize"))
            && pack < tokenize
        {
            return Err(DataError::pipeline("the step `pack` comes after `tokenize`"));
        }
        if let Some(tail) = position("answer_tail")
            && position("tokenize").is_none_or(|tokenize| tail < tokenize)
        {
            return Err(DataError::pipeline("the step `answer_tail` comes after `tokenize`"));
        }
        if position("pack").is_some_and(|pack| pack + 1 < self.step.len()) {
            return Err(DataError::pipeline("the step `pack` is the last one"));
        }
        crate::order::check(&self.step)?;
        self.step.iter().try_for_each(check_values)
    }
}

fn check_values(step: &Step) -> Result<()> {
    let out_of_range = |what: &str, value: String, range: &str| {
        Err(DataError::pipeline(format!("`{what}` is {value}, and has to be {range}")))
    };
    match step {
        Step::Pack(pack) if pack.sequence_len < 2 || pack.sequence_len > i32::MAX as usize => {
            out_of_range("pack.sequence_len", pack.sequence_len.to_string(), "2 or more")
        }
        Step::Pack(pack) if pack.window == 0 => out_of_range("pack.window", "0".to_owned(), "1 or more"),
        Step::Pack(pack) if !pack.strategy.looks_ahead() && pack.window != Pack::new(2).window => {
            Err(DataError::pipeline(format!(
                "`pack.window` is {}, and has no effect: only the strategies `first_fit_decreasing` and `first_fit` look at several \
                 rows together",
                pack.window
            )))
        }
        Step::Split(split) if !(split.validation > 0.0 && split.validation < 1.0) => {
            out_of_range("split.validation", split.validation.to_string(), "between 0 and 1")
        }
        Step::AnswerTail(tail) => tail.check(),
        Step::Select(expressions) if expressions.is_empty() => {
            out_of_range("select", "empty".to_owned(), "a list of columns")
        }
        _ => Ok(()),
    }
}
