//! Inference in half the memory: what is loaded as bfloat16 or float16 is that, once, without gradients, and says the same.

mod common;

use common::Folder;
use dlm_diffusion::{AttentionLayout, Denoiser, DenoiserInput, Visibility};
use dlm_model::{DiffusionInfo, LoadOptions, Model, ModelError};
use serde_json::json;
use tch::{Device, Kind, Tensor};

const HALVES: [Kind; 2] = [Kind::BFloat16, Kind::Half];

fn load(folder: &std::path::Path, kind: Kind) -> Model {
    let mut model = Model::load(folder, &LoadOptions { kind, device: Device::Cpu }).unwrap();
    model.set_diffusion(DiffusionInfo::new(0, false)).unwrap();
    model
}

fn logits(model: &Model, ids: &Tensor, layout: &AttentionLayout) -> Tensor {
    let states = model.hidden_states(&DenoiserInput::new(ids, layout)).unwrap();
    model.head().logits(&states).unwrap()
}

#[test]
fn a_model_holds_one_copy_of_its_weights_in_the_kind_asked_for_and_no_gradients() {
    for tied in [false, true] {
        let folder = Folder::with(&[("tie_word_embeddings", json!(tied))]);
        let exact = folder.load().unwrap();
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
            let model = load(folder.path(), kind);
            assert_eq!(model.kind(), kind);
            for ((name, tensor), (_, expected)) in model.named_parameters().iter().zip(exact.named_parameters()) {
                assert_eq!((tensor.kind(), tensor.requires_grad()), (kind, false), "{name}");
                assert_eq!(tensor, &expected.to_kind(kind), "{name}");
            }
            // The modules share the memory of the list: what changes there changes what is computed.
            let ids = Tensor::from_slice2(&[[5i64, 6, 7]]);
            let before = logits(&model, &ids, &AttentionLayout::full());
            assert_eq!((before.kind(), before.requires_grad()), (kind, false));
            for (name, tensor) in model.named_parameters() {
                let _ = tch::no_grad(|| tensor.shallow_clone().multiply_scalar_(1.5));
                let after = logits(&model, &ids, &AttentionLayout::full());
                assert_ne!(after, before, "{name} is held twice");
                let _ = tch::no_grad(|| tensor.shallow_clone().divide_scalar_(1.5));
            }
        }
    }
}

#[test]
fn the_stored_kind_is_what_the_weights_are_not_what_the_config_says() {
    let folder = Folder::with(&[]);
    let model = folder.load().unwrap();
    for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
        model.save(folder.path(), kind, &[]).unwrap();
        folder.edit_config(&[("torch_dtype", json!("float32"))]);
        assert_eq!(Model::stored_kind(folder.path()).unwrap(), kind);
    }
    let adapter = dlm_golden::model("llama_lora_adapter");
    assert_eq!(Model::stored_kind(&adapter).unwrap(), Model::stored_kind(&dlm_golden::model("llama")).unwrap());
    std::fs::remove_file(folder.weights()).unwrap();
    assert!(matches!(Model::stored_kind(folder.path()), Err(ModelError::NoWeights { .. })));
}

#[test]
fn golden_logits_in_half_precision_are_those_of_float32_up_to_its_rounding() {
    for path in dlm_golden::files("model_", "safetensors") {
        let name = dlm_golden::stem(&path).strip_prefix("model_").unwrap().to_owned();
        let tensors = dlm_golden::tensors(&path);
        let folder = dlm_golden::model(&name);
        let Some(segments) = tensors.get("segment_ids").filter(|_| folder.join("config.json").exists()) else {
            continue;
        };
        let layouts = [
            ("causal", AttentionLayout::causal()),
            ("full", AttentionLayout::full()),
            ("segments", AttentionLayout::segments(segments).unwrap()),
            (
                "blocks",
                AttentionLayout::segments(segments)
                    .unwrap()
                    .with_visibility(Visibility::BlockCausal { block_length: 3 }),
            ),
        ];
        let real = segments.gt(0).flatten(0, 1).nonzero().squeeze_dim(1);
        let exact = load(&folder, Kind::Float);
        for kind in HALVES {
            let model = load(&folder, kind);
            for (layout_name, layout) in &layouts {
                let [found, expected] = [&model, &exact]
                    .map(|model| logits(model, &tensors["ids"], layout).to_kind(Kind::Float).index_select(0, &real));
                let error = (found - &expected).std(true).double_value(&[]) / expected.std(true).double_value(&[]);
                println!("{name:18} {layout_name:9} {kind:?} error {error:.1e} of the standard deviation");
                // Eight bits of bfloat16 (eleven of float16) are up to 4e-3 (5e-4) a rounding; a few layers add a dozen of them.
                assert!(
                    error < if kind == Kind::Half { 0.006 } else { 0.05 },
                    "{name} {layout_name} {kind:?}: {error}"
                );
            }
        }
    }
}

#[test]
fn losses_of_a_model_in_half_precision_are_near_those_in_float32() {
    let folder = Folder::with(&[]);
    let ids = Tensor::from_slice2(&[[5i64, 6, 7, 8]]);
    let (targets, weights) = (ids.flatten(0, 1), Tensor::ones([4], (Kind::Float, Device::Cpu)));
    let nll = |kind| {
        let model = load(folder.path(), kind);
        let layout = AttentionLayout::full();
        let states = model.hidden_states(&DenoiserInput::new(&ids, &layout)).unwrap();
        let scores = model.head().weighted_nll(&states, &targets, &weights).unwrap();
        scores.weighted_sum.to_kind(Kind::Float).double_value(&[])
    };
    let exact = nll(Kind::Float);
    for kind in HALVES {
        assert!((nll(kind) - exact).abs() < 0.05 * exact, "{kind:?}: {} is not {exact}", nll(kind));
    }
}
