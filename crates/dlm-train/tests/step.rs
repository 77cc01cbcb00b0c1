//! What one optimiser step promises, whatever the denoiser.

use dlm_data::{Batch, Document};
use dlm_diffusion::{Accumulation, AutoregressivePart, LossNormalization, PackingIsolation};
use dlm_model::{LoadOptions, Model, ModelConfig};
use dlm_train::{
    AdamW, KeyedNoise, MemoryRows, NoisedWindow, ObjectiveConfig, OptimizerConfig, RowSource, optimizer_step,
};
use std::path::Path;
use tch::{Device, Kind, Tensor};

const MASK: i64 = 31;

fn model() -> Model {
    let json = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "vocab_size": 32, "rms_norm_eps": 1e-5, "tie_word_embeddings": false}"#;
    let config = ModelConfig::from_json(serde_json::from_str(json).unwrap(), Path::new("config.json")).unwrap();
    let mut model = Model::from_config(config, 3, &LoadOptions::default()).unwrap();
    model.train(true);
    model
}

/// Two fine-tuning documents and two texts, of different lengths.
fn documents() -> Vec<(Vec<i32>, Vec<i32>)> {
    let document = |first: i32, len: i32, n_prompt: usize| {
        let ids: Vec<i32> = (0..len).map(|i| (first + 3 * i) % 30).collect();
        let labels = ids.iter().enumerate().map(|(i, &id)| if i < n_prompt { -100 } else { id }).collect();
        (ids, labels)
    };
    vec![document(1, 16, 0), document(5, 9, 4), document(7, 12, 6), document(2, 5, 0)]
}

fn gradients(batches: &[Batch], objective: &ObjectiveConfig) -> (f64, Vec<Tensor>) {
    let model = model();
    let noise = KeyedNoise::training(11, objective.timesteps);
    let window = NoisedWindow::new(batches, 0, &objective.process().unwrap(), &noise).unwrap();
    let metrics = window.score(&model, Device::Cpu, &objective.loss(), 1).unwrap();
    let (sum, count) = metrics.iter().fold((0.0, 0.0), |(s, c), m| (s + m.loss.sum, c + m.loss.count));
    (sum / count, model.named_parameters().iter().map(|(_, parameter)| parameter.grad()).collect())
}

fn expect_equal(a: &(f64, Vec<Tensor>), b: &(f64, Vec<Tensor>), what: &str) {
    assert!((a.0 - b.0).abs() < 1e-5, "{what}: loss {} and {}", a.0, b.0);
    for (a, b) in a.1.iter().zip(&b.1) {
        let error = (a - b).abs().max().double_value(&[]);
        assert!(error < 1e-6, "{what}: gradients differ by {error:e}");
    }
}

const NORMALIZATIONS: [LossNormalization; 5] = [
    LossNormalization::Token,
    LossNormalization::Masked,
    LossNormalization::Sequence,
    LossNormalization::Batch,
    LossNormalization::Slots,
];

#[test]
fn one_micro_batch_of_four_rows_and_four_of_one_have_the_same_gradient() {
    let rows = MemoryRows::new(16, &documents()).unwrap();
    let split = |micro_batch_size: usize| -> Vec<Batch> {
        let micro_batches_per_window = 4 / micro_batch_size;
        let config =
            dlm_data::ReaderConfig { micro_batch_size, micro_batches_per_window, shuffle: false, ..Default::default() };
        rows.windows(&config, dlm_data::Cursor::default()).unwrap().next_window().unwrap().micro_batches
    };
    for loss_normalization in NORMALIZATIONS {
        let objective = ObjectiveConfig { loss_normalization, ..ObjectiveConfig::new(MASK) };
        let [one, two, four] = [4, 2, 1].map(|size| gradients(&split(size), &objective));
        expect_equal(&one, &four, &format!("{loss_normalization:?}"));
        expect_equal(&one, &two, &format!("{loss_normalization:?}"));
    }
    // Averaging micro-batches is something else, which is why it has a name of its own.
    let mut objective = ObjectiveConfig { loss_normalization: LossNormalization::Token, ..ObjectiveConfig::new(MASK) };
    objective.accumulation = Accumulation::MicroBatch;
    let (one, four) = (gradients(&split(4), &objective), gradients(&split(1), &objective));
    assert!((one.0 - four.0).abs() > 1e-3);
}

/// All documents side by side in one row.
fn packed() -> Batch {
    let mut batch = Batch { rows: 1, seq_len: 48, ..Batch::default() };
    for (index, (ids, labels)) in documents().into_iter().enumerate() {
        let (start, len, segment) = (batch.ids.len(), ids.len(), index as i32 + 1);
        let (id, ordinal) = (index as i64, index as u64);
        batch.documents.push(Document { row: 0, segment, start, len, id, offset: 0, occurrence: 0, ordinal });
        batch.segment_ids.extend(vec![segment; len]);
        batch.position_ids.extend(0..len as i32);
        batch.ids.extend(ids);
        batch.labels.extend(labels);
    }
    let padding = 48 - batch.ids.len();
    batch.ids.extend(vec![0; padding]);
    batch.labels.extend(vec![-100; padding]);
    batch.segment_ids.extend(vec![0; padding]);
    batch.position_ids.extend(vec![0; padding]);
    batch
}

#[test]
fn a_packed_row_has_the_gradient_of_its_documents_one_by_one() {
    let rows = MemoryRows::new(16, &documents()).unwrap();
    let config = dlm_data::ReaderConfig { micro_batch_size: 4, shuffle: false, ..Default::default() };
    let apart = rows.windows(&config, dlm_data::Cursor::default()).unwrap().next_window().unwrap().micro_batches;
    // Slots count padding, of which packing leaves another amount.
    for loss_normalization in NORMALIZATIONS.into_iter().filter(|other| *other != LossNormalization::Slots) {
        let objective = ObjectiveConfig { loss_normalization, ..ObjectiveConfig::new(MASK) };
        assert_eq!(objective.packing_isolation, PackingIsolation::Document);
        let part = AutoregressivePart { weight: 0.5, logits_shift: true };
        let hybrid = ObjectiveConfig { autoregressive_part: Some(part), ..objective.clone() };
        for objective in [objective, hybrid] {
            let (apart, packed) = (gradients(&apart, &objective), gradients(&[packed()], &objective));
            expect_equal(&apart, &packed, &format!("{loss_normalization:?} {:?}", objective.autoregressive_part));
        }
    }
}

#[test]
fn a_step_in_which_nothing_is_masked_only_decays_and_stays_finite() {
    let model = model();
    let config = OptimizerConfig { weight_decay: 0.5, ..OptimizerConfig::default() };
    let mut optimizer = AdamW::new(model.named_parameters(), &config);
    let all_spared: Vec<i64> = (0..30).collect();
    let objective = ObjectiveConfig { never_mask: all_spared, ..ObjectiveConfig::new(MASK) };
    let noise = KeyedNoise::training(1, objective.timesteps);
    let before: Vec<Tensor> = model.named_parameters().iter().map(|(_, p)| p.detach().copy()).collect();
    let padding = Batch { segment_ids: vec![0; 48], documents: Vec::new(), ..packed() };
    for batches in [vec![packed()], vec![padding.clone(), packed()], vec![padding]] {
        let window = NoisedWindow::new(&batches, 0, &objective.process().unwrap(), &noise).unwrap();
        let report = optimizer_step(&model, Device::Cpu, &mut optimizer, &window, &objective.loss(), 0.1, 1).unwrap();
        assert_eq!(report.grad_norm, 0.0);
    }
    for ((name, parameter), before) in model.named_parameters().iter().zip(before) {
        let decay = if parameter.dim() == 2 { 0.95f64.powi(3) } else { 1.0 };
        let error = (parameter - before * decay).abs().max().double_value(&[]);
        assert!(error < 1e-6, "{name}: {error:e}");
    }
}

#[test]
fn a_closure_with_named_parameters_is_trained_as_well() {
    // Scores that do not depend on the input: the best they can learn is how frequent each token is.
    let scores = Tensor::zeros([32], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let parameters = vec![("scores".to_owned(), scores.shallow_clone())];
    let denoiser = |ids: &Tensor| scores.expand([ids.size()[0], ids.size()[1], 32], false);
    let mut optimizer = AdamW::new(&parameters, &OptimizerConfig::default());
    let rows = MemoryRows::of_texts(8, &[vec![7; 8]]).unwrap();
    let objective = ObjectiveConfig::new(MASK);
    let noise = KeyedNoise::training(1, objective.timesteps);
    for epoch in 0..100 {
        let window = NoisedWindow::new(&[rows.row(0).unwrap()], epoch, &objective.process().unwrap(), &noise).unwrap();
        optimizer_step(&denoiser, Device::Cpu, &mut optimizer, &window, &objective.loss(), 0.1, epoch + 1).unwrap();
    }
    assert!(scores.softmax(0, Kind::Float).double_value(&[7]) > 0.95);
}
