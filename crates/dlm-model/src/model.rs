//! `Model`: a checkpoint in its role as a denoiser, and its way from and to folders.

use crate::{
    adapter::{ADAPTER_CONFIG, Adapter, base_folder},
    checkpoint::Checkpoint,
    compute_copy::ComputeCopy,
    config::ModelConfig,
    diffusion_info::DiffusionInfo,
    error::{ModelError, Result},
    head::LinearHead,
    init,
    save::{self, SaveOptions},
    state_dict::{Tensors, parameters},
    transformer::Transformer,
};
use dlm_diffusion::{Denoiser, DenoiserInput, DiffusionError, Head, PackingIsolation, predicting_positions_in};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Where a model lives and in which kind of numbers it computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOptions {
    /// Where its parameters lie.
    pub device: Device,
    /// What they are: `Float`, or `BFloat16` or `Half` for inference in half the memory; see [`Model::stored_kind`].
    pub kind: Kind,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { device: Device::Cpu, kind: Kind::Float }
    }
}

/// A transformer that denoises.
///
/// Made for inference: no parameter asks for gradients until [`train`](Self::train) says so. Copies of its parameters, as
/// [`named_parameters`](Self::named_parameters) gives them, share their memory.
#[derive(Debug)]
pub struct Model {
    pub(crate) config: ModelConfig,
    pub(crate) parameters: Vec<(String, Tensor)>,
    pub(crate) adapter: Option<Adapter>,
    pub(crate) transformer: Transformer,
    pub(crate) head: LinearHead,
    pub(crate) packing_isolation: PackingIsolation,
}

impl Model {
    /// Loads a folder of config.json and safetensors, as Hugging Face has them.
    ///
    /// # Errors
    /// What is wrong with config.json (see [`ModelConfig::from_folder`]) or with the weights: [`ModelError::NoWeights`],
    /// [`ModelError::PickledWeights`], [`ModelError::Damaged`], [`ModelError::Tensors`], [`ModelError::StoredKind`],
    /// [`ModelError::UntiedHead`].
    pub fn load(folder: &Path, options: &LoadOptions) -> Result<Self> {
        check_kind(options.kind)?;
        if folder.join(ADAPTER_CONFIG).is_file() && !Checkpoint::is_in(folder) {
            return Self::load_adapted(folder, options);
        }
        let config = ModelConfig::from_folder(folder)?;
        let checkpoint = open_checked(folder, &config)?;
        let read = |name: String| Ok((name.clone(), checkpoint.read(&name, options.kind, options.device)?));
        let named = parameters(&config).into_iter().map(|parameter| read(parameter.name)).collect::<Result<_>>()?;
        Ok(Self::assemble(config, named, None))
    }

    /// What the weights of a model folder, or of an adapter's base, are stored as: the kind to load them as they are.
    ///
    /// Reads the header of the weights, not what config.json says of them.
    ///
    /// # Errors
    /// Those of [`load`](Self::load) that concern config.json and the headers of the weights.
    pub fn stored_kind(folder: &Path) -> Result<Kind> {
        if folder.join(ADAPTER_CONFIG).is_file() && !Checkpoint::is_in(folder) {
            return Self::stored_kind(&base_folder(folder)?);
        }
        let config = ModelConfig::from_folder(folder)?;
        open_checked(folder, &config)?.kind(&format!("{}.weight", config.family.tensors.embedding))
    }

    /// A model from scratch: every number follows from `seed`.
    ///
    /// Normal with the standard deviation `initializer_range`, norms at one, biases at zero, like the Llama reference.
    ///
    /// # Errors
    /// [`ModelError::ComputeKind`], or [`ModelError::Torch`] when memory runs out.
    pub fn from_config(config: ModelConfig, seed: u64, options: &LoadOptions) -> Result<Self> {
        check_kind(options.kind)?;
        let named = init::from_scratch(&config, seed, options.kind, options.device)?;
        Ok(Self::assemble(config, named, None))
    }

    /// Makes the modules of parameters that fit `config`; they share them with the list, and an adapter's with the adapter.
    pub(crate) fn assemble(config: ModelConfig, parameters: Vec<(String, Tensor)>, adapter: Option<Adapter>) -> Self {
        let tensors = Tensors::new(&parameters, adapter.as_ref());
        let names = config.family.tensors;
        let head = if config.tie_word_embeddings {
            // An embedding that is trained as a whole leaves the head behind, as in peft.
            tensors.replacement(names.head).unwrap_or_else(|| tensors.base_weight(names.embedding))
        } else {
            tensors.weight(names.head)
        };
        Self {
            transformer: Transformer::new(&config, &tensors),
            head: LinearHead { weight: head, copy: None },
            packing_isolation: PackingIsolation::default(),
            config,
            parameters,
            adapter,
        }
    }

    /// The config, up to date with what was changed since it was read.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// How it was trained to denoise, where its folder says so.
    #[must_use]
    pub fn diffusion(&self) -> Option<&DiffusionInfo> {
        self.config.diffusion.as_ref()
    }

    /// Says how it is trained to denoise; takes effect at once and is saved with it.
    ///
    /// # Errors
    /// [`ModelError::MaskTokenOutOfRange`] when the mask token has no row in the embedding.
    pub fn set_diffusion(&mut self, info: DiffusionInfo) -> Result<()> {
        let (mask_token_id, vocab_size) = (info.mask_token_id, self.vocab_size());
        if !(0..vocab_size).contains(&mask_token_id) {
            return Err(ModelError::MaskTokenOutOfRange { mask_token_id, vocab_size });
        }
        self.config.diffusion = Some(info);
        Ok(())
    }

    /// Id of the mask token, where the folder says it.
    #[must_use]
    pub fn mask_token_id(&self) -> Option<i64> {
        self.diffusion().map(|info| info.mask_token_id).or(self.config.mask_token_id)
    }

    /// Chooses whether the logits shift stops at document borders ([`PackingIsolation::Document`], the default) or crosses them.
    ///
    /// Positions are the caller's part: under [`PackingIsolation::Row`] they run on, which is what happens without `position_ids`.
    pub fn set_packing_isolation(&mut self, isolation: PackingIsolation) {
        self.packing_isolation = isolation;
    }

    /// The parameters under their checkpoint's names, in the order in which transformers registers them; a tied head is not
    /// among them.
    pub fn named_parameters(&self) -> &[(String, Tensor)] {
        &self.parameters
    }

    /// How many numbers the parameters hold; those of a tied head count once.
    #[must_use]
    pub fn parameter_count(&self) -> u64 {
        self.parameters.iter().map(|(_, tensor)| tensor.numel() as u64).sum()
    }

    /// Rows of the embedding; ids must be below.
    #[must_use]
    pub fn vocab_size(&self) -> i64 {
        self.transformer.vocab_size()
    }

    /// The longest document that it reads.
    #[must_use]
    pub fn max_seq_len(&self) -> i64 {
        self.config.max_seq_len()
    }

    /// Where its parameters lie.
    #[must_use]
    pub fn device(&self) -> Device {
        self.head.weight.device()
    }

    /// What its parameters are.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.head.weight.kind()
    }

    /// In which kind of numbers it computes: that of its parameters, unless [`compute_in`](Self::compute_in) says otherwise.
    #[must_use]
    pub fn compute_kind(&self) -> Kind {
        self.head.copy.as_ref().map_or(self.kind(), ComputeCopy::kind)
    }

    /// Computes in `kind` from now on, while parameters, gradients, norms, the residual stream, softmax and loss stay in float32.
    ///
    /// `BFloat16` over `Float` parameters is mixed precision: matrices are cast when they have changed, not when they are used,
    /// which takes half as much memory again as the parameters. Comes after [`grow_vocabulary`](Self::grow_vocabulary) and
    /// adapters.
    ///
    /// # Errors
    /// [`ModelError::ComputeMix`] for any other mix than that one, [`ModelError::Torch`] when memory runs out.
    pub fn compute_in(&mut self, kind: Kind) -> Result<()> {
        if kind != self.kind() && (self.kind(), kind) != (Kind::Float, Kind::BFloat16) {
            return Err(ModelError::ComputeMix { weights: self.kind(), found: kind });
        }
        self.transformer.compute_in(kind)?;
        self.head.compute_in(kind)?;
        Ok(())
    }

    /// Turns its parameters into another kind of numbers, in which it computes as well. They stay the same tensors.
    ///
    /// # Errors
    /// [`ModelError::ComputeKind`] for a kind that is none for weights, [`ModelError::Torch`] when memory runs out.
    pub fn convert(&mut self, kind: Kind) -> Result<()> {
        check_kind(kind)?;
        let of_adapter = self.adapter.as_mut().map_or(&mut [][..], |adapter| &mut adapter.state);
        for (_, tensor) in self.parameters.iter_mut().chain(of_adapter) {
            let converted = tensor.detach().f_to_kind(kind)?;
            tensor.f_set_data(&converted)?;
        }
        self.compute_in(kind)
    }

    /// Whether training forgets what happens inside a block and computes it again: less memory for about a quarter more time.
    ///
    /// Changes no number.
    pub fn set_gradient_checkpointing(&mut self, checkpoints: bool) {
        self.transformer.set_checkpoints(checkpoints);
    }

    /// Whether training computes the inside of blocks again instead of keeping it.
    #[must_use]
    pub fn gradient_checkpointing(&self) -> bool {
        self.transformer.checkpoints()
    }

    /// Makes every [trainable parameter](Self::trainable_parameters) ask for gradients, or none.
    ///
    /// To be trained, weights that are multiplied by the same input move behind each other in memory, where there is room.
    pub fn train(&mut self, trainable: bool) {
        if trainable {
            // Without it they are multiplied one by one, which is as good a result.
            let _ = self.transformer.join();
        }
        let tensors = self.adapter.as_mut().map_or(&mut self.parameters, |adapter| &mut adapter.state);
        for (_, tensor) in tensors {
            let _ = tensor.requires_grad_(trainable);
        }
    }

    /// Whether its parameters ask for gradients.
    #[must_use]
    pub fn is_trainable(&self) -> bool {
        self.trainable_parameters().iter().any(|(_, tensor)| tensor.requires_grad())
    }

    /// Gives the embedding, and a head of its own, rows up to `vocab_size`; they begin at the mean of those there are.
    ///
    /// Never shrinks: a smaller `vocab_size` changes nothing. The grown parameters are new tensors, so this comes before an
    /// optimiser takes them.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when memory runs out, [`ModelError::HasAdapter`].
    pub fn grow_vocabulary(&mut self, vocab_size: i64) -> Result<()> {
        let added = vocab_size - self.vocab_size();
        if added <= 0 {
            return Ok(());
        }
        if self.adapter.is_some() {
            return Err(ModelError::HasAdapter);
        }
        let names = self.config.family.tensors;
        let grown = [names.embedding, names.head].map(|name| format!("{name}.weight"));
        let mut named: Vec<_> = self.parameters.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect();
        for (_, tensor) in named.iter_mut().filter(|(name, _)| grown.contains(name)) {
            let old = tensor.detach();
            let mean = old.mean_dim([0i64].as_slice(), true, Kind::Float).to_kind(old.kind()); // [1, hidden]
            let rows = Tensor::f_cat(&[old, mean.expand([added, -1], false)], 0)?;
            *tensor = rows.set_requires_grad(tensor.requires_grad());
        }
        let mut config = self.config.clone();
        config.vocab_size = vocab_size;
        let packing_isolation = self.packing_isolation;
        *self = Self { packing_isolation, ..Self::assemble(config, named, None) };
        Ok(())
    }

    /// Writes a folder that transformers loads: safetensors, `companions` (file name and content, such as a tokenizer's),
    /// and last config.json with a `diffusion` object where there is one; each file whole or absent.
    ///
    /// With an adapter, only that is written, as peft has it, and config.json says the rest.
    ///
    /// `options` may be just the kind of numbers to store. Weights that stood in the folder before are replaced, in one file or
    /// several; while there are several, config.json is absent, so that nobody takes files of both for one model.
    ///
    /// # Errors
    /// [`ModelError::Write`] with the path that could not be written, or [`ModelError::ComputeKind`] for a `kind` other than
    /// `Float`, `BFloat16` and `Half`.
    pub fn save(&self, folder: &Path, options: impl Into<SaveOptions>, companions: &[(String, Vec<u8>)]) -> Result<()> {
        let options = options.into();
        check_kind(options.kind)?;
        match &self.adapter {
            Some(adapter) => self.save_adapter(adapter, folder, options.kind, companions),
            None => save::save(folder, &self.config, &self.parameters, options, companions),
        }
    }

    /// Looks at every number of every parameter; takes as long as reading them from memory.
    ///
    /// # Errors
    /// [`ModelError::NotFinite`] with the parameters that hold a NaN or an infinity.
    pub fn check_finite(&self) -> Result<()> {
        let count = |tensor: &Tensor| tensor.detach().isfinite().logical_not().sum(Kind::Int64).int64_value(&[]);
        let found: Vec<(String, i64)> =
            self.parameters.iter().map(|(name, tensor)| (name.clone(), count(tensor))).collect();
        let names: Vec<_> = found.into_iter().filter(|(_, count)| *count > 0).collect();
        if names.is_empty() { Ok(()) } else { Err(ModelError::NotFinite { names }) }
    }

    /// Overwrites the parameters in place by those of a folder, which must have the same names and shapes.
    ///
    /// # Errors
    /// Those of [`load`](Self::load) that concern weights; nothing is overwritten then.
    pub fn load_parameters(&mut self, folder: &Path) -> Result<()> {
        if let Some(adapter) = &self.adapter {
            return self.load_adapter_parameters(adapter, folder);
        }
        let checkpoint = open_checked(folder, &self.config)?;
        let (kind, device) = (self.kind(), self.device());
        let read = |(name, _): &(String, Tensor)| checkpoint.read(name, kind, device);
        let values = self.parameters.iter().map(read).collect::<Result<Vec<_>>>()?;
        for ((_, tensor), value) in self.parameters.iter_mut().zip(&values) {
            tch::no_grad(|| tensor.f_copy_(value))?;
        }
        Ok(())
    }

    /// Runs a forward pass as other programs over libtorch would, to the bit, unless it belongs to training or is in half precision:
    /// there it is fast.
    pub(crate) fn exactly<T>(&self, forward: impl FnOnce() -> T) -> T {
        if self.kind() == Kind::Float && !self.is_trainable() {
            dlm_torch::with_plain_operators(forward)
        } else {
            forward()
        }
    }

    /// Refuses inputs that do not fit, before they reach an operator that would say less.
    fn check(&self, input: &DenoiserInput<'_>) -> dlm_diffusion::Result<(i64, i64)> {
        let ids = input.ids;
        let (batch, seq_len) = ids.size2().map_err(|_| DiffusionError::ShapeMismatch {
            name: "ids",
            found: ids.size(),
            expected: "[batch, seq_len]".to_owned(),
        })?;
        let alike = [
            ("ids", Some(ids)),
            ("position_ids", input.position_ids),
            ("segment_ids", input.attention.segment_ids.as_ref()),
            ("dropout_keys", input.dropout_keys),
        ];
        for (name, tensor) in alike.into_iter().filter_map(|(name, tensor)| Some((name, tensor?))) {
            if tensor.size() != [batch, seq_len] {
                let expected = format!("[{batch}, {seq_len}]");
                return Err(DiffusionError::ShapeMismatch { name, found: tensor.size(), expected });
            }
            if tensor.kind() != Kind::Int64 {
                return Err(DiffusionError::KindMismatch { name, found: tensor.kind(), expected: "Int64" });
            }
        }
        if ids.numel() == 0 {
            return Ok((batch, seq_len));
        }
        let max_seq_len = self.max_seq_len();
        match input.position_ids {
            None if seq_len > max_seq_len => {
                return Err(DiffusionError::denoiser(ModelError::SequenceTooLong { seq_len, max_seq_len }));
            }
            Some(positions) => {
                if let Some(index) = first_outside(positions, max_seq_len) {
                    let position = positions.flatten(0, 1).int64_value(&[index]);
                    return Err(DiffusionError::denoiser(ModelError::PositionOutOfRange { position, max_seq_len }));
                }
            }
            None => {}
        }
        let vocab_size = self.vocab_size();
        first_outside(ids, vocab_size).map_or(Ok((batch, seq_len)), |index| {
            let (row, position) = (index / seq_len, index % seq_len);
            let id = ids.int64_value(&[row, position]);
            Err(DiffusionError::IdBeyondVocabulary { id, row, position, vocab_size })
        })
    }
}

impl Denoiser for Model {
    fn hidden_states(&self, input: &DenoiserInput<'_>) -> dlm_diffusion::Result<Tensor> {
        let (batch, seq_len) = self.check(input)?;
        let device = self.device();
        let ids = input.ids.to_device(device);
        let positions = match input.position_ids {
            Some(positions) => positions.to_device(device),
            None => Tensor::arange(seq_len, (Kind::Int64, device)).unsqueeze(0),
        };
        let wanted = input.wanted.map(|wanted| wanted.to_device(device));
        let wanted = if self.config.logits_shift() {
            let wanted = wanted.unwrap_or_else(|| Tensor::arange(batch * seq_len, (Kind::Int64, device)));
            let mut layout = input.attention.clone();
            layout.segment_ids = layout.segment_ids.map(|ids| ids.to_device(device));
            let block_start = self.config.diffusion.as_ref().map(|info| info.block_start).unwrap_or_default();
            Some(predicting_positions_in(&wanted, seq_len, &layout, self.packing_isolation, block_start)?)
        } else {
            wanted
        };
        let dropout_keys = input.dropout_keys.map(|keys| keys.flatten(0, 1));
        let forward = || self.transformer.forward(&ids, &positions, input.attention, wanted.as_ref(), dropout_keys);
        Ok(self.exactly(forward)?)
    }

    fn head(&self) -> &dyn Head {
        &self.head
    }
}

fn check_kind(kind: Kind) -> Result<()> {
    match kind {
        Kind::Float | Kind::BFloat16 | Kind::Half => Ok(()),
        found => Err(ModelError::ComputeKind { found }),
    }
}

/// Opens a folder's weights and compares them with what `config` asks for.
pub(crate) fn open_checked(folder: &Path, config: &ModelConfig) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(folder)?;
    let names = config.family.tensors;
    let [head, embedding] = [names.head, names.embedding].map(|name| format!("{name}.weight"));
    let tied = config.tie_word_embeddings.then_some(head.as_str());
    checkpoint.check(&parameters(config), tied)?;
    if tied.is_some_and(|head| checkpoint.contains(head)) && !checkpoint.holds_alike(&head, &embedding)? {
        return Err(ModelError::UntiedHead { folder: folder.to_owned(), head, embedding });
    }
    Ok(checkpoint)
}

/// The first flat index at which `numbers`, `[batch, seq_len]` and not empty, lie outside `0..end`.
fn first_outside(numbers: &Tensor, end: i64) -> Option<i64> {
    let (smallest, largest) = numbers.aminmax(None, false);
    if smallest.int64_value(&[]) >= 0 && largest.int64_value(&[]) < end {
        return None;
    }
    let outside = numbers.lt(0).logical_or(&numbers.ge(end)).flatten(0, 1);
    Some(outside.to_kind(Kind::Int8).argmax(0, false).int64_value(&[]))
}
