//! GGUF files: what is read of them, what is refused, and that nothing in them causes a panic.

mod common;
#[path = "common/gguf.rs"]
mod writer;

use common::{assert_same_parameters, model_with};
use dlm_model::{Gguf, LoadOptions, Model, ModelError};
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
    let mut compared = 0;
    for (name, architecture) in [("llama", "llama"), ("mistral", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")] {
        let folder = dlm_golden::model(name);
        let model = Model::load(&folder, &LoadOptions::default()).unwrap();
        let found = read(&Contents::of(&model, architecture)).unwrap();
        assert_same_parameters(&found.model, &model);
        let (found, expected) = (found.model.config(), model.config());
        assert_eq!(found.tie_word_embeddings, expected.tie_word_embeddings, "{name}");
        assert_eq!((found.rms_norm_eps, &found.rotary), (expected.rms_norm_eps, &expected.rotary), "{name}");
        compared += 1;
    }
    assert_eq!(compared, 4);
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
fn linear_scaling_of_positions_is_read_and_others_are_refused() {
    let scaled = |kind: &str| {
        with(|contents| {
            contents.metadata.insert("llama.rope.scaling.type".to_owned(), Value::Text(kind.to_owned()));
            contents.metadata.insert("llama.rope.scaling.factor".to_owned(), Value::F32(4.0));
        })
    };
    let config = scaled("linear").unwrap().model.config().clone();
    assert_eq!(config.rotary.scaling, dlm_model::RotaryScaling::Linear { factor: 4.0 });
    assert!(matches!(scaled("yarn"), Err(ModelError::UnsupportedGguf { .. })));
}

#[test]
fn what_is_not_read_is_refused_with_what_is() {
    let text = |key: &'static str, value: &'static str| {
        let error = with(|contents| {
            contents.metadata.insert(key.to_owned(), Value::Text(value.to_owned()));
        });
        error.unwrap_err().to_string()
    };
    assert!(text("general.architecture", "phi3").contains("is phi3, but read is llama, qwen2 or qwen3"));
    assert!(text("tokenizer.ggml.model", "llama").contains("the tokenizer of"));
    assert!(text("tokenizer.ggml.pre", "tekken").contains("smollm"));
    let error = with(|contents| contents.tensors[1].1 = 13).unwrap_err();
    assert!(error.to_string().contains("is Q5_K, but read is F32, F16, Q4_0"), "{error}");
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
    ) {
        thread_local! {
            static WHOLE: Vec<u8> = Contents::of(&model_with(&[("num_hidden_layers", json!(1))]), "llama").bytes();
        }
        let mut bytes = WHOLE.with(Clone::clone);
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
