//! Model folders: written, read back, and every way in which one can be broken.

mod common;

use common::{Folder, assert_same_parameters, config_with, model_with, write_tensors};
use dlm_diffusion::{AttentionLayout, Denoiser, DenoiserInput};
use dlm_model::{DiffusionInfo, LoadOptions, Model, ModelConfig, ModelError, ModelInfo, SaveOptions};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::Path};
use tch::{Device, Kind, Tensor};

const TIED: (&str, Value) = ("tie_word_embeddings", Value::Bool(true));

#[test]
fn a_saved_model_loads_bit_for_bit_with_its_keys_and_companions() {
    for changes in [vec![], vec![TIED], vec![("attention_bias", json!(true)), ("mlp_bias", json!(true))]] {
        let mut model = model_with(&changes);
        model.set_diffusion(DiffusionInfo::new(49, false)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        model.save(folder.path(), Kind::Float, &[("tokenizer.json".to_owned(), b"{}".to_vec())]).unwrap();
        assert_eq!(fs::read(folder.path().join("tokenizer.json")).unwrap(), b"{}");
        assert_eq!(dlm_golden::metadata(&folder.path().join("model.safetensors"))["format"], "pt");

        let loaded = Model::load(folder.path(), &LoadOptions::default()).unwrap();
        assert_same_parameters(&loaded, &model);
        assert_eq!(loaded.diffusion(), model.diffusion());
        let mut expected = model.config().to_json();
        expected.insert("torch_dtype".to_owned(), json!("float32"));
        assert_eq!(loaded.config().to_json(), expected);
    }
}

#[test]
fn a_tied_head_is_not_stored_and_may_be_present_only_if_equal() {
    let folder = Folder::with(&[TIED]);
    assert!(!dlm_golden::tensors(&folder.weights()).contains_key("lm_head.weight"));
    folder.edit_weights(|tensors| {
        let copy = tensors["model.embed_tokens.weight"].copy();
        tensors.insert("lm_head.weight".to_owned(), copy);
    });
    folder.load().unwrap();
    folder.edit_weights(|tensors| {
        let _ = tensors.get_mut("lm_head.weight").unwrap().get(3).f_add_scalar_(1.0).unwrap();
    });
    let error = folder.load().unwrap_err();
    assert!(matches!(error, ModelError::UntiedHead { .. }), "{error}");
    assert!(error.help().unwrap().contains("tie_word_embeddings"));
}

#[test]
fn half_precision_is_converted_while_loading_and_saving() {
    let folder = Folder::with(&[]);
    let exact = folder.load().unwrap();
    for kind in [Kind::BFloat16, Kind::Half] {
        let stored = tempfile::tempdir().unwrap();
        exact.save(stored.path(), kind, &[]).unwrap();
        assert_eq!(ModelConfig::from_folder(stored.path()).unwrap().stored_kind, Some(kind));
        let loaded = Model::load(stored.path(), &LoadOptions::default()).unwrap();
        for ((name, found), (_, expected)) in loaded.named_parameters().iter().zip(exact.named_parameters()) {
            assert_eq!(found, &expected.to_kind(kind).to_kind(Kind::Float), "{name}");
        }
        let options = LoadOptions { kind: Kind::BFloat16, device: Device::Cpu };
        assert_eq!(Model::load(stored.path(), &options).unwrap().kind(), Kind::BFloat16);
    }
    let options = LoadOptions { kind: Kind::Int64, device: Device::Cpu };
    assert!(matches!(Model::load(folder.path(), &options), Err(ModelError::ComputeKind { found: Kind::Int64 })));
    assert!(matches!(exact.save(folder.path(), Kind::Double, &[]), Err(ModelError::ComputeKind { .. })));
}

#[test]
fn a_model_in_shards_is_the_model_in_one_file() {
    let folder = Folder::with(&[]);
    let whole = folder.load().unwrap();
    let tensors = dlm_golden::tensors(&folder.weights());
    fs::remove_file(folder.weights()).unwrap();
    let mut weight_map = serde_json::Map::new();
    let mut shards = [BTreeMap::new(), BTreeMap::new()];
    for (i, (name, tensor)) in tensors.into_iter().enumerate() {
        weight_map.insert(name.clone(), json!(format!("model-{}.safetensors", i % 2)));
        shards[i % 2].insert(name, tensor);
    }
    let index = folder.path().join("model.safetensors.index.json");
    let write_index =
        |map: &serde_json::Map<_, _>| fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();
    for (i, shard) in shards.iter().enumerate() {
        write_tensors(&folder.path().join(format!("model-{i}.safetensors")), shard);
    }
    write_index(&weight_map);
    assert_same_parameters(&folder.load().unwrap(), &whole);

    // What the index promises must be there.
    let mut promising = weight_map.clone();
    promising.insert("model.extra.weight".to_owned(), json!("model-0.safetensors"));
    write_index(&promising);
    assert!(folder.load().unwrap_err().to_string().contains("1 unexpected: `model.extra.weight`"));
    // A path could name any file of the machine.
    promising.insert("model.extra.weight".to_owned(), json!("../elsewhere.safetensors"));
    write_index(&promising);
    assert!(folder.load().unwrap_err().to_string().contains("the name of a file beside it"));
    write_index(&weight_map);
    fs::remove_file(folder.path().join("model-1.safetensors")).unwrap();
    let error = folder.load().unwrap_err();
    assert!(matches!(&error, ModelError::Read { path, .. } if path.ends_with("model-1.safetensors")), "{error}");
    fs::write(&index, "{").unwrap();
    assert!(folder.load().unwrap_err().to_string().contains("line 1"));
}

#[test]
fn weights_above_a_size_are_saved_in_files_of_at_most_that_size() {
    let model = model_with(&[]);
    let folder = tempfile::tempdir().unwrap();
    let names = || {
        let files = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = files.filter(|name| name.starts_with("model")).collect();
        names.sort();
        names
    };
    model.save(folder.path(), Kind::Float, &[]).unwrap();
    assert_eq!(names(), ["model.safetensors"]);
    // The largest tensor, the embedding, has 50 * 32 * 4 = 6400 bytes.
    model.save(folder.path(), SaveOptions::from(Kind::Float).with_max_shard_bytes(20_000), &[]).unwrap();
    let sharded = names();
    assert!(sharded.len() > 3 && !sharded.contains(&"model.safetensors".to_owned()), "{sharded:?}");
    for name in sharded.iter().filter(|name| name.ends_with(".safetensors")) {
        let bytes: usize = dlm_golden::tensors(&folder.path().join(name)).values().map(|t| t.numel() * 4).sum();
        assert!(bytes <= 20_000, "{name} holds {bytes}");
    }
    let index = dlm_golden::json(&folder.path().join("model.safetensors.index.json"));
    assert_eq!(index["metadata"]["total_size"].as_u64(), Some(4 * model.parameter_count()));
    assert_same_parameters(&Model::load(folder.path(), &LoadOptions::default()).unwrap(), &model);
    // A tensor larger than the limit has a file of its own.
    model.save(folder.path(), SaveOptions::from(Kind::Float).with_max_shard_bytes(1), &[]).unwrap();
    assert_eq!(names().len(), model.named_parameters().len() + 1);
    assert_same_parameters(&Model::load(folder.path(), &LoadOptions::default()).unwrap(), &model);
    // Back in one file, nothing of the others is left.
    model.save(folder.path(), Kind::Float, &[]).unwrap();
    assert_eq!(names(), ["model.safetensors"]);
}

#[test]
fn a_folder_is_described_without_reading_its_weights() {
    let folder = Folder::with(&[]);
    let model = folder.load().unwrap();
    let info = ModelInfo::of_folder(folder.path()).unwrap();
    assert_eq!((info.parameters, info.family, info.stored_as), (model.parameter_count(), "llama", Some("float32")));
    assert_eq!((info.mask_token_id, info.logits_shift, info.problem.as_deref()), (None, true, None));
    assert_eq!((info.inference_bytes, info.training_bytes), (4 * info.parameters, 16 * info.parameters));
    folder.edit_config(&[("diffusion", json!({ "mask_token_id": 3, "logits_shift": false }))]);
    let info = ModelInfo::of_folder(folder.path()).unwrap();
    assert_eq!((info.mask_token_id, info.logits_shift), (Some(3), false));
    fs::remove_file(folder.weights()).unwrap();
    let problem = ModelInfo::of_folder(folder.path()).unwrap().problem.unwrap();
    assert!(problem.contains("neither `model.safetensors` nor"), "{problem}");
    let adapter = ModelInfo::of_folder(&dlm_golden::model("llama_lora_adapter")).unwrap();
    assert!(adapter.base_model.unwrap().ends_with("models/llama") && adapter.problem.is_none());
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let folder = Folder::with(&[]);
    folder.load().unwrap().check_finite().unwrap();
    folder.edit_weights(|tensors| {
        let _ = tensors.get_mut("model.norm.weight").unwrap().narrow(0, 3, 2).fill_(f64::NAN);
        let _ = tensors.get_mut("lm_head.weight").unwrap().get(1).fill_(f64::INFINITY);
    });
    let error = folder.load().unwrap().check_finite().unwrap_err();
    assert_eq!(error.to_string(), "weights are not finite: `model.norm.weight` holds 2, `lm_head.weight` holds 32");
    assert!(error.help().is_some());
}

#[test]
fn missing_unexpected_and_misshapen_tensors_are_named() {
    let folder = Folder::with(&[]);
    folder.edit_weights(|tensors| {
        tensors.remove("model.layers.1.mlp.up_proj.weight");
        tensors.insert("score.weight".to_owned(), Tensor::zeros([2, 2], (Kind::Float, Device::Cpu)));
        tensors.insert("model.norm.weight".to_owned(), Tensor::ones([31], (Kind::Float, Device::Cpu)));
        let buffer = Tensor::ones([4], (Kind::Float, Device::Cpu));
        tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), buffer); // is ignored
    });
    let message = folder.load().unwrap_err().to_string();
    let expected = "1 missing: `model.layers.1.mlp.up_proj.weight`; 1 unexpected: `score.weight`; \
                    1 misshapen: `model.norm.weight` is [31] instead of [32]";
    assert!(message.ends_with(expected), "{message}");
}

#[test]
fn a_vocabulary_other_than_the_config_says_is_refused_with_both_sizes() {
    let folder = Folder::with(&[TIED]);
    folder.edit_config(&[("vocab_size", json!(51))]);
    let error = folder.load().unwrap_err();
    assert!(error.to_string().contains("`model.embed_tokens.weight` is [50, 32] instead of [51, 32]"), "{error}");
    assert!(error.help().is_some());
}

#[test]
fn tensors_of_a_kind_that_weights_do_not_have_are_refused() {
    let folder = Folder::with(&[]);
    folder.edit_weights(|tensors| {
        let integers = Tensor::ones([32], (Kind::Int64, Device::Cpu));
        tensors.insert("model.norm.weight".to_owned(), integers);
    });
    let message = folder.load().unwrap_err().to_string();
    assert!(message.contains("`model.norm.weight`") && message.contains("I64"), "{message}");
}

#[test]
fn folders_without_readable_weights_or_config_say_so() {
    let folder = Folder::with(&[]);
    fs::remove_file(folder.weights()).unwrap();
    assert!(matches!(folder.load(), Err(ModelError::NoWeights { .. })));
    fs::write(folder.path().join("pytorch_model.bin"), b"pickled").unwrap();
    let error = folder.load().unwrap_err();
    assert!(matches!(&error, ModelError::PickledWeights { file, .. } if file == "pytorch_model.bin"));
    assert!(error.help().unwrap().contains("save_pretrained"));

    fs::write(folder.path().join("config.json"), "{\n \"vocab_size\": 50,,\n}").unwrap();
    assert!(folder.load().unwrap_err().to_string().contains("line 2"));
    fs::remove_file(folder.path().join("config.json")).unwrap();
    let error = folder.load().unwrap_err();
    assert!(error.to_string().contains("config.json") && error.help().is_some());
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let folder = Folder::with(&[]);
    let whole = fs::read(folder.weights()).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for len in [0, 7, 8, header / 2, header, header + 4, whole.len() - 1] {
        fs::write(folder.weights(), &whole[..len]).unwrap();
        let error = folder.load().unwrap_err();
        assert!(matches!(error, ModelError::Damaged { .. } | ModelError::Read { .. }), "{len}: {error}");
    }
    fs::write(folder.weights(), [&whole[..], &[0; 4]].concat()).unwrap();
    assert!(matches!(folder.load(), Err(ModelError::Damaged { .. })));
}

#[test]
fn a_header_that_lies_about_lengths_is_refused() {
    let folder = Folder::with(&[]);
    let write = |len: u64, header: &str| {
        fs::write(folder.weights(), [&len.to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
        folder.load().unwrap_err()
    };
    let entry = |shape: &str, end: u64| {
        format!(r#"{{"model.norm.weight":{{"dtype":"U8","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
    };
    let huge = u64::MAX - 7;
    for header in [
        "{}".to_owned(),
        "[]".to_owned(),
        "{\"a\":".repeat(500),
        entry("[4]", 4),
        entry("[5]", 4),
        entry(&format!("[{huge}]"), huge),
        entry("[4294967296,4294967296,4294967296]", 0),
        entry("[]", 0),
    ] {
        write(header.len() as u64, &header);
    }
    for len in [u64::MAX, 1 << 40, u64::MAX - 8] {
        assert!(matches!(write(len, "{}"), ModelError::Damaged { .. }));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn no_changed_byte_of_a_header_causes_a_panic(place: prop::sample::Index, byte: u8) {
        thread_local! {
            static WHOLE: (Folder, Vec<u8>) = {
                let folder = Folder::with(&[("num_hidden_layers", json!(1))]);
                let bytes = fs::read(folder.weights()).unwrap();
                (folder, bytes)
            };
        }
        WHOLE.with(|(folder, whole)| {
            let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
            let mut bytes = whole.clone();
            bytes[place.index(header)] = byte;
            let path = folder.path().join("changed.safetensors");
            fs::write(&path, bytes).unwrap();
            fs::rename(path, folder.weights()).unwrap();
            let _ = folder.load();
        });
    }
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-4i64..70).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop_oneof!["llama3|linear|dynamic|yarn|longrope|silu|default|float32|mitchell|rms", ".{0,6}"]
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("rope_type|factor|rope_theta|short_factor|long_factor|original_max_position_embeddings|beta_fast|mscale|mask_token_id|[a-z]{1,4}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_value_of_a_config_causes_a_panic(
        case: prop::sample::Index, changes in proptest::collection::vec((any::<prop::sample::Index>(), json_value()), 1..4),
    ) {
        let mut models: Vec<_> = fs::read_dir(dlm_golden::folder().join("models")).unwrap().map(|e| e.unwrap().path()).collect();
        models.retain(|path| path.join("config.json").exists());
        models.sort();
        let path = models[case.index(models.len())].join("config.json");
        let mut object = dlm_golden::json(&path).as_object().unwrap().clone();
        let keys: Vec<String> = object.keys().cloned().chain(
            ["sliding_window", "layer_types", "rope_scaling", "rope_parameters", "diffusion", "n_kv_heads", "head_dim"].map(str::to_owned),
        ).collect();
        for (key, value) in changes {
            object.insert(keys[key.index(keys.len())].clone(), value);
        }
        if let Ok(config) = ModelConfig::from_json(object, &path) {
            let _ = config.to_json();
        }
    }

    #[test]
    fn no_rope_scaling_causes_a_panic_in_a_model_that_it_gives(
        kind in prop_oneof![Just("linear"), Just("dynamic"), Just("yarn"), Just("longrope"), Just("llama3")],
        numbers in proptest::collection::btree_map(
            "factor|beta_fast|beta_slow|mscale|mscale_all_dim|attention_factor|low_freq_factor|high_freq_factor",
            prop_oneof![1e-3..1e3f64, any::<f64>()], 0..6),
        lists in proptest::collection::vec(prop_oneof![1.0..9.0f64, any::<f64>()], 8),
        original in prop_oneof![1i64..90, any::<i64>()], theta in prop_oneof![1.0..1e6f64, any::<f64>()],
        truncate: bool, head_dim in 1i64..9,
    ) {
        let mut scaling = serde_json::Map::from_iter(numbers.into_iter().map(|(key, number)| (key, json!(number))));
        scaling.insert("rope_type".to_owned(), json!(kind));
        scaling.insert("original_max_position_embeddings".to_owned(), json!(original));
        match kind {
            "longrope" => {
                scaling.insert("short_factor".to_owned(), json!(lists[..4]));
                scaling.insert("long_factor".to_owned(), json!(lists[4..]));
            }
            "yarn" => drop(scaling.insert("truncate".to_owned(), json!(truncate))),
            _ => {}
        }
        let changes = [
            ("rope_theta", json!(theta)), ("rope_scaling", Value::Object(scaling)), ("head_dim", json!(head_dim)),
            ("num_hidden_layers", json!(1)), ("max_position_embeddings", json!(8)),
        ];
        if let Ok(config) = config_with(&changes) {
            let mut model = Model::from_config(config, 1, &LoadOptions::default()).unwrap();
            model.set_diffusion(DiffusionInfo::new(0, false)).unwrap();
            let len = model.max_seq_len().min(12);
            let ids = Tensor::zeros([1, len], (Kind::Int64, Device::Cpu));
            let _ = model.hidden_states(&DenoiserInput::new(&ids, &AttentionLayout::full()));
        }
    }

    #[test]
    fn no_value_of_an_adapter_config_or_an_index_causes_a_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), json_value()), 1..4), index in json_value(),
    ) {
        let golden = dlm_golden::model("llama_lora_adapter");
        let mut object = dlm_golden::json(&golden.join("adapter_config.json")).as_object().unwrap().clone();
        let keys: Vec<String> = object.keys().cloned().collect();
        for (key, value) in changes {
            let key = &keys[key.index(keys.len())];
            // A rank or a token that fits gives a model; that takes long, and is not looked for here.
            object.insert(key.clone(), value);
        }
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("adapter_config.json"), Value::Object(object).to_string()).unwrap();
        let _ = common::model_with(&[("num_hidden_layers", json!(1))]).load_adapter(folder.path());
        fs::write(folder.path().join("config.json"), Value::Object(common::config_json()).to_string()).unwrap();
        fs::write(folder.path().join("model.safetensors.index.json"), json!({ "weight_map": index }).to_string()).unwrap();
        prop_assert!(Model::load(folder.path(), &LoadOptions::default()).is_err());
    }

    #[test]
    fn no_header_of_a_safetensors_file_causes_a_panic(
        entries in proptest::collection::btree_map("model.norm.weight|lm_head.weight|[a-z.]{0,9}|__metadata__", (
            prop_oneof![Just(json!("F32")), Just(json!("F4")), Just(json!("BOOL")), json_value()],
            prop_oneof![proptest::collection::vec(any::<u64>(), 0..3).prop_map(Value::from), json_value()],
            prop_oneof![proptest::collection::vec(0u64..256, 2).prop_map(Value::from), json_value()],
        ), 0..4),
        lie in -9i64..9, data in 0usize..256,
    ) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), serde_json::to_vec(&common::config_json()).unwrap()).unwrap();
        let entry = |(name, (dtype, shape, offsets))| (name, json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets }));
        let header = Value::Object(entries.into_iter().map(entry).collect()).to_string();
        let len = (header.len() as i64).wrapping_add(lie) as u64;
        let bytes = [&len.to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat();
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        prop_assert!(Model::load(folder.path(), &LoadOptions::default()).is_err());
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_an_error_with_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, b"").unwrap();
    let error = model_with(&[]).save(&file.join("model"), Kind::Float, &[]).unwrap_err();
    assert!(matches!(error, ModelError::Write(_)) && error.to_string().contains("file"), "{error}");
}

#[test]
fn parameters_come_back_in_place_from_a_folder_of_the_same_shapes() {
    let saved = Folder::with(&[]);
    let expected = saved.load().unwrap();
    let mut model = Model::from_config(config_with(&[]).unwrap(), 8, &LoadOptions::default()).unwrap();
    model.train(true);
    let shared = model.named_parameters()[0].1.shallow_clone();
    model.load_parameters(saved.path()).unwrap();
    assert_same_parameters(&model, &expected);
    assert_eq!(shared, expected.named_parameters()[0].1);
    assert!(model.is_trainable());
    let other = Folder::with(&[("intermediate_size", json!(64))]);
    assert!(matches!(model.load_parameters(other.path()), Err(ModelError::Tensors { .. })));
    assert_same_parameters(&model, &expected);
}

#[test]
fn parameters_have_the_names_and_the_order_of_transformers() {
    let names = |changes| -> Vec<String> {
        let model = model_with(changes);
        model.named_parameters().iter().map(|(name, _)| name.clone()).collect()
    };
    let block = |i: usize| {
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj"]
            .into_iter()
            .chain(["mlp.down_proj", "input_layernorm", "post_attention_layernorm"])
            .map(move |part| format!("model.layers.{i}.{part}.weight"))
    };
    let mut expected = vec!["model.embed_tokens.weight".to_owned()];
    expected.extend((0..2).flat_map(block));
    expected.push("model.norm.weight".to_owned());
    assert_eq!(names(&[TIED]), expected);
    expected.push("lm_head.weight".to_owned());
    assert_eq!(names(&[]), expected);
    assert!(names(&[("mlp_bias", json!(true))]).contains(&"model.layers.1.mlp.down_proj.bias".to_owned()));
}

#[test]
fn golden_folders_are_saved_with_every_key_they_came_with() {
    let models = fs::read_dir(dlm_golden::folder().join("models")).unwrap().map(|entry| entry.unwrap().path());
    let mut saved = 0;
    for path in models.filter(|path| path.join("config.json").exists()) {
        let model = Model::load(&path, &LoadOptions::default()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        model.save(folder.path(), model.config().stored_kind.unwrap_or(Kind::Float), &[]).unwrap();
        assert_same_json(&path.join("config.json"), &folder.path().join("config.json"));
        assert_same_parameters(&Model::load(folder.path(), &LoadOptions::default()).unwrap(), &model);
        saved += 1;
    }
    assert!(saved > 0);
}

fn assert_same_json(found: &Path, expected: &Path) {
    assert_eq!(dlm_golden::json(found), dlm_golden::json(expected));
}
