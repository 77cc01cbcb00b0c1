//! Golden batches and their recorded noise, in the form in which training takes them.

#![allow(dead_code, reason = "each test file uses its own part")]

use dlm_data::{Batch, Document};
use dlm_model::{LoadOptions, Model};
use dlm_train::{NoiseSource, ObjectiveConfig};
use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
};
use tch::{Kind, Tensor};

/// Noise that was drawn elsewhere: a timestep for each row, a uniform for each slot.
#[derive(Debug, Default)]
pub(crate) struct RecordedNoise {
    documents: HashMap<i64, (f32, Vec<f32>)>,
}

impl RecordedNoise {
    /// Takes what was recorded for the documents of `batch`.
    pub(crate) fn record(&mut self, batch: &Batch, t: &Tensor, uniform: &Tensor) {
        let t = Vec::<f32>::try_from(t).unwrap();
        let uniform = Vec::<f32>::try_from(uniform.flatten(0, 1)).unwrap();
        for document in &batch.documents {
            let start = document.row * batch.seq_len + document.start;
            let draws = uniform[start..start + document.len].to_vec();
            self.documents.insert(document.id, (t[document.row], draws));
        }
    }
}

impl NoiseSource for RecordedNoise {
    fn timestep(&self, _epoch: u64, document: &Document) -> f32 {
        self.documents[&document.id].0
    }

    fn uniforms(&self, _epoch: u64, document: &Document) -> Vec<f32> {
        self.documents[&document.id].1.clone()
    }
}

/// A batch of ids and an attention mask that is binary or holds segment ids; without labels every token is a target.
///
/// Documents are runs of one segment; they are numbered from `first_document`.
pub(crate) fn batch(ids: &Tensor, attention_mask: &Tensor, labels: Option<&Tensor>, first_document: i64) -> Batch {
    let (rows, seq_len) = ids.size2().unwrap();
    let numbers = |tensor: &Tensor| -> Vec<i32> { Vec::try_from(tensor.to_kind(Kind::Int).flatten(0, 1)).unwrap() };
    let (ids, segment_ids) = (numbers(ids), numbers(attention_mask));
    let labels = labels.map_or_else(|| ids.clone(), numbers);
    let (rows, seq_len) = (rows as usize, seq_len as usize);
    let mut documents = Vec::new();
    let mut position_ids = Vec::new();
    for row in 0..rows {
        let mut start = 0;
        for run in segment_ids[row * seq_len..][..seq_len].chunk_by(|a, b| a == b) {
            position_ids.extend(0..run.len() as i32);
            if run[0] > 0 {
                let (id, ordinal) = (first_document + documents.len() as i64, documents.len() as u64);
                let (segment, len) = (run[0], run.len());
                documents.push(Document { row, segment, start, len, id, offset: 0, occurrence: 0, ordinal });
            }
            start += run.len();
        }
    }
    Batch { rows, seq_len, ids, labels, segment_ids, position_ids, documents }
}

/// Axolotl's loss: what its labels and its `importance_weighting` make of it.
pub(crate) fn axolotl_objective(
    mask_token_id: i64,
    never_mask: Vec<i64>,
    eps: f64,
    importance_weighting: bool,
    has_labels: bool,
) -> ObjectiveConfig {
    use dlm_diffusion::{Accumulation, LossNormalization, LossWeight, PackingIsolation};
    ObjectiveConfig {
        eps,
        loss_weight: if importance_weighting { LossWeight::InverseP } else { LossWeight::Uniform },
        loss_normalization: match (has_labels, importance_weighting) {
            (true, _) => LossNormalization::Sequence,
            (false, true) => LossNormalization::Slots,
            (false, false) => LossNormalization::Masked,
        },
        accumulation: Accumulation::MicroBatch,
        packing_isolation: PackingIsolation::Row,
        never_mask,
        ..ObjectiveConfig::new(mask_token_id)
    }
}

/// A golden model, ready to be trained; `None` when its family is none that is implemented.
pub(crate) fn model(folder: &std::path::Path) -> Option<Model> {
    let mut model = match Model::load(folder, &LoadOptions::default()) {
        Err(dlm_model::ModelError::UnknownFamily { .. }) => return None,
        other => other.unwrap_or_else(|error| panic!("{}: {error}", folder.display())),
    };
    model.set_packing_isolation(dlm_diffusion::PackingIsolation::Row);
    model.train(true);
    Some(model)
}

/// The golden models whose parameters are named and shaped like these.
pub(crate) fn models_shaped_like(parameters: &BTreeMap<String, Vec<i64>>) -> Vec<(PathBuf, Model)> {
    let folder = dlm_golden::folder().join("models");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    let is_model = |path: &PathBuf| path.join("config.json").is_file();
    let loaded = folders.into_iter().filter(is_model).filter_map(|path| Some((path.clone(), model(&path)?)));
    let shapes = |model: &Model| -> BTreeMap<String, Vec<i64>> {
        model.named_parameters().iter().map(|(name, tensor)| (name.clone(), tensor.size())).collect()
    };
    loaded.filter(|(_, model)| &shapes(model) == parameters).collect()
}
