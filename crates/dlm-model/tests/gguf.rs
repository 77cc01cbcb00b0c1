//! GGUF files: what is read of them, what is refused, and that nothing in them causes a panic.

mod common;
#[path = "common/gguf.rs"]
mod writer;

use common::{assert_same_parameters, config_with, model_with};
use dlm_model::{Gguf, LoadOptions, Model, ModelError, RotaryScaling};
use proptest::prelude::*;
use serde_json::{Value as Json, json};
use std::fs;
use tch::Kind;
use writer::{Contents, Value};

fn read(contents: &Contents) -> dlm_model::Result<Gguf> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    contents.write(&path);
    Gguf::read(&path, &LoadOptions::default())
}

fn with(change: impl FnOnce(&mut Contents)) -> dlm_model::Result<Gguf> {
    let mut contents = Contents::of(&model_with(&[]), "llama");
    change(&mut contents);
    read(&contents)
}

#[test]
fn golden_models_come_back_from_the_gguf_that_they_were_written_to() {
    let pairs = [
        ("llama", "llama"),
        ("mistral", "llama"),
        ("qwen2", "qwen2"),
        ("qwen3", "qwen3"),
        ("dream", "dream"),
        ("llada", "llada"),
    ];
    for (name, architecture) in pairs {
        let folder = dlm_golden::model(name);
        let model = Model::load(&folder, &LoadOptions::default()).unwrap();
        let found = read(&Contents::of(&model, architecture)).unwrap();
        assert_same_parameters(&found.model, &model);
        let (found, expected) = (found.model.config(), model.config());
        assert_eq!(found.tie_word_embeddings, expected.tie_word_embeddings, "{name}");
        assert_eq!((found.rms_norm_eps, &found.rotary), (expected.rms_norm_eps, &expected.rotary), "{name}");
        if ["dream", "llada"].contains(&name) {
            assert_eq!(found.family.name, name);
            assert_eq!(found.mask_token_id, expected.mask_token_id);
            assert!(found.mask_token_id.is_some());
        }
    }
}

#[test]
fn a_tokenizer_comes_along_with_its_special_tokens_and_template() {
    let found = with(|_| {}).unwrap();
    let file = |name: &str| -> Json {
        let (_, content) = found.companions.iter().find(|(known, _)| known == name).unwrap();
        serde_json::from_slice(content).unwrap()
    };
    let tokenizer = file("tokenizer.json");
    // A token of the kind "unused" is none.
    assert_eq!(tokenizer["model"]["vocab"], json!({ "<end>": 0, "a": 1, "b": 2, "ab": 3 }));
    assert_eq!(tokenizer["model"]["merges"], json!([["a", "b"]]));
    assert_eq!(tokenizer["added_tokens"][0]["content"], "<end>");
    assert_eq!(tokenizer["post_processor"], Json::Null);
    let settings = file("tokenizer_config.json");
    assert_eq!((&settings["eos_token"], &settings["pad_token"]), (&json!("<end>"), &json!("<end>")));
    assert_eq!((&settings["chat_template"], settings.get("bos_token")), (&json!("{{ messages }}"), None));
    assert_eq!(found.kind, Kind::Float);

    let framed = with(|contents| {
        contents.metadata.insert("tokenizer.ggml.bos_token_id".to_owned(), Value::U32(3));
        contents.metadata.insert("tokenizer.ggml.add_bos_token".to_owned(), Value::Bool(true));
    });
    let content = &framed.unwrap().companions[0].1;
    let tokenizer: Json = serde_json::from_slice(content).unwrap();
    assert_eq!(tokenizer["post_processor"]["single"][0]["SpecialToken"]["id"], "ab");
    assert_eq!(tokenizer["post_processor"]["special_tokens"]["ab"]["ids"], json!([3]));
}

#[test]
fn linear_and_yarn_scaling_of_positions_are_read_and_others_are_refused() {
    let scaled = |kind: &str, more: &[(&str, f32)]| {
        with(|contents| {
            let mut put =
                |key: &str, value: Value| contents.metadata.insert(format!("llama.rope.scaling.{key}"), value);
            put("type", Value::Text(kind.to_owned()));
            put("factor", Value::F32(4.0));
            put("original_context_length", Value::U32(16));
            more.iter().for_each(|(key, value)| _ = put(key, Value::F32(*value)));
        })
    };
    let scaling = |found: dlm_model::Result<Gguf>| found.unwrap().model.config().rotary.scaling.clone();
    assert_eq!(scaling(scaled("linear", &[])), RotaryScaling::Linear { factor: 4.0 });
    // As the same settings in a config.json.
    let yarn = |more: Json| {
        let mut settings = json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16 });
        settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config_with(&[("rope_scaling", settings)]).unwrap().rotary.scaling
    };
    assert_eq!(scaling(scaled("yarn", &[])), yarn(json!({})));
    assert_eq!(
        scaling(scaled("yarn", &[("yarn_beta_fast", 20.0), ("yarn_beta_slow", 2.0), ("attn_factor", 1.0)])),
        yarn(json!({ "beta_fast": 20.0, "beta_slow": 2.0 }))
    );
    for key in ["attn_factor", "yarn_ext_factor", "yarn_attn_factor", "yarn_log_multiplier"] {
        let error = scaled("yarn", &[(key, 0.5)]).unwrap_err();
        assert!(matches!(&error, ModelError::UnsupportedGguf { .. }) && error.to_string().contains(key), "{error}");
    }
    assert!(matches!(scaled("longrope", &[]), Err(ModelError::UnsupportedGguf { .. })));
    // Files of 2023 give a factor without a type, or under an older name.
    let old = |key: &str, factor: f32| {
        scaling(with(|contents| {
            contents.metadata.insert(format!("llama.rope.{key}"), Value::F32(factor));
        }))
    };
    assert_eq!(old("scaling.factor", 4.0), RotaryScaling::Linear { factor: 4.0 });
    assert_eq!(old("scale_linear", 8.0), RotaryScaling::Linear { factor: 8.0 });
    assert_eq!(old("scale_linear", 1.0), RotaryScaling::Default);
    let error = with(|contents| {
        contents.metadata.insert("llama.rope.scaling.type".to_owned(), Value::Text("yarn".to_owned()));
    });
    assert!(error.unwrap_err().to_string().contains("it has no `llama.rope.scaling.factor`"));
}

#[test]
fn the_width_of_heads_comes_from_either_key_or_from_the_sizes_and_has_to_be_one() {
    let width = |changes: &[(&str, Json)], keys: &[(&str, Option<Value>)]| {
        let mut contents = Contents::of(&model_with(changes), "llama");
        for (key, value) in keys {
            match value {
                Some(value) => contents.metadata.insert(format!("llama.{key}"), value.clone()),
                None => contents.metadata.remove(&format!("llama.{key}")),
            };
        }
        read(&contents).map(|found| found.model.config().head_dim)
    };
    let (unusual, int) = ([("head_dim", json!(16))], |n| Some(Value::U32(n)));
    assert_eq!(width(&[], &[("attention.key_length", None)]).unwrap(), 8);
    assert_eq!(width(&unusual, &[]).unwrap(), 16);
    let by_rotation = [("attention.key_length", None), ("rope.dimension_count", int(16))];
    assert_eq!(width(&unusual, &by_rotation).unwrap(), 16);
    let error = width(&unusual, &[("rope.dimension_count", int(8))]).unwrap_err().to_string();
    assert!(error.contains("number of rotated dimensions"), "{error}");
    for odd in [0, 7, 1 << 31] {
        let error = width(&[], &[("attention.key_length", int(odd))]).unwrap_err().to_string();
        assert!(error.contains(&format!("its heads are {odd} wide")), "{error}");
    }
    let llada = Model::load(&dlm_golden::model("llada"), &LoadOptions::default()).unwrap();
    let mut contents = Contents::of(&llada, "llada");
    contents.metadata.remove("llada.attention.key_length");
    contents.metadata.insert("llada.rope.dimension_count".to_owned(), Value::U32(12));
    assert_same_parameters(&read(&contents).unwrap().model, &llada);
    contents.metadata.insert("llada.rope.dimension_count".to_owned(), Value::U32(16));
    assert!(read(&contents).unwrap_err().to_string().contains("is 16, but read is 48 divided by 4"));
}

/// The factors that llama.cpp's converter writes for Llama 3's scaling from 8192 positions.
fn llama3_factors(factor: f64, theta: f64, head_dim: usize) -> Vec<f32> {
    let wave = |i: usize| 2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / head_dim as f64);
    let of_wave = |wave: f64| {
        let smooth = (8192.0 / wave - 1.0) / 3.0;
        match wave {
            wave if wave < 2048.0 => 1.0,
            wave if wave > 8192.0 => factor,
            _ => 1.0 / ((1.0 - smooth) / factor + smooth),
        }
    };
    (0..head_dim / 2).map(|i| of_wave(wave(i)) as f32).collect()
}

#[test]
fn llama_3s_factors_of_positions_are_recognised_and_others_are_refused() {
    let changes =
        [("rope_theta", json!(500_000.0)), ("head_dim", json!(32)), ("max_position_embeddings", json!(131_072))];
    let with_factors = |factors: &[f32], more: &[(&str, Value)]| {
        let mut contents = Contents::of(&model_with(&changes), "llama");
        let bytes = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
        contents.tensors.push(("rope_freqs.weight".to_owned(), 0, vec![factors.len() as i64], bytes));
        contents.metadata.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        read(&contents)
    };
    for factor in [8.0, 32.0] {
        let config = with_factors(&llama3_factors(factor, 500_000.0, 32), &[]).unwrap().model.config().clone();
        let expected =
            RotaryScaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor: 4.0, original_len: 8192 };
        assert_eq!(config.rotary.scaling, expected);
    }
    let error = with_factors(&llama3_factors(7.0, 500_000.0, 32), &[]).unwrap_err().to_string();
    assert!(error.contains("its own factors, but read is Llama 3.1's or 3.2's"), "{error}");
    let error = with_factors(&[1.0; 15], &[]).unwrap_err().to_string();
    assert!(error.contains("shape of `rope_freqs.weight`") && error.contains("[15]"), "{error}");
    // Neither of two scalings is dropped.
    let linear =
        [("llama.rope.scaling.type", Value::Text("linear".to_owned())), ("llama.rope.scaling.factor", Value::F32(2.0))];
    let error = with_factors(&llama3_factors(8.0, 500_000.0, 32), &linear).unwrap_err().to_string();
    assert!(error.contains("is linear and factors of its own"), "{error}");
}

#[test]
fn the_row_of_a_padding_token_trains_unless_the_reference_holds_it_still() {
    let pad = |name: &str, architecture: &str| {
        let model = Model::load(&dlm_golden::model(name), &LoadOptions::default()).unwrap();
        let mut contents = Contents::of(&model, architecture);
        contents.metadata.insert("tokenizer.ggml.padding_token_id".to_owned(), Value::U32(3));
        read(&contents).unwrap().model.config().pad_token_id
    };
    assert_eq!((pad("qwen2", "qwen2"), pad("dream", "dream")), (None, Some(3)));
}

#[test]
fn tensors_that_share_bytes_and_lists_beyond_any_vocabulary_are_refused() {
    let mut bytes = Contents::of(&model_with(&[]), "llama").bytes();
    // The offset stands behind the name, the shape and the format of a tensor.
    let name = b"blk.0.ffn_up.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len() + 4 + 2 * 8 + 4;
    bytes[at..at + 8].copy_from_slice(&64u64.to_le_bytes());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    let error = Gguf::read(&path, &LoadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("overlap") && error.contains("`blk.0.ffn_up.weight`"), "{error}");
    let error = with(|contents| {
        contents.metadata.insert("llama.numbers".to_owned(), Value::I32s(vec![0; (1 << 24) + 1]));
    });
    assert!(error.unwrap_err().to_string().contains("a list of 16777217 values, more than 16777216"));
}

#[test]
fn a_shift_that_the_class_does_not_say_is_kept_with_the_mask_token() {
    let shifted = |name: &str, architecture: &str, shift: bool| {
        let model = Model::load(&dlm_golden::model(name), &LoadOptions::default()).unwrap();
        let mut contents = Contents::of(&model, architecture);
        contents.metadata.insert("diffusion.shift_logits".to_owned(), Value::Bool(shift));
        contents
    };
    let of = |contents: &Contents| read(contents).unwrap().model.config().diffusion.clone();
    assert!(of(&shifted("dream", "dream", true)).is_none_or(|info| info.logits_shift));
    assert!(of(&shifted("llada", "llada", false)).is_none_or(|info| !info.logits_shift));
    let unusual = of(&shifted("dream", "dream", false)).unwrap();
    assert_eq!((unusual.mask_token_id, unusual.logits_shift), (349, false));
    assert!(of(&shifted("llada", "llada", true)).unwrap().logits_shift);
    let mut contents = shifted("dream", "dream", false);
    contents.metadata.remove("tokenizer.ggml.mask_token_id");
    assert!(read(&contents).unwrap_err().to_string().contains("it has no `tokenizer.ggml.mask_token_id`"));
}

#[test]
fn what_is_not_read_is_refused_with_what_is() {
    let text = |key: &'static str, value: &'static str| {
        let error = with(|contents| {
            contents.metadata.insert(key.to_owned(), Value::Text(value.to_owned()));
        });
        error.unwrap_err().to_string()
    };
    assert!(text("general.architecture", "phi3").contains("is phi3, but read is llama, qwen2, qwen3, dream or llada"));
    assert!(text("tokenizer.ggml.model", "bert").contains("the tokenizer of"));
    assert!(text("tokenizer.ggml.pre", "falcon").contains("smollm"));
    let error = with(|contents| contents.tensors[1].1 = 16).unwrap_err();
    assert!(error.to_string().contains("is IQ2_XXS, but read is F32, F16, Q4_0"), "{error}");
    let error = with(|contents| contents.tensors[1].1 = 999).unwrap_err();
    assert!(error.to_string().contains("number 999"), "{error}");
    let error = with(|contents| {
        contents.metadata.insert("llama.expert_count".to_owned(), Value::U32(8));
    });
    assert!(error.unwrap_err().to_string().contains("number of experts"));
}

#[test]
fn tensors_and_metadata_must_fit() {
    let error = with(|contents| {
        contents.tensors.remove(0);
    });
    assert!(matches!(error, Err(ModelError::DamagedGguf { .. }))); // no embedding: no vocabulary
    let error = with(|contents| {
        contents.tensors.remove(1);
        contents.tensors[1].0 = "blk.0.attn_x.weight".to_owned();
        contents.tensors[2].2.reverse();
    });
    let message = error.unwrap_err().to_string();
    assert!(message.contains("2 missing: `model.layers.0.self_attn.q_proj.weight`"), "{message}");
    assert!(message.contains("1 unexpected: `blk.0.attn_x.weight`") && message.contains("1 misshapen"), "{message}");
    let error = with(|contents| {
        contents.metadata.remove("llama.block_count");
    });
    assert!(error.unwrap_err().to_string().contains("it has no `llama.block_count`"));
    let error = with(|contents| {
        contents.metadata.insert("llama.block_count".to_owned(), Value::Text("two".to_owned()));
    });
    assert!(error.unwrap_err().to_string().contains("is not an integer"));
    let error = with(|contents| {
        contents.metadata.insert("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(77));
    });
    assert!(error.is_err());
}

#[test]
fn a_gguf_file_cut_anywhere_is_refused() {
    let whole = Contents::of(&model_with(&[]), "llama").bytes();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    for len in (0..whole.len()).step_by(997).chain([0, 3, 4, 23, whole.len() - 33]) {
        fs::write(&path, &whole[..len]).unwrap();
        let error = Gguf::read(&path, &LoadOptions::default()).unwrap_err();
        assert!(matches!(error, ModelError::DamagedGguf { .. } | ModelError::Read { .. }), "{len}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn no_changed_bytes_of_a_gguf_file_cause_a_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), prop_oneof![Just(255u8), Just(0), any::<u8>()]), 1..9),
        is_sentencepiece in any::<bool>(),
    ) {
        thread_local! {
            static WHOLE: [Vec<u8>; 2] = [false, true].map(|is_sentencepiece| {
                let mut contents = Contents::of(&model_with(&[("num_hidden_layers", json!(1))]), "llama");
                if is_sentencepiece {
                    let mut put = |key: &str, value| contents.metadata.insert(format!("tokenizer.ggml.{key}"), value);
                    put("model", Value::Text("llama".to_owned()));
                    put("scores", Value::F32s(vec![0.0, -1.0, -2.0, -1.0, 0.0]));
                }
                let ones = 1f32.to_le_bytes().repeat(4);
                contents.tensors.push(("rope_freqs.weight".to_owned(), 0, vec![4], ones));
                contents.bytes()
            });
        }
        let mut bytes = WHOLE.with(|whole| whole[usize::from(is_sentencepiece)].clone());
        // The header is where lengths and kinds are.
        let header = bytes.len().min(2500);
        for (place, byte) in changes {
            bytes[place.index(header)] = byte;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        fs::write(&path, bytes).unwrap();
        let _ = Gguf::read(&path, &LoadOptions::default());
    }
}
