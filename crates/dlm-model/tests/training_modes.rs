//! Training in other kinds of numbers, with less memory, and on packed rows: the same gradients by other means.

use dlm_diffusion::{AttentionLayout, Denoiser, DenoiserInput, TokenLoss, Visibility};
use dlm_model::{LoadOptions, LoraConfig, Model, ModelConfig};
use std::path::Path;
use tch::{Device, Kind, Tensor};

const SEQ_LEN: i64 = 24;

fn config(extra: &str) -> ModelConfig {
    let json = format!(
        r#"{{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 64, "vocab_size": 40, "rms_norm_eps": 1e-5, "tie_word_embeddings": true {extra}}}"#
    );
    ModelConfig::from_json(serde_json::from_str(&json).unwrap(), Path::new("config.json")).unwrap()
}

fn model() -> Model {
    let mut model = Model::from_config(config(""), 3, &LoadOptions::default()).unwrap();
    // Larger matrices than a model begins with, so that the parts of a block have a say.
    for (_, tensor) in model.named_parameters().iter().filter(|(_, tensor)| tensor.dim() == 2) {
        let _ = tch::no_grad(|| tensor.shallow_clone().g_mul_scalar_(3.0));
    }
    model.train(true);
    model
}

/// The loss at every third token, and the gradients of what is trained.
fn loss_and_gradients(model: &Model, layout: &AttentionLayout, dropout_keys: Option<&Tensor>) -> (f64, Vec<Tensor>) {
    let ids = Tensor::arange(2 * SEQ_LEN, (Kind::Int64, Device::Cpu)).remainder(37).view([2, SEQ_LEN]);
    let wanted = Tensor::arange_start_step(0, 2 * SEQ_LEN, 3, (Kind::Int64, Device::Cpu));
    let targets = ids.flatten(0, 1).index_select(0, &wanted);
    let mut input = DenoiserInput::new(&ids, layout).at(&wanted);
    input.dropout_keys = dropout_keys;
    let hidden = model.hidden_states(&input).unwrap();
    let weights = Tensor::ones([wanted.size()[0]], (Kind::Float, Device::Cpu));
    let scores = model.head().weighted_loss(&hidden, &targets, &weights, &TokenLoss::default()).unwrap();
    for (_, tensor) in model.trainable_parameters() {
        tensor.shallow_clone().zero_grad();
    }
    scores.weighted_sum.backward();
    let gradients = model.trainable_parameters().iter().map(|(_, tensor)| tensor.grad().copy()).collect();
    (scores.weighted_sum.double_value(&[]), gradients)
}

/// Distance of two gradients, all parameters together, as a share of their length.
fn distance(a: &[Tensor], b: &[Tensor]) -> f64 {
    let squares = |x: &Tensor| x.square().sum(Kind::Double).double_value(&[]);
    let apart: f64 = a.iter().zip(b).map(|(a, b)| squares(&(a - b))).sum();
    (apart / b.iter().map(squares).sum::<f64>()).sqrt()
}

#[test]
fn checkpointing_repeats_the_gradients_to_the_bit_with_dropout_in_an_adapter_too() {
    let keys = Tensor::arange(2 * SEQ_LEN, (Kind::Int64, Device::Cpu)).view([2, SEQ_LEN]);
    for has_adapter in [false, true] {
        let mut model = model();
        if has_adapter {
            model.train(false);
            model.add_adapter(&LoraConfig::new(4, 8.0).with_dropout(0.5), 1).unwrap();
            // Matrices that begin at zero would hide what they multiply.
            for (_, tensor) in model.trainable_parameters() {
                let _ = tch::no_grad(|| tensor.shallow_clone().fill_(0.05));
            }
            model.train(true);
        }
        let (loss, plain) = loss_and_gradients(&model, &AttentionLayout::full(), Some(&keys));
        model.set_gradient_checkpointing(true);
        let (again, found) = loss_and_gradients(&model, &AttentionLayout::full(), Some(&keys));
        assert_eq!(loss, again);
        assert_eq!(found, plain);
        if has_adapter {
            let (_, undropped) = loss_and_gradients(&model, &AttentionLayout::full(), None);
            assert!(distance(&undropped, &plain) > 0.05, "dropout drops nothing");
        }
    }
}

#[test]
fn mixed_precision_has_float32_gradients_near_the_exact_ones_and_casts_what_has_changed() {
    let mut model = model();
    let (exact_loss, exact) = loss_and_gradients(&model, &AttentionLayout::full(), None);
    model.compute_in(Kind::BFloat16).unwrap();
    assert_eq!((model.kind(), model.compute_kind()), (Kind::Float, Kind::BFloat16));
    let (loss, found) = loss_and_gradients(&model, &AttentionLayout::full(), None);
    assert!(found.iter().all(|gradient| gradient.kind() == Kind::Float));
    assert!(loss != exact_loss && (loss / exact_loss - 1.0).abs() < 0.05, "{loss} and {exact_loss}");
    for ((name, _), (found, exact)) in model.named_parameters().iter().zip(found.iter().zip(&exact)) {
        println!("{name}: {:.1e}", distance(&[found.shallow_clone()], &[exact.shallow_clone()]));
    }
    let far = distance(&found, &exact);
    assert!(far > 0.0 && far < 0.05, "{far}");
    model.set_gradient_checkpointing(true);
    assert_eq!(loss_and_gradients(&model, &AttentionLayout::full(), None), (loss, found));
    // Any change of the weights counts at once.
    for (_, tensor) in model.named_parameters() {
        let _ = tch::no_grad(|| tensor.shallow_clone().g_mul_scalar_(0.5));
    }
    assert_ne!(loss_and_gradients(&model, &AttentionLayout::full(), None).0, loss);
    model.compute_in(Kind::Float).unwrap();
    assert_eq!(model.compute_kind(), Kind::Float);
    let refused = model.compute_in(Kind::Half).unwrap_err().to_string();
    assert!(refused.contains("weights are in Float cannot compute in Half"), "{refused}");
}

#[test]
fn converted_parameters_stay_the_same_tensors_and_compute_in_their_new_kind() {
    let mut model = model();
    let kept = model.named_parameters()[1].1.shallow_clone();
    let ids = Tensor::arange(2 * SEQ_LEN, (Kind::Int64, Device::Cpu)).remainder(37).view([2, SEQ_LEN]);
    let layout = AttentionLayout::full();
    let exact = model.hidden_states(&DenoiserInput::new(&ids, &layout)).unwrap();
    for (_, tensor) in model.named_parameters() {
        tensor.shallow_clone().zero_grad();
    }
    let mut model = {
        model.train(false);
        model.convert(Kind::BFloat16).unwrap();
        model
    };
    model.train(true);
    assert_eq!((kept.kind(), model.kind(), model.compute_kind()), (Kind::BFloat16, Kind::BFloat16, Kind::BFloat16));
    let hidden = model.hidden_states(&DenoiserInput::new(&ids, &layout)).unwrap();
    assert_eq!(hidden.kind(), Kind::BFloat16);
    let far = distance(&[hidden.to_kind(Kind::Float)], &[exact]);
    assert!(far > 0.0 && far < 0.05, "{far}");
}

#[test]
fn a_long_packed_row_has_the_states_of_its_documents_one_by_one_whatever_their_blocks() {
    let mut model = Model::from_config(config(r#", "rope_theta": 100.0"#), 3, &LoadOptions::default()).unwrap();
    model.set_packing_isolation(dlm_diffusion::PackingIsolation::Document);
    let ids = Tensor::arange(224, (Kind::Int64, Device::Cpu)).remainder(37).unsqueeze(0);
    let documents = [(0, 64), (64, 40), (104, 56)];
    let range = |len: i64| Tensor::arange(len, (Kind::Int64, Device::Cpu));
    let all = |id: i64, len: i64| Tensor::full([len], id, (Kind::Int64, Device::Cpu));
    let mut segments: Vec<Tensor> = (1i64..).zip(documents).map(|(id, (_, len))| all(id, len)).collect();
    segments.push(all(0, 64));
    let mut positions: Vec<Tensor> = documents.iter().map(|&(_, len)| range(len)).collect();
    positions.push(all(0, 64));
    let [segments, positions] = [segments, positions].map(|parts| Tensor::cat(&parts, 0).unsqueeze(0));
    for visibility in [Visibility::Bidirectional, Visibility::BlockCausal { block_length: 16 }] {
        let layout = AttentionLayout::segments(&segments).unwrap().with_visibility(visibility);
        let mut input = DenoiserInput::new(&ids, &layout);
        input.position_ids = Some(&positions);
        let packed = model.hidden_states(&input).unwrap();
        for (start, len) in documents {
            let alone = ids.narrow(1, start, len);
            let layout = AttentionLayout::full().with_visibility(visibility);
            let expected = model.hidden_states(&DenoiserInput::new(&alone, &layout)).unwrap();
            let error = (packed.narrow(0, start, len) - expected).abs().max().double_value(&[]);
            assert!(error < 1e-5, "{visibility:?}: document at {start} differs by {error:e}");
        }
    }
}
