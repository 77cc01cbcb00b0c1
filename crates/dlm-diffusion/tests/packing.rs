//! Packing is exact: the loss, the gradients and the metrics of packed documents are those of the documents one by one.

mod common;

use common::{MASK, Toy};
use dlm_diffusion::{
    Accumulation, AutoregressivePart, CleanBatch, ForwardProcess, IGNORE_INDEX, LossNormalization, LossWeight,
    MaskPolicy, Masking, NoiseKey, NoiseSchedule, NoisedBatch, Objective, PackingIsolation, Purpose, ScheduleName,
    StepMetrics, TokenLoss, Views, Visibility, WeightRule, WindowCounts, diffusion_loss,
};
use proptest::prelude::*;
use tch::Tensor;

const NORMALIZATIONS: [LossNormalization; 4] =
    [LossNormalization::Token, LossNormalization::Masked, LossNormalization::Sequence, LossNormalization::Batch];

fn documents(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Document>> {
    let token = (1i64..MASK, any::<bool>(), 0.0f32..1.0);
    let document = (proptest::collection::vec(token, 1..6), 0.0f32..1.0).prop_map(|(tokens, t)| Document {
        ids: tokens.iter().map(|token| token.0).collect(),
        is_answer: tokens.iter().map(|token| token.1).collect(),
        uniform: tokens.iter().map(|token| token.2).collect(),
        t,
    });
    proptest::collection::vec(document, count)
}

fn process(schedule: ScheduleName, isolation: PackingIsolation) -> ForwardProcess {
    let schedule = NoiseSchedule::new(schedule, 1e-3).unwrap();
    ForwardProcess::new(schedule, MaskPolicy::new(MASK).sparing([1])).isolating(isolation)
}

fn noise(process: &ForwardProcess, rows: &[Vec<Document>], seq_len: usize) -> NoisedBatch {
    let (clean, t, uniform) = pack(rows, seq_len);
    process.noise(clean, &t, &uniform).unwrap()
}

/// Ways to noise a batch: weights, token losses, counts, pairs, blocks, annealing, autoregressive, hybrids.
const KINDS: usize = 14;

/// The views of a batch for one of them.
fn views(kind: usize, shifted: bool, rows: &[Vec<Document>], seq_len: usize) -> Vec<NoisedBatch> {
    let plain = process(ScheduleName::Linear, PackingIsolation::Document);
    let (clean, t, uniform) = pack(rows, seq_len);
    let key = NoiseKey::new(1, Purpose::Annealing, 5);
    let dropped = || clean.is_target().logical_not().logical_and(&clean.ids().remainder(2).eq(1));
    let process = match kind {
        4 | 6 => plain.masking(Masking::ExactCount),
        7 => plain.in_blocks(1, dlm_diffusion::LastBlock::Shorter).unwrap(),
        8 => plain.in_blocks(2, dlm_diffusion::LastBlock::Shorter).unwrap(),
        12 => plain.in_blocks(2, dlm_diffusion::LastBlock::Shorter).unwrap(),
        9 => plain.seen(Visibility::Annealed { share: 0.4, key }),
        _ => plain,
    };
    match kind {
        5 | 6 => process.noise_pair(clean, &t, &uniform).unwrap().into_iter().collect(),
        11..=13 => {
            let part = AutoregressivePart { weight: 0.7, logits_shift: shifted };
            let process = process.viewed(if kind == 13 { Views::Pair } else { Views::One }).beside(part).unwrap();
            process.noise_views(clean, &t, &uniform).unwrap()
        }
        10 => vec![process.autoregressive(clean, shifted).unwrap()],
        0 => {
            let dropped = dropped();
            vec![process.noise(clean.with_dropped(dropped).unwrap(), &t, &uniform).unwrap()]
        }
        _ => vec![process.noise(clean, &t, &uniform).unwrap()],
    }
}

/// Loss, gradient and merged metrics of one optimiser step.
fn step(denoiser: &Toy, window: &[NoisedBatch], objective: &Objective) -> (f64, Tensor, StepMetrics) {
    let counts: WindowCounts = window.iter().map(NoisedBatch::counts).sum();
    let (mut loss, mut metrics) = (0.0, StepMetrics::default());
    for batch in window {
        let output = diffusion_loss(denoiser, batch, objective, &counts).unwrap();
        output.loss.backward();
        loss += output.loss.double_value(&[]);
        metrics.merge(&output.metrics);
    }
    (loss, denoiser.take_gradient(), metrics)
}

fn assert_same_step(
    a: &(f64, Tensor, StepMetrics),
    b: &(f64, Tensor, StepMetrics),
    metrics: &[&str],
) -> Result<(), TestCaseError> {
    prop_assert!((a.0 - b.0).abs() <= 1e-5 * b.0.abs().max(1e-6), "losses {} and {}", a.0, b.0);
    let scale = b.1.abs().max().double_value(&[]).max(1e-6);
    let error = (&a.1 - &b.1).abs().max().double_value(&[]);
    prop_assert!(error <= 1e-5 * scale, "gradients differ by {error} of {scale}");
    let (a, b) = (a.2.named(), b.2.named());
    for name in metrics {
        let value = |named: &[(&str, f64)]| named.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
        let (a, b) = (value(&a), value(&b));
        prop_assert_eq!(a.is_some(), b.is_some(), "{}", name);
        let (a, b) = (a.unwrap_or(0.0), b.unwrap_or(0.0));
        prop_assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{name}: {a} and {b}");
    }
    Ok(())
}

/// A document with its answer and its noise.
#[derive(Debug, Clone)]
struct Document {
    ids: Vec<i64>,
    is_answer: Vec<bool>,
    uniform: Vec<f32>,
    t: f32,
}

/// Documents side by side in rows, padded at the end: the batch, `t` and `uniform` of each token.
fn pack(rows: &[Vec<Document>], seq_len: usize) -> (CleanBatch, Tensor, Tensor) {
    let (mut ids, mut labels, mut segments) = (Vec::new(), Vec::new(), Vec::new());
    let (mut t, mut uniform) = (Vec::new(), Vec::new());
    for (row, documents) in rows.iter().enumerate() {
        for (i, document) in documents.iter().enumerate() {
            ids.extend(&document.ids);
            let label = |(&id, &is_answer)| if is_answer { id } else { IGNORE_INDEX };
            labels.extend(document.ids.iter().zip(&document.is_answer).map(label));
            segments.extend(vec![i as i64 + 1; document.ids.len()]);
            t.extend(vec![document.t; document.ids.len()]);
            uniform.extend(&document.uniform);
        }
        let end = (row + 1) * seq_len;
        ids.resize(end, 0);
        labels.resize(end, IGNORE_INDEX);
        segments.resize(end, 0);
        t.resize(end, 0.5);
        uniform.resize(end, 0.0);
    }
    let whole = |values: &[i64]| Tensor::from_slice(values).view([rows.len() as i64, seq_len as i64]);
    let float = |values: &[f32]| Tensor::from_slice(values).view([rows.len() as i64, seq_len as i64]);
    let clean = CleanBatch::new(whole(&ids))
        .and_then(|batch| batch.with_labels(whole(&labels)))
        .and_then(|batch| batch.with_segments(whole(&segments)));
    (clean.expect("tensors of one shape"), float(&t), float(&uniform))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Trap 1, for every objective there is.
    #[test]
    fn every_objective_of_a_packed_batch_has_the_loss_and_the_gradient_of_its_documents_one_by_one(
        documents in documents(1..7), rows in 1usize..4, shifted: bool, kind in 0usize..KINDS,
        normalization in proptest::sample::select(&NORMALIZATIONS[..]),
    ) {
        let denoiser = Toy::new(5, shifted.then_some(PackingIsolation::Document));
        let mut objective = Objective::new(normalization).weighted(match kind {
            1 => WeightRule::from(LossWeight::Cart).with_cart_p(0.4),
            2 => WeightRule::elbo().capped(3.0).with_offset(0.01),
            _ => WeightRule::elbo(),
        });
        if kind == 3 {
            objective = objective.scoring(TokenLoss { label_smoothing: 0.1, z_loss: 0.01, forbidden: Some(MASK) });
        }
        let packed: Vec<Vec<Document>> = (0..rows).map(|row| documents.iter().skip(row).step_by(rows).cloned().collect()).collect();
        let longest = packed.iter().map(|row| row.iter().map(|document| document.ids.len()).sum::<usize>()).max().unwrap();
        let packed = step(&denoiser, &views(kind, shifted, &packed, longest + 1), &objective);
        let alone: Vec<NoisedBatch> = documents
            .iter()
            .flat_map(|document| views(kind, shifted, &[vec![document.clone()]], document.ids.len()))
            .collect();
        let alone = step(&denoiser, &alone, &objective);
        assert_same_step(&packed, &alone, &["accuracy", "num_masked_tokens", "ce_loss", "nelbo", "autoregressive_nll"])?;
    }

    /// Trap 1, for every schedule.
    #[test]
    fn a_packed_batch_has_the_loss_and_the_gradient_of_its_documents_one_by_one(
        documents in documents(1..7), rows in 1usize..4, shifted: bool,
        schedule in proptest::sample::select(&ScheduleName::ALL[..]),
        normalization in proptest::sample::select(&NORMALIZATIONS[..]),
        uniform_weight: bool,
    ) {
        let process = process(schedule, PackingIsolation::Document);
        let denoiser = Toy::new(5, shifted.then_some(PackingIsolation::Document));
        let weight = if uniform_weight { LossWeight::Uniform } else { LossWeight::Auto };
        let objective = Objective::new(normalization).weighted(weight);

        let packed: Vec<Vec<Document>> = (0..rows).map(|row| documents.iter().skip(row).step_by(rows).cloned().collect()).collect();
        let longest = packed.iter().map(|row| row.iter().map(|document| document.ids.len()).sum::<usize>()).max().unwrap();
        let packed = step(&denoiser, &[noise(&process, &packed, longest + 1)], &objective);

        let alone: Vec<NoisedBatch> =
            documents.iter().map(|document| noise(&process, &[vec![document.clone()]], document.ids.len())).collect();
        let alone = step(&denoiser, &alone, &objective);

        // Ratios to slots count padding, so they are no property of the documents.
        let metrics = ["loss", "accuracy", "num_masked_tokens", "avg_p_mask", "ce_loss", "importance_weight_avg", "avg_answer_length", "nelbo"];
        assert_same_step(&packed, &alone, &metrics)?;
    }

    /// Trap 6: normalised by the counts of the whole step.
    #[test]
    fn how_a_step_is_cut_into_micro_batches_changes_nothing(
        documents in documents(6..7), cut in 1usize..6, rows_are_units: bool,
        normalization in proptest::sample::select(&[LossNormalization::Slots, LossNormalization::Token, LossNormalization::Masked, LossNormalization::Sequence, LossNormalization::Batch][..]),
    ) {
        let isolation = if rows_are_units { PackingIsolation::Row } else { PackingIsolation::Document };
        let process = process(ScheduleName::Linear, isolation);
        let denoiser = Toy::new(6, Some(isolation));
        let objective = Objective::new(normalization);
        let rows: Vec<Vec<Document>> = documents.into_iter().map(|document| vec![document]).collect();
        let whole = [noise(&process, &rows, 6)];
        let parts = [noise(&process, &rows[..cut], 6), noise(&process, &rows[cut..], 6)];

        let counts: WindowCounts = parts.iter().map(NoisedBatch::counts).sum();
        prop_assert_eq!(WindowCounts { micro_batches: 1, ..counts }, whole[0].counts());
        let coefficients = parts.each_ref().map(|part| objective.coefficients(part, &counts));
        prop_assert_eq!(Tensor::cat(&coefficients, 0), objective.coefficients(&whole[0], &whole[0].counts()));

        let metrics = ["loss", "accuracy", "mask_ratio", "num_masked_tokens", "avg_p_mask", "ce_loss", "importance_weight_avg", "answer_ratio", "avg_answer_length", "nelbo"];
        assert_same_step(&step(&denoiser, &parts, &objective), &step(&denoiser, &whole, &objective), &metrics)?;
    }

    #[test]
    fn counted_by_micro_batch_a_step_is_the_mean_of_its_micro_batches(documents in documents(5..6), cut in 1usize..5) {
        let process = process(ScheduleName::Linear, PackingIsolation::Row);
        let denoiser = Toy::new(7, None);
        let objective = Objective::new(LossNormalization::Sequence).accumulated(Accumulation::MicroBatch);
        let rows: Vec<Vec<Document>> = documents.into_iter().map(|document| vec![document]).collect();
        let parts = || [noise(&process, &rows[..cut], 6), noise(&process, &rows[cut..], 6)];
        let together = step(&denoiser, &parts(), &objective);
        let alone = parts().map(|part| step(&denoiser, &[part], &objective));
        prop_assert!((together.0 - (alone[0].0 + alone[1].0) / 2.0).abs() <= 1e-5 * together.0.abs());
        for (name, value) in together.2.named() {
            let of = |step: &(f64, Tensor, StepMetrics)| step.2.named().into_iter().find(|(known, _)| *known == name).map(|(_, value)| value);
            let values: Vec<f64> = alone.iter().filter_map(of).collect();
            let expected = values.iter().sum::<f64>() / if name == "num_masked_tokens" { 1.0 } else { values.len() as f64 };
            prop_assert!((value - expected).abs() <= 1e-5 * expected.abs().max(1e-6), "{name}: {value} and {expected}");
        }
    }
}

#[test]
fn what_row_isolation_shares_between_documents_shows_in_the_loss() {
    let document = |id| Document { ids: vec![id; 4], is_answer: vec![true; 4], uniform: vec![0.1; 4], t: 0.5 };
    let rows = [vec![document(3), document(7)]];
    let loss = |isolation, shift| {
        let batch = noise(&process(ScheduleName::Linear, isolation), &rows, 8);
        step(&Toy::new(8, Some(shift)), &[batch], &Objective::new(LossNormalization::Token)).0
    };
    let exact = loss(PackingIsolation::Document, PackingIsolation::Document);
    let across_borders = loss(PackingIsolation::Document, PackingIsolation::Row);
    let positions_run_on = loss(PackingIsolation::Row, PackingIsolation::Document);
    assert!((exact - across_borders).abs() > 1e-3 * exact, "the shift");
    assert!((exact - positions_run_on).abs() > 1e-3 * exact, "the positions");
}
