//! LoRA: what is trained, saved, read back, merged, and what is refused.

mod common;

use common::{assert_same_parameters, model_with};
use dlm_diffusion::{AttentionLayout, Denoiser, DenoiserInput};
use dlm_golden::assert_close;
use dlm_model::{
    ADAPTER_CONFIG, ADAPTER_WEIGHTS, DiffusionInfo, LoadOptions, LoraConfig, LoraTargets, Model, ModelError,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::Path};
use tch::{Device, Kind, Tensor};

fn names(list: &[&str]) -> LoraTargets {
    LoraTargets::Names(list.iter().map(|name| (*name).to_owned()).collect())
}

fn logits(model: &Model, ids: &Tensor) -> Tensor {
    let layout = AttentionLayout::full();
    let states = model.hidden_states(&DenoiserInput::new(ids, &layout)).unwrap();
    model.head().logits(&states).unwrap()
}

fn ids() -> Tensor {
    Tensor::from_slice2(&[[5i64, 6, 7, 8], [49, 2, 3, 49]])
}

/// Gives every tensor of the adapter numbers of its own.
fn fill(model: &Model) {
    tch::manual_seed(3);
    for (_, tensor) in model.trainable_parameters() {
        tch::no_grad(|| {
            tensor.shallow_clone().copy_(&(Tensor::randn(tensor.size(), (Kind::Float, Device::Cpu)) * 0.1));
        });
    }
}

/// A base model in a folder, and a model with an adapter that belongs to it.
fn adapted(tied: bool, config: &LoraConfig) -> (tempfile::TempDir, Model) {
    let folder = tempfile::tempdir().unwrap();
    let base = model_with(&[("tie_word_embeddings", json!(tied))]);
    base.save(&folder.path().join("base"), Kind::Float, &[]).unwrap();
    let mut model = Model::load(&folder.path().join("base"), &LoadOptions::default()).unwrap();
    model.set_diffusion(DiffusionInfo::new(49, false)).unwrap();
    model.add_adapter(&config.clone().of_base_model("base"), 5).unwrap();
    (folder, model)
}

#[test]
fn golden_adapters_give_the_logits_of_peft_attached_and_merged() {
    let mut compared = 0;
    for path in dlm_golden::files("model_", "safetensors") {
        let tensors = dlm_golden::tensors(&path);
        let Some(expected) = tensors.get("logits_bidir_merged") else { continue };
        let name = dlm_golden::stem(&path).strip_prefix("model_").unwrap();
        let folder = dlm_golden::model(&format!("{name}_adapter"));
        let mut model = Model::load(&folder, &LoadOptions::default()).unwrap(); // finds its base
        model.set_diffusion(DiffusionInfo::new(0, false)).unwrap();
        let flat = |tensor: &Tensor| tensor.flatten(0, 1);
        assert_close(name, &logits(&model, &tensors["ids"]), &flat(&tensors["logits_bidir"]), 1e-4, 1e-4);
        model.merge_adapter().unwrap();
        assert!(model.adapter().is_none());
        assert_close(name, &logits(&model, &tensors["ids"]), &flat(expected), 1e-4, 1e-4);
        let merged: BTreeMap<&str, &Tensor> = model.named_parameters().iter().map(|(n, t)| (n.as_str(), t)).collect();
        for (parameter, expected) in tensors.iter().filter_map(|(n, t)| Some((n.strip_prefix("merged.")?, t))) {
            assert_close(parameter, merged[parameter], expected, 1e-5, 1e-5);
        }
        compared += 1;
    }
    assert!(compared > 0, "no golden adapter");
}

#[test]
fn a_new_adapter_changes_nothing_and_alone_is_trained() {
    let (_folder, mut model) = adapted(false, &LoraConfig::new(3, 6.0));
    let base = model_with(&[]);
    let plain = {
        let mut base = base;
        base.set_diffusion(DiffusionInfo::new(49, false)).unwrap();
        base
    };
    assert_eq!(logits(&model, &ids()), logits(&plain, &ids()));
    assert_eq!(model.trainable_parameters().len(), 2 * 7 * 2);
    model.train(true);
    assert!(model.named_parameters().iter().all(|(_, tensor)| !tensor.requires_grad()));
    logits(&model, &ids()).square().sum(Kind::Float).backward();
    for (name, tensor) in model.trainable_parameters() {
        // Where one of the two is zero, the other has no gradient yet.
        assert!(tensor.grad().defined(), "{name}");
        assert_eq!(tensor.grad().abs().max().double_value(&[]) > 0.0, name.contains("lora_B"), "{name}");
        if name.contains("lora_A") {
            let bound = (tensor.size()[1] as f64).sqrt().recip();
            let largest = tensor.abs().max().double_value(&[]);
            assert!(largest <= bound && largest > 0.8 * bound, "{name}: {largest}");
        }
    }
}

#[test]
fn an_adapter_is_saved_alone_and_loads_with_its_base_to_the_same_logits() {
    let whole = vec!["lm_head".to_owned(), "model.norm".to_owned()];
    for tied in [false, true] {
        for config in [
            LoraConfig::new(3, 6.0),
            LoraConfig::new(4, 2.0).rank_stabilised(true).with_targets(names(&["q_proj", "mlp.up_proj"])),
            LoraConfig::new(2, 4.0).with_modules_to_save(whole.clone()),
            LoraConfig::new(2, 4.0)
                .with_modules_to_save(vec!["embed_tokens".to_owned()])
                .with_targets(names(&["o_proj"])),
            LoraConfig::new(2, 4.0).with_trainable_tokens(vec![49, 7]).with_targets(names(&["v_proj"])),
        ] {
            let (folder, mut model) = adapted(tied, &config);
            fill(&model);
            let path = folder.path().join("adapter");
            model.save(&path, Kind::Float, &[("tokenizer.json".to_owned(), b"{}".to_vec())]).unwrap();
            let mut files: Vec<_> =
                fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            files.sort();
            assert_eq!(files, [ADAPTER_CONFIG, ADAPTER_WEIGHTS, "config.json", "tokenizer.json"]);
            let mut loaded = Model::load(&path, &LoadOptions::default()).unwrap();
            assert_eq!(loaded.diffusion(), model.diffusion());
            // Rows of the embedding are put there by the forward pass in training and by loading.
            model.load_parameters(&path).unwrap();
            let expected = logits(&model, &ids());
            assert_eq!(logits(&loaded, &ids()), expected);
            assert_ne!(expected, logits(&adapted(tied, &config).1, &ids()));

            loaded.merge_adapter().unwrap();
            assert_close("merged", &logits(&loaded, &ids()), &expected, 1e-4, 1e-4);
            let merged = folder.path().join("merged");
            loaded.save(&merged, Kind::Float, &[]).unwrap();
            assert_same_parameters(&Model::load(&merged, &LoadOptions::default()).unwrap(), &loaded);
        }
    }
}

#[test]
fn the_row_of_an_added_token_is_trained_by_what_goes_in() {
    for tied in [false, true] {
        let mut model = model_with(&[("tie_word_embeddings", json!(tied))]);
        model.grow_vocabulary(51).unwrap();
        model.set_diffusion(DiffusionInfo::new(50, false)).unwrap();
        model.add_adapter(&LoraConfig::new(2, 4.0).with_trainable_tokens(vec![50]), 1).unwrap();
        assert!(matches!(model.grow_vocabulary(60), Err(ModelError::HasAdapter)));
        model.train(true);
        let (masked, plain) = (Tensor::from_slice2(&[[5i64, 50, 7]]), Tensor::from_slice2(&[[5i64, 6, 7]]));
        let gradient = |ids: &Tensor| {
            let layout = AttentionLayout::full();
            let states = model.hidden_states(&DenoiserInput::new(ids, &layout)).unwrap();
            let row = &model.trainable_parameters().last().unwrap().1;
            Tensor::run_backward(&[states.square().sum(Kind::Float)], &[row], false, false)[0]
                .abs()
                .max()
                .double_value(&[])
        };
        assert!(gradient(&masked) > 0.0);
        assert_eq!(gradient(&plain), 0.0);
        // A step is seen by the next forward pass, through the embedding itself.
        let before = logits(&model, &masked);
        let row = model.trainable_parameters().last().unwrap().1.shallow_clone();
        assert_eq!(row.size(), [1, 32]);
        let _ = tch::no_grad(|| row.shallow_clone().fill_(0.5));
        assert_ne!(logits(&model, &masked), before);
        assert_eq!(model.named_parameters()[0].1.get(50), row.detach().get(0));
    }
}

#[test]
fn dropout_follows_from_the_keys_of_the_tokens_and_from_nothing_else() {
    let config = LoraConfig::new(3, 6.0).with_dropout(0.5);
    let (_folder, model) = adapted(false, &config);
    fill(&model);
    let layout = AttentionLayout::full();
    let states = |ids: &Tensor, keys: Option<&Tensor>| {
        let mut input = DenoiserInput::new(ids, &layout);
        input.dropout_keys = keys;
        model.hidden_states(&input).unwrap()
    };
    let keys = Tensor::from_slice2(&[[1i64, 2, 3, 4], [5, 6, 7, 8]]);
    let (dropped, whole) = (states(&ids(), Some(&keys)), states(&ids(), None));
    assert_ne!(dropped, whole);
    assert_eq!(dropped, states(&ids(), Some(&keys)));
    assert_ne!(dropped, states(&ids(), Some(&(&keys + 1))));
    // A row drops the same beside any other, and for wanted tokens as for all.
    let alone = states(&ids().narrow(0, 1, 1), Some(&keys.narrow(0, 1, 1)));
    assert_close("alone", &alone, &dropped.narrow(0, 4, 4), 1e-5, 1e-5);
    let wanted = Tensor::from_slice(&[6i64, 1]);
    let (all, rows) = (dropped, ids());
    let input = DenoiserInput::new(&rows, &layout).with_dropout(&keys).at(&wanted);
    assert_close("wanted", &model.hidden_states(&input).unwrap(), &all.index_select(0, &wanted), 1e-5, 1e-5);
    let short = Tensor::from_slice2(&[[1i64, 2]]);
    let input = DenoiserInput::new(&rows, &layout).with_dropout(&short);
    assert!(model.hidden_states(&input).unwrap_err().to_string().contains("dropout_keys"));
}

#[test]
fn settings_out_of_range_and_names_of_nothing_are_refused() {
    let refused = |config: LoraConfig| {
        let error = model_with(&[]).add_adapter(&config, 1).unwrap_err();
        assert!(matches!(error, ModelError::LoraSetting { .. }), "{error}");
        error.to_string()
    };
    assert!(refused(LoraConfig::new(0, 1.0)).contains("`r` of the adapter is 0"));
    assert!(refused(LoraConfig::new(1, f64::NAN)).contains("`alpha`"));
    assert!(refused(LoraConfig::new(1, 1.0).with_dropout(1.0)).contains("`dropout`"));
    let message = refused(LoraConfig::new(1, 1.0).with_targets(names(&["q_proj", "c_attn"])));
    assert!(message.contains("`c_attn`") && message.contains("`v_proj`"), "{message}");
    assert!(refused(LoraConfig::new(1, 1.0).with_targets(names(&["lm_head"]))).contains("modules_to_save"));
    assert!(refused(LoraConfig::new(1, 1.0).with_modules_to_save(vec!["score".to_owned()])).contains("`score`"));
    assert!(refused(LoraConfig::new(1, 1.0).with_trainable_tokens(vec![50])).contains("50 rows"));
    let (_folder, mut model) = adapted(false, &LoraConfig::new(1, 1.0));
    assert!(matches!(model.add_adapter(&LoraConfig::new(1, 1.0), 1), Err(ModelError::HasAdapter)));
}

fn edit(folder: &Path, key: &str, value: Value) {
    let path = folder.join(ADAPTER_CONFIG);
    let mut object = dlm_golden::json(&path);
    object[key] = value;
    fs::write(path, object.to_string()).unwrap();
}

#[test]
fn files_that_ask_for_more_than_lora_or_belong_to_another_model_are_refused() {
    let (folder, model) = adapted(false, &LoraConfig::new(3, 6.0));
    let path = folder.path().join("adapter");
    for (key, value) in [
        ("peft_type", json!("IA3")),
        ("use_dora", json!(true)),
        ("bias", json!("all")),
        ("fan_in_fan_out", json!(true)),
        ("rank_pattern", json!({ "q_proj": 8 })),
        ("layers_to_transform", json!([0])),
        ("target_modules", json!(".*proj")),
        ("r", json!("three")),
        ("a_key_of_tomorrow", json!(1)),
    ] {
        model.save(&path, Kind::Float, &[]).unwrap();
        edit(&path, key, value);
        let error = Model::load(&path, &LoadOptions::default()).unwrap_err();
        assert!(matches!(&error, ModelError::Value { key: found, .. } if found == key), "{key}: {error}");
    }
    model.save(&path, Kind::Float, &[]).unwrap();
    edit(&path, "target_modules", json!("all-linear"));
    Model::load(&path, &LoadOptions::default()).unwrap();
    edit(&path, "base_model_name_or_path", json!("elsewhere"));
    let error = Model::load(&path, &LoadOptions::default()).unwrap_err();
    assert!(matches!(error, ModelError::NoBaseModel { .. }) && error.help().is_some(), "{error}");

    let mut other = model_with(&[("intermediate_size", json!(64))]);
    let message = other.load_adapter(&path).unwrap_err().to_string();
    assert!(
        message.contains("12 misshapen") || message.contains("misshapen: `base_model.model.model.layers.0.mlp"),
        "{message}"
    );
    let mut deeper = model_with(&[("num_hidden_layers", json!(3))]);
    assert!(deeper.load_adapter(&path).unwrap_err().to_string().contains("missing: `base_model.model.model.layers.2."));
    fs::write(path.join(ADAPTER_WEIGHTS), b"short").unwrap();
    assert!(matches!(model_with(&[]).load_adapter(&path), Err(ModelError::Damaged { .. })));
}

#[test]
fn all_linear_names_what_peft_finds_again_in_every_family() {
    let models = fs::read_dir(dlm_golden::folder().join("models")).unwrap().map(|entry| entry.unwrap().path());
    for path in models.filter(|path| !path.join(ADAPTER_CONFIG).exists()) {
        let mut model = Model::load(&path, &LoadOptions::default()).unwrap();
        let config = LoraConfig::new(1, 1.0).of_base_model(path.to_string_lossy());
        model.add_adapter(&config, 1).unwrap();
        let folder = tempfile::tempdir().unwrap();
        model.save(folder.path(), Kind::Float, &[]).unwrap();
        let loaded = Model::load(folder.path(), &LoadOptions::default()).unwrap();
        let names =
            |model: &Model| model.trainable_parameters().iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&loaded), names(&model), "{}", path.display());
    }
}
