//! The command tree and its help.

mod eval;

pub use eval::{ChoiceMethod, EvalArgs, LongTexts};

use crate::settings::{Dtype, LoadDtype, Sources};
use clap::{Args, Parser, Subcommand, value_parser};
use std::path::PathBuf;

/// Masked-diffusion language models, from data to text
///
/// Prepare data, train, and turn masks into text. A first run: `dlm tokenizer train`, `dlm data prepare`,
/// `dlm train --profile pretrain`, then `dlm chat --model OUTPUT_DIR`.
#[derive(Debug, Parser)]
#[command(name = "dlm", version, arg_required_else_help = true, max_term_width = 110, propagate_version = false)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `dlm` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Prepare training data and look at it
    #[command(subcommand)]
    Data(DataCommand),
    /// Make a tokenizer
    #[command(subcommand)]
    Tokenizer(TokenizerCommand),
    /// Train a model
    Train(TrainArgs),
    /// Turn masks into text, once
    Sample(SampleArgs),
    /// Turn masks into text, in a conversation with yourself
    ///
    /// Each line is a prompt. `:complete N` before it appends N tokens, `:mask R` masks the share R of its tokens and
    /// fills them in again.
    Chat(ChatArgs),
    /// Turn masks into text, in the browser
    Serve(ServeArgs),
    /// Look at model folders and convert them
    #[command(subcommand)]
    Model(ModelCommand),
    /// Say how likely a model finds texts, and which answers it chooses
    ///
    /// Scores prepared data (`--data`) or texts (`--jsonl`) by a bound on their likelihood, with its errors; answers questions
    /// (`--choices`); or judges generated texts (`--generated`).
    Eval(EvalArgs),
    /// Show and check settings
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Say what this machine and this build can do
    Doctor(DoctorArgs),
    /// Write completions for a shell
    ///
    /// For bash: `dlm completions bash > ~/.local/share/bash-completion/completions/dlm`.
    Completions {
        /// Shell to write for
        shell: clap_complete::Shell,
    },
}

/// What `dlm data` can do.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Run a pipeline: from files to packed token rows
    ///
    /// Preparing the same pipeline over the same input gives the same bytes, and does nothing when they are there already. A
    /// folder is complete or absent, whenever the preparation was stopped; called again, it goes on behind the shards that were
    /// finished.
    Prepare(PrepareArgs),
    /// Show what a pipeline will do, without doing it
    Explain(ExplainArgs),
    /// Look at prepared data: counts, lengths, and rows as text
    ///
    /// What the model has to produce is green, what it is given is dim; documents of a packed row stand apart. The keys of
    /// `--json` are described in docs/inspect.md.
    Inspect(InspectArgs),
    /// Check prepared data: checksums, every row, the account of tokens, both sides of the split
    ///
    /// Each violation is named with its file and row, and the exit code is 1 when there is any.
    Validate(ValidateArgs),
}

/// Arguments of `dlm data prepare`.
#[derive(Debug, Args)]
pub struct PrepareArgs {
    /// Pipeline file
    #[arg(required_unless_present = "config")]
    pub pipeline: Option<PathBuf>,
    /// Axolotl file in YAML, in place of a pipeline: its datasets become a pipeline, which is printed and run
    ///
    /// What is printed is the pipeline as TOML, to go on from. Keys about the training are left to `dlm train --config`. Paths are
    /// relative to the current folder, as in Axolotl.
    #[arg(long, value_name = "FILE", conflicts_with = "pipeline")]
    pub config: Option<PathBuf>,
    /// Folder to write, in place of the pipeline's
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Change one value of the pipeline, such as `pack.sequence_len=1024`
    ///
    /// A name that several steps share is an error.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Threads to work with, rather than one a core
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..=4096))]
    pub threads: Option<u64>,
    /// Memory to work with, such as `512MiB`, rather than the pipeline's limit or 1 GiB
    ///
    /// What does not fit is sorted on disk, in the folder for temporary files (`TMPDIR`).
    #[arg(long, value_name = "SIZE", value_parser = dlm_data::parse_size)]
    pub memory_limit: Option<usize>,
    /// Replace other prepared data in the folder
    #[arg(long)]
    pub overwrite: bool,
    /// Write the manifest as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `dlm data explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Pipeline file
    pub pipeline: PathBuf,
    /// Change one value of the pipeline, such as `pack.sequence_len=1024`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Arguments of `dlm data validate`.
#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// Folder of prepared data
    pub data: PathBuf,
    /// Write one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `dlm data inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Folder of prepared data
    pub data: PathBuf,
    /// Rows of each side to show as text
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub rows: u64,
    /// Look at one side only
    #[arg(long, value_name = "SIDE")]
    pub split: Option<Side>,
    /// Write one JSON object
    #[arg(long)]
    pub json: bool,
    /// Write a page with plots as well; it needs no other file and no network
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// A side of prepared data, on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Side {
    /// What is trained on
    Train,
    /// What is set aside to measure by
    Validation,
}

impl From<Side> for dlm_data::Split {
    fn from(side: Side) -> Self {
        match side {
            Side::Train => Self::Train,
            Side::Validation => Self::Validation,
        }
    }
}

/// What `dlm tokenizer` can do.
#[derive(Debug, Subcommand)]
pub enum TokenizerCommand {
    /// Train a byte-level BPE tokenizer on a pipeline's text
    Train(TokenizerTrainArgs),
}

/// Arguments of `dlm tokenizer train`.
#[derive(Debug, Args)]
pub struct TokenizerTrainArgs {
    /// Pipeline file whose text to learn from; its steps from `chat` or `tokenize` on are left out
    pub pipeline: PathBuf,
    /// Tokens of the vocabulary, special tokens included
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(257..))]
    pub vocab_size: u64,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Change one value of the pipeline
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Where settings come from, for every command that has some.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Settings")]
pub struct SettingsArgs {
    /// Settings to start from: `pretrain`, `sft`, or a profile of `dlm.toml`
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
    /// Settings file in TOML or YAML, also one of Axolotl's; later ones are stronger
    #[arg(long = "config", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Set one value, such as `learning_rate=2e-4` or `diffusion.eps=1e-2`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Device to work on: `auto`, `cpu`, `cuda` or `cuda:N`
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Threads to work with, rather than one a core
    #[arg(long, value_name = "N")]
    pub threads: Option<String>,
}

impl SettingsArgs {
    /// The same as sources for [`resolve`](crate::settings::resolve).
    #[must_use]
    pub fn sources(&self) -> Sources {
        let flags = [("--device", "device", &self.device), ("--threads", "threads", &self.threads)];
        Sources {
            profile: self.profile.clone(),
            files: self.files.clone(),
            assignments: self.set.clone(),
            flags: flags.into_iter().filter_map(|(flag, key, value)| Some((flag, key, value.clone()?))).collect(),
        }
    }
}

/// Arguments of `dlm train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Go on from the newest complete checkpoint in `output_dir`
    ///
    /// The losses continue as if the run had never stopped, bit for bit on the same build, device and number of threads.
    #[arg(long)]
    pub resume: bool,
    /// Where settings come from.
    #[command(flatten)]
    pub settings: SettingsArgs,
}

/// How to make text, for every command that does.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Adapter folder to put onto the model, without merging it
    ///
    /// A folder that `dlm train` wrote with `adapter = "lora"` is a model folder by itself, as long as its base model is where it
    /// was.
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    pub adapter: Option<PathBuf>,
    /// What weights become in memory, in place of the setting `inference_dtype`: half precision takes half the memory
    #[arg(long, value_name = "KIND", help_heading = "Model")]
    pub dtype: Option<LoadDtype>,
    /// Denoising steps; more are slower and reveal fewer tokens at a time
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    pub steps: Option<u64>,
    /// Temperature; 0 takes the most likely token
    #[arg(long, value_name = "T", value_parser = temperature)]
    pub temperature: Option<f64>,
    /// What every random choice follows from
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u64>,
}

/// Arguments of `dlm sample`.
#[derive(Debug, Args)]
pub struct SampleArgs {
    /// Model folder; without it, the `output_dir` of the settings
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Text to begin from; without it and without `--input-ids`, standard input is read
    #[arg(long, value_name = "TEXT", conflicts_with = "input_ids")]
    pub prompt: Option<String>,
    /// Token ids to begin from, with commas between them
    #[arg(long, value_name = "IDS", value_delimiter = ',', num_args = 1)]
    pub input_ids: Option<Vec<i64>>,
    /// What to turn into masks.
    #[command(flatten)]
    pub masking: MaskingArgs,
    /// How to make text.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Write one JSON object with ids, masked positions, text, passes and seconds
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Show the tokens after every step
    #[arg(long, help_heading = "Output")]
    pub trace: bool,
    /// Draw the denoising into this file, as an SVG that plays it
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub svg: Option<PathBuf>,
    /// Where settings come from.
    #[command(flatten)]
    pub settings: SettingsArgs,
}

/// What to turn into masks; without any of these, the default number of tokens is appended.
#[derive(Debug, Clone, Default, Args)]
#[group(multiple = false)]
#[command(next_help_heading = "Masks")]
pub struct MaskingArgs {
    /// Append this many masks to the prompt
    #[arg(long, value_name = "TOKENS", value_parser = value_parser!(u64).range(1..))]
    pub complete: Option<u64>,
    /// Mask this share of the prompt's tokens, chosen at random
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    pub mask: Option<f64>,
    /// Mask these positions of the prompt, counted from 0, with commas between them
    #[arg(long, value_name = "POSITIONS", value_delimiter = ',', num_args = 1)]
    pub mask_positions: Option<Vec<usize>>,
}

/// Arguments of `dlm chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// Model folder; without it, the `output_dir` of the settings
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// How to make text.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Where settings come from.
    #[command(flatten)]
    pub settings: SettingsArgs,
}

/// Arguments of `dlm serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Model folder; without it, the `output_dir` of the settings
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Address to listen on; anything but this machine's own lets others in
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: std::net::IpAddr,
    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    pub port: u16,
    /// How to make text.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Where settings come from.
    #[command(flatten)]
    pub settings: SettingsArgs,
}

/// What `dlm model` can do.
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Say what a model folder holds and what it takes to use it
    ///
    /// Reads config.json and the headers of the weights, not the weights.
    Info {
        /// Model or adapter folder
        folder: PathBuf,
        /// Also read every weight, and name those that are not finite
        #[arg(long)]
        check: bool,
        /// Write one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Make a model folder of a GGUF file, tokenizer included
    ///
    /// Read are the architectures llama, qwen2 and qwen3 with weights in F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K or Q6_K and a
    /// byte-level BPE tokenizer.
    Convert {
        /// GGUF file
        gguf: PathBuf,
        /// Folder to write
        output: PathBuf,
        /// How to write the weights.
        #[command(flatten)]
        writing: WritingArgs,
    },
    /// Add an adapter into the weights of its base model
    Merge {
        /// Adapter folder
        adapter: PathBuf,
        /// Folder to write
        output: PathBuf,
        /// Base model folder, in place of the one that the adapter names
        #[arg(long, value_name = "DIR")]
        base: Option<PathBuf>,
        /// How to write the weights.
        #[command(flatten)]
        writing: WritingArgs,
    },
}

/// How weights are written.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct WritingArgs {
    /// What weights are stored as; unset, as they were
    #[arg(long, value_name = "KIND")]
    pub dtype: Option<Dtype>,
    /// Largest file of weights in megabytes; more are spread over several
    #[arg(long, value_name = "MB", default_value_t = 5000, value_parser = value_parser!(u64).range(1..))]
    pub max_shard_size: u64,
}

/// What `dlm config` can do.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every setting with what set it
    Show {
        /// Write one JSON object a setting
        #[arg(long)]
        json: bool,
        /// Where settings come from.
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Check settings files, each by itself
    Check {
        /// Files to check
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

/// Arguments of `dlm doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Write one JSON object
    #[arg(long)]
    pub json: bool,
}

fn number(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|value: &f64| value.is_finite()).ok_or_else(|| "not a number".to_owned())
}

fn ratio(text: &str) -> Result<f64, String> {
    number(text).and_then(|value| {
        if value > 0.0 && value <= 1.0 { Ok(value) } else { Err("must be above 0 and at most 1".to_owned()) }
    })
}

fn temperature(text: &str) -> Result<f64, String> {
    number(text).and_then(|value| if value >= 0.0 { Ok(value) } else { Err("must be at least 0".to_owned()) })
}
