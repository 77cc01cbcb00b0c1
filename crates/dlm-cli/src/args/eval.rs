//! What `dlm eval` takes.

use super::{SettingsArgs, temperature};
use crate::settings::LoadDtype;
use clap::{Args, value_parser};
use std::path::PathBuf;

/// Arguments of `dlm eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// Model folder; without it, the `output_dir` of the settings
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Folder of a LoRA adapter in peft's files, evaluated on top of the model
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// What weights become in memory, in place of the setting `inference_dtype`: half precision takes half the memory
    #[arg(long, value_name = "KIND")]
    pub dtype: Option<LoadDtype>,
    /// Prepared data to score: its validation rows where it has some
    #[arg(long, value_name = "DIR", help_heading = "What to evaluate", conflicts_with_all = ["jsonl", "choices", "generated"])]
    pub data: Option<PathBuf>,
    /// Texts to score, one JSON object a line
    #[arg(long, value_name = "FILE", help_heading = "What to evaluate", conflicts_with_all = ["choices", "generated"])]
    pub jsonl: Option<PathBuf>,
    /// Questions to answer, one JSON object a line: `context`, `choices`, and the number of the right one as `answer`
    #[arg(long, value_name = "FILE", help_heading = "What to evaluate", conflicts_with = "generated")]
    pub choices: Option<PathBuf>,
    /// Generated texts to judge, one JSON object a line, `expected` where there is something to match
    #[arg(long, value_name = "FILE", help_heading = "What to evaluate")]
    pub generated: Option<PathBuf>,
    /// Field of a line that holds its text
    #[arg(long, value_name = "NAME", default_value = "text", help_heading = "What to evaluate")]
    pub field: String,
    /// Score only the first so many documents, questions or texts
    #[arg(long, value_name = "N", help_heading = "What to evaluate", value_parser = value_parser!(u64).range(1..))]
    pub max_documents: Option<u64>,
    /// Forward passes of a document in one replicate; more of them lower the error from masks
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = "Likelihood", value_parser = value_parser!(u64).range(1..))]
    pub passes: u64,
    /// How often all of it is done with other masks
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = "Likelihood", value_parser = value_parser!(u64).range(2..))]
    pub replicates: u64,
    /// Rows in one forward pass
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Likelihood", value_parser = value_parser!(u64).range(1..))]
    pub batch_size: u64,
    /// Longest row in tokens; without it, the longest that the model reads
    #[arg(long, value_name = "TOKENS", help_heading = "Likelihood", value_parser = value_parser!(u64).range(2..))]
    pub max_len: Option<u64>,
    /// What becomes of longer documents
    #[arg(long, value_enum, default_value_t = LongTexts::Roll, help_heading = "Likelihood")]
    pub long: LongTexts,
    /// Score as an autoregressive model, exactly: each token given those before it
    #[arg(long, help_heading = "Likelihood")]
    pub autoregressive: bool,
    /// How the likelihood of an answer is found
    #[arg(long, value_enum, default_value_t = ChoiceMethod::MonteCarlo, help_heading = "Questions")]
    pub method: ChoiceMethod,
    /// Masks drawn for each answer
    #[arg(long, value_name = "N", default_value_t = 128, help_heading = "Questions", value_parser = value_parser!(u64).range(1..))]
    pub samples: u64,
    /// Strength of classifier-free guidance; 0 is none
    #[arg(long, value_name = "W", default_value_t = 0.0, help_heading = "Questions", value_parser = temperature)]
    pub guidance: f64,
    /// Autoregressive model whose perplexity generated texts are given
    #[arg(long, value_name = "DIR", help_heading = "Generated texts", requires = "generated")]
    pub ar_model: Option<PathBuf>,
    /// Write JSON, one object a line
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Draw the loss by mask ratio into this file, as SVG
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub svg: Option<PathBuf>,
    /// Where settings come from.
    #[command(flatten)]
    pub settings: SettingsArgs,
}

/// What becomes of documents longer than a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LongTexts {
    /// Score them in windows, each given the second half of the one before
    Roll,
    /// Cut off their end
    Cut,
    /// Leave them out
    Skip,
}

/// How the likelihood of an answer is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ChoiceMethod {
    /// By random masks
    MonteCarlo,
    /// Exactly, for revealing from left to right
    Chain,
}
