//! What a model computes: packing, positions, the shift, wanted tokens, precision, and the inputs it refuses.

mod common;

use common::{assert_same_parameters, config_with, model_with};
use dlm_diffusion::{AttentionLayout, Denoiser, DenoiserInput, DiffusionError, Visibility, segment_positions};
use dlm_golden::assert_close;
use dlm_model::{DiffusionInfo, LoadOptions, Model, ModelError, PackingIsolation};
use proptest::prelude::*;
use serde_json::json;
use tch::{Device, Kind, Tensor};

fn shifting(logits_shift: bool) -> Model {
    let mut model = model_with(&[]);
    model.set_diffusion(DiffusionInfo::new(49, logits_shift)).unwrap();
    model
}

fn ids(rows: &[&[i64]]) -> Tensor {
    Tensor::from_slice(&rows.concat()).view([rows.len() as i64, -1])
}

fn states(model: &Model, ids: &Tensor, layout: &AttentionLayout) -> Tensor {
    model.hidden_states(&DenoiserInput::new(ids, layout)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_packed_row_is_its_documents_side_by_side(
        lens in proptest::collection::vec(1usize..7, 1..4), padding in 0usize..3, shift: bool, seed in 0i64..1000,
    ) {
        let model = shifting(shift);
        let documents: Vec<Vec<i64>> =
            lens.iter().enumerate().map(|(i, &len)| (0..len as i64).map(|j| (seed + 7 * i as i64 + 11 * j) % 50).collect()).collect();
        let mut row = documents.concat();
        let mut segments: Vec<i64> = lens.iter().enumerate().flat_map(|(i, &len)| vec![i as i64 + 1; len]).collect();
        let real = row.len() as i64;
        row.extend(vec![0; padding]);
        segments.extend(vec![0; padding]);
        let (row, segments) = (ids(&[&row]), ids(&[&segments]));
        let layout = AttentionLayout::segments(&segments).unwrap();
        let positions = segment_positions(&segments);
        let packed = model.hidden_states(&DenoiserInput::new(&row, &layout).with_positions(&positions)).unwrap();
        let apart: Vec<_> = documents.iter().map(|one| states(&model, &ids(&[one]), &AttentionLayout::full())).collect();
        assert_close("states", &packed.narrow(0, 0, real), &Tensor::cat(&apart, 0), 1e-5, 1e-5);
        prop_assert!(packed.isfinite().all().int64_value(&[]) == 1, "padding is not finite");
    }
}

#[test]
fn documents_that_outgrow_the_first_length_are_scaled_the_same_packed_as_alone() {
    let ones = json!([1, 1, 1, 1]);
    let longrope = json!({
        "rope_type": "longrope", "short_factor": ones, "long_factor": [1, 2, 4, 8], "original_max_position_embeddings": 8,
    });
    for (len, scaling) in [(8, json!({ "rope_type": "dynamic", "factor": 4.0 })), (32, longrope)] {
        let mut model = model_with(&[("max_position_embeddings", json!(len)), ("rope_scaling", scaling)]);
        model.set_diffusion(DiffusionInfo::new(49, false)).unwrap();
        let (long, short): (Vec<i64>, Vec<i64>) = ((1..13).collect(), (20..25).collect());
        let alone = [&long, &short].map(|row| states(&model, &ids(&[row]), &AttentionLayout::full()));
        let row = |a: i64, b: i64| ids(&[&[vec![a; long.len()], vec![b; short.len()]].concat()]);
        let positions: Vec<i64> = (0..long.len() as i64).chain(0..short.len() as i64).collect();
        let (packed, positions) = (ids(&[&[long.clone(), short.clone()].concat()]), ids(&[&positions]));
        let layout = AttentionLayout::segments(&row(1, 2)).unwrap();
        let input = DenoiserInput::new(&packed, &layout).with_positions(&positions);
        assert_close("packed", &model.hidden_states(&input).unwrap(), &Tensor::cat(&alone, 0), 1e-5, 1e-5);
    }
}

#[test]
fn positions_that_restart_give_other_states_than_positions_that_run_on() {
    let model = shifting(false);
    let (row, segments) = (ids(&[&[1, 2, 3, 1, 2, 3]]), ids(&[&[1, 1, 1, 2, 2, 2]]));
    let layout = AttentionLayout::segments(&segments).unwrap();
    let restarted = segment_positions(&segments);
    let restarted = model.hidden_states(&DenoiserInput::new(&row, &layout).with_positions(&restarted)).unwrap();
    assert_close("equal documents", &restarted.narrow(0, 0, 3), &restarted.narrow(0, 3, 3), 1e-5, 1e-5);
    // Rotary positions are relative: within a document it does not matter where it begins, as long as they count on.
    assert_close("positions that run on", &states(&model, &row, &layout), &restarted, 1e-4, 1e-4);
    let reversed = ids(&[&[2, 1, 0, 2, 1, 0]]);
    let reversed = model.hidden_states(&DenoiserInput::new(&row, &layout).with_positions(&reversed)).unwrap();
    assert!((reversed - restarted).abs().max().double_value(&[]) > 1e-2);
}

#[test]
fn the_shift_gives_each_token_the_state_before_it_and_stops_at_borders_unless_told_not_to() {
    let (plain, mut shifted) = (shifting(false), shifting(true));
    let (row, segments) = (ids(&[&[5, 6, 7, 8], &[1, 2, 3, 4]]), ids(&[&[1, 1, 2, 2], &[1, 1, 1, 1]]));
    let layout = AttentionLayout::segments(&segments).unwrap();
    let unshifted = states(&plain, &row, &layout);
    let expected = |places: &[i64]| unshifted.index_select(0, &Tensor::from_slice(places));
    assert_close("document", &states(&shifted, &row, &layout), &expected(&[0, 0, 2, 2, 4, 4, 5, 6]), 1e-6, 1e-6);
    shifted.set_packing_isolation(PackingIsolation::Row);
    assert_close("row", &states(&shifted, &row, &layout), &expected(&[0, 0, 1, 2, 4, 4, 5, 6]), 1e-6, 1e-6);
    let wanted = Tensor::from_slice(&[6i64, 2, 2]);
    let found = shifted.hidden_states(&DenoiserInput::new(&row, &layout).at(&wanted)).unwrap();
    assert_close("wanted", &found, &expected(&[5, 1, 1]), 1e-6, 1e-6);
}

#[test]
fn wanted_states_are_those_of_all_states_and_none_wanted_gives_none() {
    for shift in [false, true] {
        let mut model = shifting(shift);
        let (rows, layout) = (ids(&[&[5, 6, 7], &[1, 2, 3]]), AttentionLayout::full());
        let all = states(&model, &rows, &layout);
        let wanted = Tensor::from_slice(&[4i64, 0, 5]);
        let found = model.hidden_states(&DenoiserInput::new(&rows, &layout).at(&wanted)).unwrap();
        assert_close("wanted", &found, &all.index_select(0, &wanted), 1e-6, 1e-6);

        model.train(true);
        let none = Tensor::zeros([0], (Kind::Int64, Device::Cpu));
        let found = model.hidden_states(&DenoiserInput::new(&rows, &layout).at(&none)).unwrap();
        assert_eq!(found.size(), [0, 32]);
        let weights = Tensor::zeros([0], (Kind::Float, Device::Cpu));
        let scores = model.head().weighted_nll(&found, &none, &weights).unwrap();
        assert_eq!(scores.weighted_sum.double_value(&[]), 0.0);
        scores.weighted_sum.backward();
        for (name, parameter) in model.named_parameters() {
            assert!(parameter.grad().defined(), "{name} has no gradient");
            assert_eq!(parameter.grad().abs().max().double_value(&[]), 0.0, "{name}");
        }
    }
}

#[test]
fn the_head_scores_targets_as_its_logits_do() {
    let mut model = shifting(false);
    model.train(true);
    let (rows, layout) = (ids(&[&[5, 6, 7, 8]]), AttentionLayout::full());
    let (targets, weights) = (Tensor::from_slice(&[1i64, 2, 3, 49]), Tensor::from_slice(&[0.5f32, 1.0, 2.0, 0.0]));
    let found = states(&model, &rows, &layout);
    let scores = model.head().weighted_nll(&found, &targets, &weights).unwrap();
    let logits = model.head().logits(&found).unwrap();
    let nll = logits.cross_entropy_loss::<Tensor>(&targets, None, tch::Reduction::None, -100, 0.0);
    assert_close("nll", &scores.nll, &nll, 1e-5, 1e-5);
    assert_close("sum", &scores.weighted_sum, &(&nll * &weights).sum(Kind::Float), 1e-5, 1e-5);
    assert_eq!(scores.argmax, logits.argmax(1, false));
}

#[test]
fn one_segment_without_padding_is_full_attention() {
    let model = shifting(false);
    let rows = ids(&[&[5, 6, 7, 8], &[1, 2, 3, 4]]);
    let layout = AttentionLayout::segments(&ids(&[&[1, 1, 1, 1], &[3, 3, 3, 3]])).unwrap();
    assert_eq!(states(&model, &rows, &layout), states(&model, &rows, &AttentionLayout::full()));
}

#[test]
fn the_causal_state_of_a_token_does_not_depend_on_later_ones() {
    let model = shifting(false);
    let layout = AttentionLayout::causal();
    let one = states(&model, &ids(&[&[5, 6, 7, 8]]), &layout);
    let other = states(&model, &ids(&[&[5, 6, 9, 9]]), &layout);
    assert_close("before", &one.narrow(0, 0, 2), &other.narrow(0, 0, 2), 1e-6, 1e-6);
    assert!((one - other).abs().max().double_value(&[]) > 1e-2);
}

#[test]
fn a_window_hides_old_keys_from_causal_queries_and_none_from_bidirectional_ones() {
    let names = [("architectures", json!(["MistralForCausalLM"])), ("model_type", json!("mistral"))];
    let with = |window: serde_json::Value| {
        let unshifted = ("diffusion", json!({ "mask_token_id": 49, "logits_shift": false }));
        let own = [("sliding_window", window), ("num_hidden_layers", json!(1)), unshifted];
        let changes = [names.as_slice(), &own].concat();
        model_with(&changes)
    };
    let (windowed, plain) = (with(json!(3)), with(serde_json::Value::Null));
    let (one, other) = (ids(&[&[5, 6, 7, 8, 9, 1]]), ids(&[&[4, 6, 7, 8, 9, 1]]));
    let causal = AttentionLayout::causal();
    let difference =
        |model: &Model, layout| (states(model, &one, layout) - states(model, &other, layout)).abs().amax(1, false);
    // Token 0 is seen by itself and by the two after it.
    let seen: Vec<f32> = difference(&windowed, &causal).try_into().unwrap();
    assert!(seen[..3].iter().all(|&d| d > 1e-4) && seen[3..].iter().all(|&d| d == 0.0), "{seen:?}");
    assert!(difference(&plain, &causal).min().double_value(&[]) > 1e-5);
    let full = AttentionLayout::full();
    assert_eq!(states(&windowed, &one, &full), states(&plain, &one, &full));
    // A row no longer than the window does not notice it.
    let short = ids(&[&[5, 6, 7]]);
    assert_eq!(states(&windowed, &short, &causal), states(&plain, &short, &causal));
    // A window within segments.
    let layout = AttentionLayout::segments(&ids(&[&[1, 1, 2, 2, 2, 2]])).unwrap().with_visibility(Visibility::Causal);
    let second = states(&windowed, &one, &layout).narrow(0, 2, 4);
    let alone = states(&windowed, &ids(&[&[7, 8, 9, 1]]), &causal);
    assert_close("segment", &second, &alone, 1e-4, 1e-4);
}

#[test]
fn full_precision_rotation_changes_bfloat16_states_only() {
    let folder = dlm_golden::model("llada");
    let rows = Tensor::arange(64, (Kind::Int64, Device::Cpu)).unsqueeze(0);
    let of = |full: bool, kind| {
        let copy = tempfile::tempdir().unwrap();
        let mut config = dlm_golden::json(&folder.join("config.json"));
        config["rope_full_precision"] = json!(full);
        std::fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
        std::fs::copy(folder.join("model.safetensors"), copy.path().join("model.safetensors")).unwrap();
        let model = Model::load(copy.path(), &LoadOptions { device: Device::Cpu, kind }).unwrap();
        states(&model, &rows, &AttentionLayout::full())
    };
    assert_eq!(of(true, Kind::Float), of(false, Kind::Float));
    assert_ne!(of(true, Kind::BFloat16), of(false, Kind::BFloat16));
    assert_eq!(of(true, Kind::BFloat16).kind(), Kind::BFloat16);
}

#[test]
fn bfloat16_states_are_close_to_those_in_float32() {
    let folder = common::Folder::with(&[]);
    let load = |kind| Model::load(folder.path(), &LoadOptions { device: Device::Cpu, kind }).unwrap();
    let (exact, short) = (load(Kind::Float), load(Kind::BFloat16));
    let rows = ids(&[&[5, 6, 7, 8, 9, 0], &[1, 2, 3, 4, 5, 6]]);
    let layout = AttentionLayout::segments(&ids(&[&[1, 1, 2, 2, 2, 0], &[1, 1, 1, 1, 1, 1]])).unwrap();
    let real = Tensor::from_slice(&[0i64, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]);
    let of = |model: &Model| model.hidden_states(&DenoiserInput::new(&rows, &layout).at(&real)).unwrap();
    assert_eq!(of(&short).kind(), Kind::BFloat16);
    assert_close("states", &of(&short), &of(&exact), 0.1, 0.05);
}

#[test]
fn inputs_that_do_not_fit_are_refused_with_their_numbers() {
    let model = shifting(false);
    let layout = AttentionLayout::full();
    let ask = |ids: &Tensor| model.hidden_states(&DenoiserInput::new(ids, &layout)).unwrap_err();
    assert!(matches!(
        ask(&ids(&[&[1, 2, 3], &[4, 50, 51]])),
        DiffusionError::IdBeyondVocabulary { id: 50, row: 1, position: 1, vocab_size: 50 }
    ));
    assert!(matches!(ask(&ids(&[&[1, -1]])), DiffusionError::IdBeyondVocabulary { id: -1, row: 0, position: 1, .. }));
    assert!(matches!(ask(&Tensor::from_slice(&[1i64])), DiffusionError::ShapeMismatch { name: "ids", .. }));
    let floats = Tensor::zeros([1, 2], (Kind::Float, Device::Cpu));
    assert!(matches!(ask(&floats), DiffusionError::KindMismatch { name: "ids", found: Kind::Float, .. }));

    let long = Tensor::zeros([1, 65], (Kind::Int64, Device::Cpu));
    let error = ask(&long);
    assert_eq!(
        error.to_string(),
        "the denoiser failed: a row of 65 tokens is longer than the 64 positions of the model"
    );
    // Packed documents may fill a longer row, as long as each of them fits.
    let positions = Tensor::arange(65, (Kind::Int64, Device::Cpu)).unsqueeze(0);
    let folded = positions.remainder(33);
    assert!(model.hidden_states(&DenoiserInput::new(&long, &layout).with_positions(&folded)).is_ok());
    let error = model.hidden_states(&DenoiserInput::new(&long, &layout).with_positions(&positions)).unwrap_err();
    assert!(error.to_string().contains("position 64 is not one of the 64 positions"), "{error}");

    let two = ids(&[&[1, 2]]);
    let three = AttentionLayout::segments(&ids(&[&[1, 1, 1]])).unwrap();
    let error = model.hidden_states(&DenoiserInput::new(&two, &three)).unwrap_err();
    assert!(matches!(error, DiffusionError::ShapeMismatch { name: "segment_ids", .. }));
    let beyond = Tensor::from_slice(&[2i64]);
    assert!(model.hidden_states(&DenoiserInput::new(&two, &layout).at(&beyond)).is_err());
    let nothing = Tensor::zeros([0, 4], (Kind::Int64, Device::Cpu));
    assert_eq!(states(&model, &nothing, &layout).size(), [0, 32]);
}

#[test]
fn a_grown_vocabulary_begins_at_the_mean_and_never_shrinks() {
    for tied in [false, true] {
        let mut model = model_with(&[("tie_word_embeddings", json!(tied))]);
        model.train(true);
        let before = model.named_parameters()[0].1.copy().detach();
        model.set_packing_isolation(PackingIsolation::Row);
        model.grow_vocabulary(52).unwrap();
        model.grow_vocabulary(10).unwrap();
        assert_eq!((model.vocab_size(), model.config().vocab_size), (52, 52));
        assert!(model.is_trainable());
        let after = &model.named_parameters()[0].1;
        assert_eq!(after.narrow(0, 0, 50), before);
        let mean = before.mean_dim([0i64].as_slice(), true, Kind::Float).expand([2, -1], false);
        assert_close("new rows", &after.narrow(0, 50, 2), &mean, 1e-6, 1e-6);
        let found = states(&model, &ids(&[&[51, 1]]), &AttentionLayout::full());
        assert_eq!(model.head().logits(&found).unwrap().size(), [2, 52]);
        model.set_diffusion(DiffusionInfo::new(51, false)).unwrap();
        assert_eq!(model.mask_token_id(), Some(51));
        let refused = model.set_diffusion(DiffusionInfo::new(52, false));
        assert!(matches!(refused, Err(ModelError::MaskTokenOutOfRange { mask_token_id: 52, vocab_size: 52 })));

        let folder = tempfile::tempdir().unwrap();
        model.save(folder.path(), Kind::Float, &[]).unwrap();
        assert_same_parameters(&Model::load(folder.path(), &LoadOptions::default()).unwrap(), &model);
    }
}

#[test]
fn a_model_from_scratch_follows_from_its_seed_and_the_reference_rules() {
    let changes = [("pad_token_id", json!(3)), ("attention_bias", json!(true)), ("initializer_range", json!(0.5))];
    let config = config_with(&changes).unwrap();
    let make = |seed| Model::from_config(config.clone(), seed, &LoadOptions::default()).unwrap();
    let model = make(1);
    assert_same_parameters(&make(1), &model);
    assert!(make(2).named_parameters()[0].1 != model.named_parameters()[0].1);
    assert!(!model.is_trainable());
    let expected = 50 * 32 * 2 + 32 + 2 * (2 * 32 + 32 * 32 * 2 + 16 * 32 * 2 + 32 * 2 + 16 * 2 + 48 * 32 * 3);
    assert_eq!(model.parameter_count(), expected);
    for (name, tensor) in model.named_parameters() {
        let (low, high) = tensor.aminmax(None, false);
        match name {
            _ if name.contains("norm") => assert_eq!((low.double_value(&[]), high.double_value(&[])), (1.0, 1.0)),
            _ if name.ends_with(".bias") => assert_eq!((low.double_value(&[]), high.double_value(&[])), (0.0, 0.0)),
            _ => assert!((tensor.std(true).double_value(&[]) - 0.5).abs() < 0.06, "{name}"),
        }
    }
    let embedding = &model.named_parameters()[0].1;
    assert_eq!(embedding.get(3).abs().max().double_value(&[]), 0.0);
}

#[test]
fn the_lookup_of_the_padding_token_trains_nothing() {
    let mut model = model_with(&[("pad_token_id", json!(3))]);
    model.train(true);
    states(&model, &ids(&[&[3, 4]]), &AttentionLayout::full()).square().sum(Kind::Float).backward();
    let grad = model.named_parameters()[0].1.grad();
    let largest = |row: i64| grad.get(row).abs().max().double_value(&[]);
    assert!(largest(3) == 0.0 && largest(4) > 0.0);
}

#[test]
fn inference_in_float32_goes_by_the_operators_of_other_programs_to_the_bit() {
    let mut model = model_with(&[]);
    let ids = Tensor::arange(40, (Kind::Int64, Device::Cpu)).view([2, 20]);
    for layout in [AttentionLayout::full(), AttentionLayout::causal()] {
        model.train(true);
        let fast = states(&model, &ids, &layout).detach();
        let plain = dlm_torch::with_plain_operators(|| states(&model, &ids, &layout)).detach();
        model.train(false);
        assert_eq!(states(&model, &ids, &layout), plain);
        assert_ne!(fast, plain);
        assert_close("states", &fast, &plain, 1e-5, 1e-5);
    }
}

#[test]
fn inference_keeps_no_graph() {
    let mut model = shifting(false);
    let rows = ids(&[&[1, 2]]);
    assert!(!states(&model, &rows, &AttentionLayout::full()).requires_grad());
    model.train(true);
    assert!(states(&model, &rows, &AttentionLayout::full()).requires_grad());
    model.train(false);
    assert!(!states(&model, &rows, &AttentionLayout::full()).requires_grad());
}
