//! Logits and gradients of every golden model.

use dlm_diffusion::{AttentionLayout, Denoiser, DenoiserInput, Visibility};
use dlm_golden::{assert_close, assert_number};
use dlm_model::{DiffusionInfo, LoadOptions, Model, PackingIsolation};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};
use tch::{Kind, Tensor};

/// One golden file and the folder of its model.
struct Case {
    name: String,
    folder: PathBuf,
    tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
}

impl Case {
    fn mask_token_id(&self) -> i64 {
        self.metadata["mask_token_id"].parse().unwrap()
    }

    fn load(&self, folder: &Path, logits_shift: bool) -> Model {
        let mut model = Model::load(folder, &LoadOptions::default()).unwrap();
        model.set_diffusion(DiffusionInfo::new(self.mask_token_id(), logits_shift)).unwrap();
        model
    }

    fn layout(&self, segments: &str) -> AttentionLayout {
        AttentionLayout::segments(&self.tensors[segments]).unwrap()
    }
}

/// Every `model_NAME.safetensors` with a folder `models/NAME`.
fn cases() -> Vec<Case> {
    let files = dlm_golden::files("model_", "safetensors");
    let cases = files.iter().filter_map(|path| {
        let name = dlm_golden::stem(path).strip_prefix("model_").unwrap();
        let folder = dlm_golden::model(name);
        if !folder.join("config.json").exists() {
            return None; // an adapter: another layout
        }
        let (tensors, metadata) = (dlm_golden::tensors(path), dlm_golden::metadata(path));
        Some(Case { name: name.to_owned(), folder, tensors, metadata })
    });
    let cases: Vec<_> = cases.collect();
    assert!(!cases.is_empty(), "no golden model has a folder");
    cases
}

#[test]
fn golden_logits_of_every_layout_are_those_of_the_reference() {
    for case in cases() {
        let (seq_len, ids) = (case.tensors["ids"].size()[1], &case.tensors["ids"]);
        let everywhere = Tensor::ones_like(ids);
        for (key, expected) in case.tensors.iter().filter(|(key, _)| key.starts_with("logits_")) {
            // Which tokens go in, who sees whom, and which positions are real.
            let (noised, segments, restart, real) = match key.strip_prefix("logits_").unwrap() {
                "causal" => (false, None, false, &everywhere),
                "causal_padded" => (false, Some("attention_mask"), false, &case.tensors["attention_mask"]),
                "bidir" => (true, None, false, &everywhere),
                "bidir_padded" | "a2d_bidir_padded" => {
                    (true, Some("attention_mask"), false, &case.tensors["attention_mask"])
                }
                "bidir_packed" | "bidir_packed_bias" => {
                    (true, Some("segment_ids"), false, &case.tensors["segment_ids"])
                }
                "bidir_packed_posreset" => (true, Some("segment_ids"), true, &case.tensors["segment_ids"]),
                other => panic!("{}: logits of `{other}`, of which nothing is known", case.name),
            };
            let mut layout = segments.map_or_else(AttentionLayout::full, |key| case.layout(key));
            if key.starts_with("logits_causal") {
                layout = layout.with_visibility(Visibility::Causal);
            }
            // A family adapted to see both ways has a folder of its own, and does not shift even unasked.
            let adapted = dlm_golden::model(&format!("a2d_{}", case.name));
            let model = if key.starts_with("logits_a2d") && adapted.exists() {
                Model::load(&adapted, &LoadOptions::default()).unwrap()
            } else {
                case.load(&case.folder, false)
            };
            let input = if noised { &case.tensors["noisy_ids"] } else { ids };
            let wanted = real.gt(0).flatten(0, 1).nonzero().squeeze_dim(1);
            let mut query = DenoiserInput::new(input, &layout).at(&wanted);
            if restart {
                query = query.with_positions(&case.tensors["segment_position_ids"]);
            }
            let states = model.hidden_states(&query).unwrap();
            let logits = model.head().logits(&states).unwrap();
            let expected = expected.flatten(0, 1).index_select(0, &wanted);
            assert!(seq_len > 1 && wanted.numel() > 0, "{}: nothing to compare", case.name);
            let error = (&logits - &expected).abs().max().double_value(&[]);
            println!("{:18} {key:32} largest error {error:.1e}", case.name); // the table that `make golden-models` shows
            assert_close(&format!("{} {key}", case.name), &logits, &expected, 1e-4, 1e-4);
        }
    }
}

#[test]
fn golden_gradients_are_those_of_the_reference() {
    for case in cases() {
        let eps: f64 = case.metadata["eps"].parse().unwrap();
        let ids = &case.tensors["ids"];
        let (t, uniform) = (&case.tensors["grad_t"], &case.tensors["grad_u"]);
        let p_mask = (t * (1.0 - eps) + eps).unsqueeze(1).expand_as(uniform);
        // Axolotl's loss knows special tokens and padding, and shifts; LLaDA's knows nothing of them.
        let specials = case.metadata.get("special_token_ids");
        let mut is_masked = uniform.lt_tensor(&p_mask);
        let mut layout = AttentionLayout::full();
        if let Some(specials) = specials {
            let specials: Vec<i64> = serde_json::from_str(specials).unwrap();
            let specials = Tensor::from_slice(&specials);
            let is_special = ids.unsqueeze(-1).eq_tensor(&specials).any_dim(-1, false);
            let is_real = case.tensors["attention_mask"].gt(0);
            is_masked = is_masked.logical_and(&is_real).logical_and(&is_special.logical_not());
            layout = case.layout("attention_mask");
        }
        let wanted = is_masked.flatten(0, 1).nonzero().squeeze_dim(1);
        let weighted = case.metadata.get("importance_weighting").is_none_or(|flag| flag.eq_ignore_ascii_case("true"));
        let weights = if weighted {
            p_mask.flatten(0, 1).index_select(0, &wanted).reciprocal() / ids.numel() as f64
        } else {
            Tensor::ones([wanted.numel() as i64], (Kind::Float, tch::Device::Cpu)) / wanted.numel() as f64
        };

        let mut model = case.load(&case.folder, specials.is_some());
        model.set_packing_isolation(PackingIsolation::Row);
        model.train(true);
        let noised = ids.masked_fill(&is_masked, case.mask_token_id());
        let states = model.hidden_states(&DenoiserInput::new(&noised, &layout).at(&wanted)).unwrap();
        let targets = ids.flatten(0, 1).index_select(0, &wanted);
        let loss = model.head().weighted_nll(&states, &targets, &weights).unwrap().weighted_sum;
        assert_number(&case.name, loss.double_value(&[]), case.tensors["grad_loss"].double_value(&[]), 0.0, 1e-4);
        loss.backward();

        let gradients: BTreeMap<&str, Tensor> =
            model.named_parameters().iter().map(|(name, tensor)| (name.as_str(), tensor.grad())).collect();
        for (key, expected) in &case.tensors {
            if let Some(name) = key.strip_prefix("grad.") {
                let what = format!("{} gradient of {name}", case.name);
                assert_close(&what, &gradients[name], expected, 1e-4, 1e-3);
            }
        }
        if let Some(expected) = case.tensors.get("grad_global_norm") {
            let squares = gradients.values().map(|grad| grad.square().sum(Kind::Double).double_value(&[]));
            let norm = squares.sum::<f64>().sqrt();
            assert_number(&format!("{} norm", case.name), norm, expected.double_value(&[]), 1e-4, 1e-4);
        }
    }
}

#[test]
fn golden_embeddings_grow_by_the_mask_token_where_it_has_no_row_and_keep_their_padding() {
    let cases = dlm_golden::json_named("config_mask_token_resize");
    for case in cases["cases"].as_array().unwrap() {
        let name = case["model"].as_str().unwrap();
        let integer = |key: &str| case[key].as_i64().unwrap();
        let mut model = Model::load(&dlm_golden::model(name), &LoadOptions::default()).unwrap();
        assert_eq!(model.vocab_size(), integer("embedding_rows_before"), "{name}");
        let before: Vec<Tensor> = model.named_parameters().iter().map(|(_, tensor)| tensor.copy()).collect();
        let mask_token_id = integer("resolved_id");
        model.grow_vocabulary(mask_token_id + 1).unwrap();
        model.set_diffusion(DiffusionInfo::new(mask_token_id, true)).unwrap();
        // The reference cuts a padded vocabulary to the tokenizer's length; here it stays.
        let rows = integer("embedding_rows_before").max(mask_token_id + 1);
        assert!(rows >= integer("embedding_rows_after") && rows > mask_token_id, "{name}");
        assert_eq!((model.vocab_size(), model.config().vocab_size), (rows, rows), "{name}");
        for ((parameter, after), before) in model.named_parameters().iter().zip(before) {
            assert_eq!(after.narrow(0, 0, before.size()[0]), before, "{name} {parameter}");
        }
    }
}
