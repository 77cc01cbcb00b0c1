//! A model with an adapter: added, loaded, trained, saved, merged.

use super::{
    ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter, LoraConfig, PREFIX, file,
    targets::{self, Piece, Role},
};
use crate::{
    checkpoint::Checkpoint,
    error::{ModelError, Result},
    init,
    model::{LoadOptions, Model},
    save,
    state_dict::{Init, Parameter},
};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

impl Model {
    /// Adds an adapter that changes nothing yet; the numbers it begins with follow from `seed`.
    ///
    /// From then on only the adapter is trained and saved. Comes after [`grow_vocabulary`](Self::grow_vocabulary).
    ///
    /// # Errors
    /// [`ModelError::LoraSetting`] for a setting out of range or a name that no module has, [`ModelError::HasAdapter`].
    pub fn add_adapter(&mut self, config: &LoraConfig, seed: u64) -> Result<()> {
        config.validate()?;
        if self.adapter.is_some() {
            return Err(ModelError::HasAdapter);
        }
        let pieces = targets::pieces(&self.config, config)?;
        let (kind, device) = (self.kind(), self.device());
        let state = pieces.into_iter().enumerate().map(|(i, Piece { name, shape, role })| {
            let tensor = match role {
                // Uniform within one over the root of the inputs, as peft's `kaiming_uniform_(a=sqrt(5))` has it.
                Role::Down { inputs } => init::uniform(seed, i as u64, &shape, (inputs as f64).sqrt().recip())?,
                Role::Up => Tensor::f_zeros(&shape, (Kind::Float, tch::Device::Cpu))?,
                Role::Whole { parameter } => self.base_parameter(&parameter).copy(),
                Role::Rows => {
                    let embedding = self.base_parameter(&format!("{}.weight", self.config.family.tensors.embedding));
                    embedding.f_index_select(0, &Tensor::from_slice(&config.trainable_tokens).to_device(device))?
                }
            };
            Ok((name, tensor.detach().f_to_device(device)?.f_to_kind(kind)?))
        });
        let state = state.collect::<Result<Vec<_>>>()?;
        self.attach(Adapter { config: config.clone(), state })
    }

    /// Loads an adapter of peft's or of ours onto this model.
    ///
    /// # Errors
    /// [`ModelError::Value`] for a setting that is not computed here, [`ModelError::Tensors`] with names and shapes for an adapter of
    /// another model, [`ModelError::HasAdapter`].
    pub fn load_adapter(&mut self, folder: &Path) -> Result<()> {
        if self.adapter.is_some() {
            return Err(ModelError::HasAdapter);
        }
        let config = file::read(folder, self.config.family.tensors.embedding)?;
        let checkpoint = Checkpoint::open_file(folder, ADAPTER_WEIGHTS)?;
        // peft writes the whole embedding, and a head, when the vocabulary has grown.
        let names = self.config.family.tensors;
        let mut config = config;
        for module in [names.embedding, names.head] {
            if checkpoint.contains(&format!("{PREFIX}{module}.weight"))
                && !config.modules_to_save.iter().any(|end| module.ends_with(end.as_str()))
            {
                config.modules_to_save.push(module.to_owned());
            }
        }
        if let Some(rows) = checkpoint.rows(&format!("{PREFIX}{}.weight", names.embedding)) {
            self.grow_vocabulary(rows)?;
        }
        let pieces = targets::pieces(&self.config, &config)?;
        let expected: Vec<Parameter> = pieces
            .iter()
            .map(|Piece { name, shape, .. }| Parameter { name: name.clone(), shape: shape.clone(), init: Init::Zeros })
            .collect();
        checkpoint.check(&expected, None)?;
        let read = |piece: Piece| {
            let tensor = checkpoint.read(&piece.name, self.kind(), self.device())?;
            Ok((piece.name, tensor))
        };
        let state = pieces.into_iter().map(read).collect::<Result<Vec<_>>>()?;
        self.attach(Adapter { config, state })
    }

    /// Loads a base model and an adapter onto it.
    ///
    /// The vocabulary grows to that of the adapter's config.json, whose `diffusion` object counts, where there is one.
    ///
    /// # Errors
    /// Those of [`load`](Self::load) and [`load_adapter`](Self::load_adapter).
    pub fn load_with_adapter(base: &Path, adapter: &Path, options: &LoadOptions) -> Result<Self> {
        let mut model = Self::load(base, options)?;
        if adapter.join("config.json").is_file() {
            let config = crate::ModelConfig::from_folder(adapter)?;
            model.grow_vocabulary(config.vocab_size)?;
            model.config.diffusion = config.diffusion.or(model.config.diffusion);
        }
        model.load_adapter(adapter)?;
        Ok(model)
    }

    /// Loads the adapter folder's base model and the adapter onto it.
    ///
    /// The base is where the folder's adapter_config.json says: that path, or below one of the folders above the adapter.
    pub(crate) fn load_adapted(folder: &Path, options: &LoadOptions) -> Result<Self> {
        Self::load_with_adapter(&base_folder(folder)?, folder, options)
    }

    /// The adapter's settings, if there is one.
    #[must_use]
    pub fn adapter(&self) -> Option<&LoraConfig> {
        self.adapter.as_ref().map(|adapter| &adapter.config)
    }

    /// What is trained: the adapter's tensors under the names of its file, or all parameters where there is none.
    pub fn trainable_parameters(&self) -> &[(String, Tensor)] {
        self.adapter.as_ref().map_or(&self.parameters, |adapter| &adapter.state)
    }

    /// Adds the adapter into the weights and forgets it.
    ///
    /// A head that was tied to an embedding and is trained apart from it becomes one of its own.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when memory runs out; nothing is to be done without an adapter.
    pub fn merge_adapter(&mut self) -> Result<()> {
        let Some(adapter) = self.adapter.take() else { return Ok(()) };
        let names = self.config.family.tensors;
        let [head, embedding] = [names.head, names.embedding].map(|name| format!("{name}.weight"));
        let mut config = self.config.clone();
        let mut named: Vec<_> = self.parameters.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect();
        if config.tie_word_embeddings && [&head, &embedding].iter().any(|name| adapter.replacement(name).is_some()) {
            config.tie_word_embeddings = false;
            named.push((head.clone(), self.base_parameter(&embedding).copy()));
        }
        for (name, tensor) in &mut named {
            let module = name.strip_suffix(".weight").unwrap_or(name);
            if let Some(whole) = adapter.replacement(name) {
                *tensor = whole.detach();
            } else if let Some(low_rank) = adapter.low_rank(module).filter(|_| name.ends_with(".weight")) {
                let sum = tensor.detach().to_kind(Kind::Float) + low_rank.product()?;
                *tensor = sum.f_to_kind(tensor.kind())?;
            }
        }
        *self = Self { packing_isolation: self.packing_isolation, ..Self::assemble(config, named, None) };
        Ok(())
    }

    /// Writes the adapter as peft does, `companions`, and config.json with the vocabulary and the `diffusion` object.
    pub(crate) fn save_adapter(
        &self,
        adapter: &Adapter,
        folder: &Path,
        kind: Kind,
        companions: &[(String, Vec<u8>)],
    ) -> Result<()> {
        dlm_files::write_with(&folder.join(ADAPTER_WEIGHTS), |path| save::write_tensors(path, &adapter.state, kind))?;
        for (name, content) in companions {
            dlm_files::write(&folder.join(name), content)?;
        }
        let names = targets::target_names(&self.config, &adapter.config);
        let settings = file::to_json(&adapter.config, &names, self.config.family.tensors.embedding);
        save::write_json(&folder.join(ADAPTER_CONFIG), &settings)?;
        save::write_json(&folder.join("config.json"), &Value::Object(self.config.to_json()))
    }

    /// Overwrites the adapter's tensors in place by those of a folder.
    pub(crate) fn load_adapter_parameters(&self, adapter: &Adapter, folder: &Path) -> Result<()> {
        let checkpoint = Checkpoint::open_file(folder, ADAPTER_WEIGHTS)?;
        let expected: Vec<Parameter> = adapter
            .state
            .iter()
            .map(|(name, tensor)| Parameter { name: name.clone(), shape: tensor.size(), init: Init::Zeros })
            .collect();
        checkpoint.check(&expected, None)?;
        let read = |(name, tensor): &(String, Tensor)| checkpoint.read(name, tensor.kind(), tensor.device());
        let values = adapter.state.iter().map(read).collect::<Result<Vec<_>>>()?;
        for ((_, tensor), value) in adapter.state.iter().zip(&values) {
            tch::no_grad(|| tensor.shallow_clone().f_copy_(value))?;
        }
        self.transformer.write_token_rows()?;
        Ok(())
    }

    fn attach(&mut self, adapter: Adapter) -> Result<()> {
        let named = self.parameters.iter().map(|(name, t)| (name.clone(), t.detach())).collect();
        *self = Self {
            packing_isolation: self.packing_isolation,
            ..Self::assemble(self.config.clone(), named, Some(adapter))
        };
        self.transformer.write_token_rows()?;
        Ok(())
    }

    /// A parameter without what an adapter makes of it; of a tied head, the embedding.
    fn base_parameter(&self, name: &str) -> Tensor {
        let find = |name: &str| self.parameters.iter().find(|(known, _)| known == name).map(|(_, t)| t.detach());
        let embedding = || find(&format!("{}.weight", self.config.family.tensors.embedding));
        find(name).or_else(embedding).expect("every model has an embedding")
    }
}

/// The base model of an adapter's folder.
pub(crate) fn base_folder(folder: &Path) -> Result<PathBuf> {
    let missing = |found: String| ModelError::NoBaseModel { folder: folder.to_owned(), found };
    let name = file::base_model(folder)?.ok_or_else(|| missing("none".to_owned()))?;
    let is_model = |path: &PathBuf| path.join("config.json").is_file();
    let here = std::iter::once(PathBuf::from(&name)).filter(is_model);
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let found = here.chain(folder.ancestors().skip(1).map(|above| above.join(&name)).filter(is_model)).next();
    found.ok_or_else(|| missing(format!("`{name}`")))
}
