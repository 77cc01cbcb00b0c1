//! What config.json may say, in both generations of its keys, and what is refused.

mod common;

use common::{config_json, config_with};
use dlm_model::{DiffusionInfo, FAMILIES, Initializer, ModelConfig, ModelError, PRESETS, RotaryScaling};
use serde_json::{Value, json};
use std::path::Path;
use tch::Kind;

fn refused(changes: &[(&str, Value)]) -> String {
    config_with(changes).unwrap_err().to_string()
}

#[test]
fn absent_keys_mean_what_they_mean_in_transformers() {
    let mut object = config_json();
    for key in ["num_key_value_heads", "max_position_embeddings", "initializer_range", "rms_norm_eps", "rope_theta"] {
        object.remove(key);
    }
    object.remove("tie_word_embeddings");
    let config = ModelConfig::from_json(object, Path::new("config.json")).unwrap();
    assert_eq!((config.num_key_value_heads, config.head_dim), (4, 8));
    assert_eq!((config.max_position_embeddings, config.initializer_range, config.rms_norm_eps), (2048, 0.02, 1e-6));
    assert_eq!((config.rotary.theta, config.rotary.scaling), (10_000.0, RotaryScaling::Default));
    assert!(!config.tie_word_embeddings && !config.has_qkv_bias && !config.has_mlp_bias);
    assert_eq!((config.stored_kind, config.pad_token_id, config.diffusion), (None, None, None));
}

#[test]
fn both_generations_of_rotary_keys_say_the_same() {
    let llama3 = json!({ "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32 });
    let with = |extra: Value| {
        let mut object = llama3.clone();
        object.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        object
    };
    let old =
        config_with(&[("rope_theta", json!(5e5)), ("rope_scaling", with(json!({ "rope_type": "llama3" })))]).unwrap();
    let older =
        config_with(&[("rope_theta", json!(500_000)), ("rope_scaling", with(json!({ "type": "llama3" })))]).unwrap();
    let parameters = with(json!({ "rope_type": "llama3", "rope_theta": 5e5 }));
    let new = config_with(&[("rope_theta", Value::Null), ("rope_parameters", parameters)]).unwrap();
    let scaling = RotaryScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_len: 32 };
    for config in [old, older, new] {
        assert_eq!((config.rotary.theta, config.rotary.scaling), (5e5, scaling.clone()));
    }
    let linear = config_with(&[("rope_scaling", json!({ "type": "linear", "factor": 2.0 }))]).unwrap();
    assert_eq!(linear.rotary.scaling, RotaryScaling::Linear { factor: 2.0 });
}

#[test]
fn a_rotary_type_that_is_not_computed_is_refused_with_those_that_are() {
    let message = refused(&[("rope_scaling", json!({ "rope_type": "mrope", "factor": 4.0 }))]);
    assert_eq!(
        message,
        "`rope_scaling.rope_type` is \"mrope\" in `config.json`, but must be `default`, `linear`, `dynamic`, `yarn`, `longrope` or \
         `llama3`"
    );
    let message =
        refused(&[("rope_scaling", json!({ "rope_type": "linear", "factor": 2.0, "attention_factor": 1.5 }))]);
    assert!(message.contains("`rope_scaling.attention_factor`"), "{message}");
    let message = refused(&[("rope_scaling", json!({ "rope_type": "llama3", "factor": 2.0 }))]);
    assert_eq!(message, "`config.json` has no `rope_scaling.low_freq_factor`");
    let both = [("rope_scaling", json!({ "type": "default" })), ("rope_parameters", json!({ "rope_type": "default" }))];
    assert!(refused(&both).contains("absent beside `rope_parameters`"));
    let clash = [("rope_theta", json!(1e4)), ("rope_parameters", json!({ "rope_theta": 1e6 }))];
    assert!(refused(&clash).contains("`rope_parameters.rope_theta` is 1000000.0"));
}

#[test]
fn every_key_of_a_rope_scaling_is_read_or_refused() {
    let scaling = |object: Value| config_with(&[("rope_scaling", object)]).map(|config| config.rotary.scaling);
    let lists = json!({ "short_factor": [1, 1, 1, 1], "long_factor": [1, 2, 3, 4] });
    let with = |base: &Value, key: &str, value: Value| {
        let mut object = base.clone();
        object[key] = value;
        scaling(object)
    };
    // Where nothing is said, the length before scaling is the longest one, and factors follow from the lengths.
    let yarn = json!({ "rope_type": "yarn" });
    let plain = scaling(yarn.clone()).unwrap();
    let RotaryScaling::Yarn { factor, original_len, .. } = plain else { panic!("{plain:?}") };
    assert_eq!((factor, original_len), (1.0, 64));
    let RotaryScaling::Yarn { factor, attention_factor, .. } =
        with(&yarn, "original_max_position_embeddings", json!(16)).unwrap()
    else {
        panic!()
    };
    assert_eq!((factor, attention_factor), (4.0, 0.1 * 4f64.ln() + 1.0));
    for (key, value) in [
        ("factor", json!(2.0)),
        ("original_max_position_embeddings", json!(32)),
        ("attention_factor", json!(0.9)),
        ("beta_fast", json!(16)),
        ("beta_slow", json!(2.5)),
        ("truncate", json!(false)),
    ] {
        assert_ne!(with(&yarn, key, value).unwrap(), plain, "{key}");
    }
    let mut longrope = json!({ "rope_type": "longrope", "original_max_position_embeddings": 16 });
    longrope.as_object_mut().unwrap().extend(lists.as_object().unwrap().clone());
    let plain = scaling(longrope.clone()).unwrap();
    for (key, value) in [
        ("factor", json!(2.0)),
        ("original_max_position_embeddings", json!(32)),
        ("attention_factor", json!(1.5)),
        ("short_factor", json!([1, 1, 1, 2])),
        ("long_factor", json!([1, 1, 1, 2])),
    ] {
        assert_ne!(with(&longrope, key, value).unwrap(), plain, "{key}");
    }
    // One beside the object counts more than one in it, as in transformers.
    let outer = config_with(&[("rope_scaling", longrope.clone()), ("original_max_position_embeddings", json!(8))]);
    let RotaryScaling::LongRope { original_len: 8, .. } = outer.unwrap().rotary.scaling else { panic!() };

    for (base, key, value, accepted) in [
        (&yarn, "factor", json!(0.5), "a number of at least 1"),
        (&yarn, "beta_fast", json!(0.5), "above `beta_slow`, which is 1"),
        (&yarn, "attention_factor", json!(-1), "above 0"),
        (&yarn, "truncate", json!(1), "true or false"),
        (&longrope, "short_factor", json!([1, 2]), "a list of 4 numbers above 0"),
        (&longrope, "long_factor", json!([1, 2, 3, 0]), "a list of 4 numbers above 0"),
        (&json!({ "rope_type": "dynamic" }), "factor", json!("x"), "a number of at least 1"),
        (&json!({ "rope_type": "dynamic", "factor": 2 }), "original_max_position_embeddings", json!(9), "64 or absent"),
        (&json!({ "rope_type": "default" }), "partial_rotary_factor", json!(0.5), "1.0 or absent"),
    ] {
        let message = with(base, key, value).unwrap_err().to_string();
        assert!(message.starts_with(&format!("`rope_scaling.{key}` is ")) && message.contains(accepted), "{message}");
    }
    for (object, key) in [
        (json!({ "rope_type": "dynamic" }), "factor"),
        (json!({ "rope_type": "longrope", "short_factor": [1, 1, 1, 1] }), "long_factor"),
    ] {
        assert!(matches!(scaling(object), Err(ModelError::MissingKey { key: found, .. }) if found.ends_with(key)));
    }
    for (kind, key) in [("dynamic", "beta_fast"), ("llama3", "mscale"), ("linear", "short_factor")] {
        let object = json!({ "rope_type": kind, "factor": 2, "low_freq_factor": 1, "high_freq_factor": 2, key: 1 });
        let refused = scaling(object).unwrap_err();
        assert!(matches!(refused, ModelError::UnknownKey { .. }), "{kind} {key}: {refused}");
    }
}

#[test]
fn scaling_lengthens_what_is_read_where_the_reference_goes_beyond_the_length_that_is_named() {
    let read = |object: Value| config_with(&[("rope_scaling", object)]).unwrap().max_seq_len();
    assert_eq!(read(json!({ "rope_type": "dynamic", "factor": 2.5 })), 160);
    assert_eq!(read(json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64 })), 256);
    assert_eq!(read(json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16 })), 64);
    assert_eq!(read(json!({ "rope_type": "linear", "factor": 4.0 })), 64);
}

#[test]
fn every_key_of_a_config_shows_in_what_is_computed() {
    type Field = fn(&ModelConfig) -> String;
    let names = |architecture: &str, model_type: &str| {
        vec![("architectures", json!([architecture])), ("model_type", json!(model_type))]
    };
    let (llama, qwen2) = (names("LlamaForCausalLM", "llama"), names("Qwen2ForCausalLM", "qwen2"));
    let (qwen3, mistral) = (names("Qwen3ForCausalLM", "qwen3"), names("MistralForCausalLM", "mistral"));
    let biases: Field = |c| format!("{} {} {}", c.has_qkv_bias, c.has_output_bias, c.has_mlp_bias);
    type Case<'a> = (&'a [(&'a str, Value)], &'a str, Value, Field, &'a str);
    let cases: Vec<Case<'_>> = vec![
        (&llama, "vocab_size", json!(60), |c| c.vocab_size.to_string(), "60"),
        (&llama, "hidden_size", json!(64), |c| format!("{} {}", c.hidden_size, c.head_dim), "64 16"),
        (&llama, "intermediate_size", json!(80), |c| c.intermediate_size.to_string(), "80"),
        (&llama, "num_hidden_layers", json!(3), |c| c.num_hidden_layers.to_string(), "3"),
        (&llama, "num_attention_heads", json!(8), |c| format!("{} {}", c.num_attention_heads, c.head_dim), "8 4"),
        (&llama, "num_key_value_heads", json!(1), |c| c.num_key_value_heads.to_string(), "1"),
        (&llama, "head_dim", json!(16), |c| c.head_dim.to_string(), "16"),
        (&llama, "hidden_act", json!("gelu_new"), |c| format!("{:?}", c.hidden_act), "GeluTanh"),
        (&llama, "max_position_embeddings", json!(9), |c| c.max_seq_len().to_string(), "9"),
        (&llama, "initializer_range", json!(0.5), |c| c.initializer_range.to_string(), "0.5"),
        (&llama, "rms_norm_eps", json!(1e-3), |c| c.rms_norm_eps.to_string(), "0.001"),
        (&llama, "tie_word_embeddings", json!(true), |c| c.tie_word_embeddings.to_string(), "true"),
        (&llama, "rope_theta", json!(5e5), |c| c.rotary.theta.to_string(), "500000"),
        (&llama, "attention_bias", json!(true), biases, "true true false"),
        (&llama, "mlp_bias", json!(true), biases, "false false true"),
        (&qwen3, "attention_bias", json!(true), biases, "true true false"),
        (&mistral, "sliding_window", json!(7), |c| format!("{:?}", c.sliding_windows), "[Some(7), Some(7)]"),
        (&llama, "pad_token_id", json!(3), |c| format!("{:?}", c.pad_token_id), "Some(3)"),
        (&llama, "eos_token_id", json!(3), |c| format!("{:?}", c.eos_token_ids), "[3]"),
        (&llama, "mask_token_id", json!(3), |c| format!("{:?}", c.mask_token_id), "Some(3)"),
        (&llama, "dtype", json!("float16"), |c| format!("{:?}", c.stored_kind), "Some(Half)"),
        (&llama, "torch_dtype", json!("bfloat16"), |c| format!("{:?}", c.stored_kind), "Some(BFloat16)"),
    ];
    for (names, key, value, field, expected) in cases {
        let config = config_with(&[names, &[(key, value)]].concat()).unwrap();
        assert_eq!(field(&config), expected, "{key}");
        assert_ne!(field(&config_with(names).unwrap()), expected, "{key} is told apart by nothing");
    }
    assert_eq!(biases(&config_with(&qwen2).unwrap()), "true false false");
    assert!(config_with(&qwen3).unwrap().has_qk_norm && !config_with(&qwen2).unwrap().has_qk_norm);
    // Families without a key refuse it rather than pass it over.
    for (names, key) in
        [(&mistral, "attention_bias"), (&qwen2, "attention_bias"), (&qwen3, "mlp_bias"), (&mistral, "mlp_bias")]
    {
        let error = config_with(&[&names[..], &[(key, json!(true))]].concat()).unwrap_err();
        assert!(matches!(error, ModelError::UnknownKey { .. }), "{error}");
    }
}

#[test]
fn values_that_ask_for_another_computation_are_refused_by_name() {
    let cases = [
        ("attention_dropout", json!(0.1), "0.0 or absent"),
        ("hidden_act", json!("quick_gelu"), "`silu`"),
        ("quantization_config", json!({ "bits": 4 }), "absent"),
        ("rope_interleaved", json!(true), "false or absent"),
        ("use_mrope", json!(true), "false or absent"),
        ("head_dim", json!(7), "even"),
        ("num_key_value_heads", json!(3), "a divisor of `num_attention_heads`, which is 4"),
        ("num_attention_heads", json!(6), "a multiple"),
        ("vocab_size", json!(0), "an integer from 1"),
        ("vocab_size", json!("50"), "an integer from 1"),
        ("hidden_size", json!(1u64 << 60), "an integer from 1"),
        ("num_hidden_layers", json!(1 << 30), "an integer from 1"),
        ("rms_norm_eps", json!(-1.0), "at least 0"),
        ("pad_token_id", json!(50), "an integer from -1 to 49"),
        ("torch_dtype", json!("int8"), "`float32`, `bfloat16` or `float16`"),
        ("tie_word_embeddings", json!("yes"), "true or false"),
        ("sliding_window", json!(16), "at least `max_position_embeddings`, which is 64"),
        ("layer_types", json!(["full_attention", "chunked_attention"]), "`full_attention` or `sliding_attention`"),
        ("layer_types", json!(["full_attention", "sliding_attention"]), "where no `sliding_window` is on"),
        ("layer_types", json!(["full_attention"]), "a list of `num_hidden_layers`, which is 2"),
        ("rope_theta", json!(-1.0), "above 0"),
        ("eos_token_id", json!("</s>"), "an integer or a list of integers"),
    ];
    for (key, value, accepted) in cases {
        let error = config_with(&[(key, value.clone())]).unwrap_err();
        let message = error.to_string();
        let blamed = if message.starts_with("`hidden_size`") { "hidden_size" } else { key };
        assert!(
            message.starts_with(&format!("`{blamed}` is ")) && message.contains(accepted),
            "{key} {value}: {message}"
        );
    }
}

#[test]
fn an_unknown_key_is_refused_and_a_harmless_one_is_written_back() {
    let error = config_with(&[("logit_softcap", json!(30.0))]).unwrap_err();
    assert!(matches!(&error, ModelError::UnknownKey { key, family: "llama", .. } if key == "logit_softcap"));
    assert!(error.help().unwrap().contains("`logit_softcap`"));

    let harmless = [
        ("transformers_version", json!("4.46.3")),
        ("use_cache", json!(true)),
        ("bos_token_id", json!(1)),
        ("eos_token_id", json!([2, 3])),
        ("pad_token_id", json!(-1)),
        ("attention_dropout", json!(0)),
        ("hidden_act", json!("silu")),
    ];
    let config = config_with(&harmless).unwrap();
    assert_eq!((config.eos_token_ids.clone(), config.pad_token_id), (vec![2, 3], None));
    let mut expected = config_json();
    expected.extend(harmless.map(|(key, value)| (key.to_owned(), value)));
    let (found, expected) = (Value::Object(config.to_json()), Value::Object(expected));
    assert_eq!(found.to_string(), expected.to_string()); // the order of keys too
}

#[test]
fn an_unknown_family_is_refused_with_those_that_are_known() {
    let names = |architecture: Value, model_type: Value| {
        config_with(&[("architectures", architecture), ("model_type", model_type)])
    };
    for (architecture, model_type) in [
        (json!(["GPT2LMHeadModel"]), json!("gpt2")),
        (json!(["LlamaForSequenceClassification"]), json!("llama")),
        (json!(["LlamaForCausalLM"]), json!("a2d-llama")),
        (Value::Null, Value::Null),
    ] {
        let error = names(architecture.clone(), model_type).unwrap_err();
        assert!(matches!(error, ModelError::UnknownFamily { .. }));
        assert!(FAMILIES.iter().all(|family| error.to_string().contains(family.architecture)), "{error}");
    }
    for family in FAMILIES.iter().filter(|family| family.name.ends_with("llama")) {
        let by_architecture = names(json!([family.architecture]), Value::Null).unwrap();
        let by_type = names(Value::Null, json!(family.model_type)).unwrap();
        assert_eq!((by_architecture.family.name, by_type.family.name), (family.name, family.name));
        assert_eq!(by_type.logits_shift(), family.name == "llama");
    }
}

#[test]
fn an_unknown_family_is_told_from_its_neighbour() {
    let differs = |changes: &[(&str, Value)]| match config_with(changes).unwrap_err() {
        ModelError::UnknownFamily { differs, .. } => differs,
        other => panic!("{other}"),
    };
    let moe =
        [("architectures", json!(["LLaDAMoEModelLM"])), ("model_type", json!("llada")), ("num_experts", json!(64))];
    assert_eq!(differs(&moe), "its `num_experts` asks for a mixture of experts, where the MLP here is one");
    assert_eq!(differs(&moe[..2]), "`model_type` `llada` goes with the architecture `LLaDAModelLM`");
    // The keys count even where both names are those of a known family.
    assert!(differs(&[("num_experts", json!(8))]).contains("mixture of experts"));
    assert_eq!(
        differs(&[("model_type", json!("bert")), ("architectures", Value::Null)]),
        "neither of its names is one of theirs"
    );
}

#[test]
fn windows_slide_in_the_blocks_that_the_family_says() {
    let windows = |architecture: &str, model_type: &str, changes: &[(&str, Value)]| {
        let names = [("architectures", json!([architecture])), ("model_type", json!(model_type))];
        let changes: Vec<_> = names.into_iter().chain(changes.iter().cloned()).collect();
        config_with(&changes).unwrap().sliding_windows
    };
    let mistral = |changes: &[(&str, Value)]| windows("MistralForCausalLM", "mistral", changes);
    assert_eq!(mistral(&[("sliding_window", json!(16))]), [Some(16); 2]);
    assert_eq!(mistral(&[("sliding_window", Value::Null)]), [None; 2]);
    assert_eq!(mistral(&[("sliding_window", json!(64))]), [None; 2]); // no row is longer
    assert_eq!(mistral(&[("max_position_embeddings", json!(8192))]), [Some(4096); 2]);

    let qwen = |changes: &[(&str, Value)]| windows("Qwen2ForCausalLM", "qwen2", changes);
    let on = ("use_sliding_window", json!(true));
    let window = ("sliding_window", json!(16));
    assert_eq!(qwen(std::slice::from_ref(&window)), [None; 2]);
    assert_eq!(qwen(&[on.clone(), window.clone()]), [None; 2]); // 28 blocks without come first
    assert_eq!(qwen(&[on.clone(), window.clone(), ("max_window_layers", json!(1))]), [None, Some(16)]);
    let types = json!(["sliding_attention", "full_attention"]);
    assert_eq!(qwen(&[on, window, ("layer_types", types)]), [Some(16), None]);
}

#[test]
fn every_key_of_llada_is_read_or_refused() {
    let path = dlm_golden::model("llada").join("config.json");
    let with = |key: &str, value: Value| {
        let mut object = dlm_golden::json(&path).as_object().unwrap().clone();
        object.insert(key.to_owned(), value);
        ModelConfig::from_json(object, &path)
    };
    let plain = with("use_cache", json!(false)).unwrap();
    let heads = plain.num_attention_heads;
    assert_eq!(with("n_kv_heads", json!(1)).unwrap().num_key_value_heads, 1);
    assert_eq!(with("n_kv_heads", Value::Null).unwrap().num_key_value_heads, heads);
    assert!(
        with("multi_query_attention", json!(true)).unwrap_err().to_string().contains("`multi_query_attention` says")
    );
    assert_eq!(with("mlp_hidden_size", Value::Null).unwrap().intermediate_size, 4 * plain.hidden_size);
    assert!(with("include_qkv_bias", json!(true)).unwrap().has_qkv_bias);
    assert!(with("weight_tying", json!(true)).unwrap().tie_word_embeddings);
    assert_eq!(with("activation_type", json!("gelu")).unwrap().hidden_act, dlm_model::Activation::Gelu);
    assert!(!with("rope_full_precision", json!(false)).unwrap().rotary.full_precision);
    assert_eq!(with("rope_theta", json!(1e4)).unwrap().rotary.theta, 1e4);
    assert_eq!(with("rms_norm_eps", json!(1e-3)).unwrap().rms_norm_eps, 1e-3);
    assert_eq!(with("max_sequence_length", json!(9)).unwrap().max_position_embeddings, 9);
    assert_eq!(with("init_fn", json!("normal")).unwrap().initializer, Initializer::Uniform);
    assert_eq!(with("init_std", json!(0.5)).unwrap().initializer_range, 0.5);
    assert_eq!(with("mask_token_id", json!(3)).unwrap().mask_token_id, Some(3));
    let rows = with("embedding_size", json!(1000)).unwrap();
    assert_eq!((rows.vocab_size, rows.to_json()["vocab_size"].as_i64().unwrap()), (1000, plain.vocab_size));
    for (key, value) in [
        ("block_type", json!("sequential")),
        ("layer_norm_type", json!("default")),
        ("rope", json!(false)),
        ("include_bias", json!(true)),
        ("bias_for_layer_norm", json!(true)),
        ("layer_norm_with_affine", json!(false)),
        ("attention_layer_norm", json!(true)),
        ("block_group_size", json!(2)),
        ("alibi", json!(true)),
        ("input_emb_norm", json!(true)),
        ("scale_logits", json!(true)),
        ("attention_dropout", json!(0.1)),
        ("residual_dropout", json!(0.1)),
        ("embedding_dropout", json!(0.1)),
        ("activation_type", json!("swiglu")),
        ("n_heads", json!(5)),
        ("embedding_size", json!(7)),
        ("init_fn", json!("fan_in")),
    ] {
        let error = with(key, value).unwrap_err();
        assert!(matches!(error, ModelError::Value { .. }), "{error}");
    }
    // The reference's own defaults are others.
    for key in ["block_type", "layer_norm_type", "rope", "include_bias", "activation_type", "weight_tying"] {
        assert!(matches!(with(key, Value::Null), Err(ModelError::MissingKey { .. })), "{key}");
    }
    assert!(matches!(with("clip_qkv", json!(3.0)), Err(ModelError::UnknownKey { family: "llada", .. })));
}

#[test]
fn diffusion_says_what_the_family_leaves_open() {
    let with = |value: Value| config_with(&[("diffusion", value)]);
    let config = with(json!({ "mask_token_id": 49 })).unwrap();
    assert_eq!(config.diffusion, Some(DiffusionInfo::new(49, true)));
    let config =
        with(json!({ "mask_token_id": 49, "logits_shift": false, "noise_schedule": "cosine", "never_mask": [] }));
    let info = config.unwrap().diffusion.unwrap();
    assert_eq!((info.logits_shift, info.noise_schedule.as_str(), info.never_mask.len()), (false, "cosine", 0));
    assert!(with(json!({ "mask_token_id": 50 })).unwrap_err().to_string().contains("50 rows"));
    assert!(with(json!({ "mask_token_id": 4, "logit_shift": true })).unwrap_err().to_string().contains("logit_shift"));
    assert!(with(json!(4)).unwrap_err().to_string().contains("`diffusion` is 4"));
}

#[test]
fn the_stored_kind_is_updated_under_the_key_that_the_file_has() {
    let stored = |key: &str| {
        let mut config = config_with(&[(key, json!("float32"))]).unwrap();
        assert_eq!(config.stored_kind, Some(Kind::Float));
        config.stored_kind = Some(Kind::BFloat16);
        config.to_json()
    };
    assert_eq!(stored("dtype")["dtype"], "bfloat16");
    assert!(!stored("dtype").contains_key("torch_dtype"));
    assert_eq!(stored("torch_dtype")["torch_dtype"], "bfloat16");
}

#[test]
fn every_preset_has_the_parameters_that_its_table_says() {
    let millions = PRESETS.iter().map(|preset| {
        let config = ModelConfig::preset(preset.name, 1000).unwrap();
        let (hidden, inner, blocks) = (config.hidden_size, config.intermediate_size, config.num_hidden_layers);
        let block = 4 * hidden * hidden + 3 * hidden * inner + 2 * hidden;
        (preset.name, (blocks * block + hidden) as f64 / 1e6)
    });
    let millions: Vec<_> = millions.map(|(name, millions)| (name, (millions * 10.0).round() / 10.0)).collect();
    assert_eq!(millions, [("tiny", 2.7), ("small", 14.2), ("base", 85.0), ("large", 308.3)]);
    let error = ModelConfig::preset("huge", 1000).unwrap_err();
    assert_eq!(error.to_string(), "`huge` is no preset, but `tiny`, `small`, `base` and `large` are");
    assert!(ModelConfig::preset("tiny", 0).is_err());
}
