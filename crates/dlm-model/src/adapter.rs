//! LoRA: small matrices beside frozen ones, in peft's files and under its names.

mod adapted;
mod dropout;
mod file;
mod targets;

pub use file::{ADAPTER_CONFIG, ADAPTER_WEIGHTS};

use crate::error::{ModelError, Result};
use tch::{TchError, Tensor};

pub(crate) use adapted::base_folder;
pub(crate) use dropout::mask;

/// An adapter's settings, as peft has them ([arXiv:2106.09685](https://arxiv.org/abs/2106.09685)).
///
/// ```
/// use dlm_model::{LoadOptions, LoraConfig, LoraTargets, Model, ModelConfig};
///
/// let mut model = Model::from_config(ModelConfig::preset("tiny", 100)?, 1, &LoadOptions::default())?;
/// let config = LoraConfig::new(8, 16.0).with_targets(LoraTargets::Names(vec!["q_proj".to_owned(), "v_proj".to_owned()]));
/// model.add_adapter(&config, 42)?;
/// assert_eq!(model.trainable_parameters().len(), 6 * 2 * 2); // blocks, targets, two matrices each
/// # Ok::<(), dlm_model::ModelError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LoraConfig {
    /// Rank: columns of the small matrices.
    pub r: i64,
    /// What the product of the small matrices is scaled by, divided by the rank.
    pub alpha: f64,
    /// Probability that a number is dropped on its way into an adapter, in training.
    pub dropout: f64,
    /// Divide `alpha` by the root of the rank instead ([arXiv:2312.03732](https://arxiv.org/abs/2312.03732)).
    pub use_rslora: bool,
    /// Which linear maps are adapted.
    pub targets: LoraTargets,
    /// Modules that are trained and saved as a whole, by the end of their names, such as `lm_head` or `embed_tokens`.
    pub modules_to_save: Vec<String>,
    /// Tokens whose embeddings are trained and saved, such as an added mask token.
    ///
    /// They are trained as what goes into the model. As an output, which in tied models is the same row, nothing is learnt
    /// from them: a mask token is never a target.
    pub trainable_tokens: Vec<i64>,
    /// The model folder that it belongs to, as its file names it.
    pub base_model: Option<String>,
}

/// Which linear maps of the blocks an adapter changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoraTargets {
    /// All of them.
    AllLinear,
    /// Those whose name is, or ends in a dot and, one of these.
    Names(Vec<String>),
}

impl LoraConfig {
    /// All linear maps of the blocks at that rank and scale, without dropout.
    #[must_use]
    pub fn new(r: i64, alpha: f64) -> Self {
        Self {
            r,
            alpha,
            dropout: 0.0,
            use_rslora: false,
            targets: LoraTargets::AllLinear,
            modules_to_save: Vec::new(),
            trainable_tokens: Vec::new(),
            base_model: None,
        }
    }

    /// The same with other targets.
    #[must_use]
    pub fn with_targets(mut self, targets: LoraTargets) -> Self {
        self.targets = targets;
        self
    }

    /// The same with dropout.
    #[must_use]
    pub fn with_dropout(mut self, dropout: f64) -> Self {
        self.dropout = dropout;
        self
    }

    /// The same with `alpha / sqrt(r)` as its scale.
    #[must_use]
    pub fn rank_stabilised(mut self, use_rslora: bool) -> Self {
        self.use_rslora = use_rslora;
        self
    }

    /// The same with modules that are trained as a whole.
    #[must_use]
    pub fn with_modules_to_save(mut self, modules: Vec<String>) -> Self {
        self.modules_to_save = modules;
        self
    }

    /// The same with tokens whose embeddings are trained.
    #[must_use]
    pub fn with_trainable_tokens(mut self, tokens: Vec<i64>) -> Self {
        self.trainable_tokens = tokens;
        self
    }

    /// The same, belonging to that model folder.
    #[must_use]
    pub fn of_base_model(mut self, folder: impl Into<String>) -> Self {
        self.base_model = Some(folder.into());
        self
    }

    pub(crate) fn scale(&self) -> f64 {
        let r = self.r as f64;
        self.alpha / if self.use_rslora { r.sqrt() } else { r }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let setting = |name: &'static str, value: String, accepted: &'static str| {
            Err(ModelError::LoraSetting { name, value, accepted: accepted.to_owned() })
        };
        if !(1..=1 << 16).contains(&self.r) {
            return setting("r", self.r.to_string(), "from 1 to 65536");
        }
        if !self.alpha.is_finite() {
            return setting("alpha", self.alpha.to_string(), "a finite number");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return setting("dropout", self.dropout.to_string(), "at least 0 and below 1");
        }
        Ok(())
    }
}

/// An adapter: its settings and its tensors, under the names of its file.
#[derive(Debug)]
pub(crate) struct Adapter {
    pub(crate) config: LoraConfig,
    pub(crate) state: Vec<(String, Tensor)>,
}

/// What stands before the names of a model's modules in an adapter's file.
pub(crate) const PREFIX: &str = "base_model.model.";

impl Adapter {
    pub(crate) fn find(&self, name: &str) -> Option<Tensor> {
        self.state.iter().find(|(known, _)| known == name).map(|(_, tensor)| tensor.shallow_clone())
    }

    /// What an adapter puts in the place of a parameter.
    pub(crate) fn replacement(&self, parameter: &str) -> Option<Tensor> {
        self.find(&format!("{PREFIX}{parameter}"))
    }

    /// What an adapter puts beside a linear map.
    pub(crate) fn low_rank(&self, module: &str) -> Option<LowRank> {
        let part = |part: &str| {
            let name = format!("{PREFIX}{module}.{part}.weight");
            self.state.iter().position(|(known, _)| *known == name)
        };
        let (a, b) = (part("lora_A")?, part("lora_B")?);
        let tensor = |i: usize| self.state[i].1.shallow_clone();
        Some(LowRank {
            a: tensor(a),
            b: tensor(b),
            scale: self.config.scale(),
            dropout: self.config.dropout,
            number: a as u64,
        })
    }

    /// The tokens whose embeddings are trained, and those.
    pub(crate) fn token_rows(&self, embedding: &str) -> Option<(Vec<i64>, Tensor)> {
        let rows = self.find(&token_rows_name(embedding))?;
        Some((self.config.trainable_tokens.clone(), rows))
    }
}

pub(crate) fn token_rows_name(embedding: &str) -> String {
    format!("{PREFIX}{embedding}.token_adapter.trainable_tokens_delta")
}

/// Two small matrices whose product is added to a large one.
#[derive(Debug)]
pub(crate) struct LowRank {
    /// `[r, in]`.
    a: Tensor,
    /// `[out, r]`.
    b: Tensor,
    scale: f64,
    dropout: f64,
    /// Tells the draws of one adapter from those of others.
    number: u64,
}

impl LowRank {
    /// What is added to the output of the large matrix; `keys` says what dropout follows from, where there is some.
    pub(crate) fn forward(&self, x: &Tensor, keys: Option<&Tensor>) -> std::result::Result<Tensor, TchError> {
        let dropped = match keys {
            Some(keys) if self.dropout > 0.0 => Some(x * mask(keys, self.number, x.size()[1], self.dropout, x.kind())?),
            _ => None,
        };
        let x = dropped.as_ref().unwrap_or(x);
        // Where weights are of another kind than the model computes in, these are small enough to be cast for each use.
        let (a, b) = (self.a.f_to_kind(x.kind())?, self.b.f_to_kind(x.kind())?);
        let small = x.f_linear::<&Tensor>(&a, None)?; // [n, r]
        small.f_linear::<&Tensor>(&b, None)?.f_mul_scalar(self.scale)
    }

    /// The same matrices in another pair of hands.
    pub(crate) fn share(&self) -> Self {
        Self { a: self.a.shallow_clone(), b: self.b.shallow_clone(), ..*self }
    }

    /// The same as one matrix, in float32.
    pub(crate) fn product(&self) -> std::result::Result<Tensor, TchError> {
        let [a, b] = [&self.a, &self.b].map(|matrix| matrix.detach().to_kind(tch::Kind::Float));
        b.f_matmul(&a)?.f_mul_scalar(self.scale)
    }
}
