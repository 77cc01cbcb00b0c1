//! Every kind of rope scaling beside transformers, in both generations of config.json.
//!
//! The numbers are made by `tests/data/rope_scaling.py`.

mod common;

use common::write_tensors;
use dlm_diffusion::{AttentionLayout, Denoiser, DenoiserInput};
use dlm_golden::assert_close;
use dlm_model::{DiffusionInfo, LoadOptions, Model};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

#[test]
fn golden_logits_of_every_rope_scaling_are_those_of_transformers() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let tensors = dlm_golden::tensors(&data.join("rope_scaling.safetensors"));
    let cases = dlm_golden::json(&data.join("rope_scaling.json"));
    let mut kinds = BTreeSet::new();
    for case in cases["cases"].as_array().unwrap() {
        let [name, family] = ["name", "family"].map(|key| case[key].as_str().unwrap());
        let prefix = format!("{family}.");
        let weights = tensors.iter().filter_map(|(key, tensor)| Some((key.strip_prefix(&prefix)?, tensor)));
        let weights = weights.map(|(key, tensor)| (key.to_owned(), tensor.shallow_clone())).collect();
        let mut largest = BTreeMap::new(); // by visibility, over both generations and lengths
        for generation in ["old", "new"] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("config.json"), case[generation].to_string()).unwrap();
            write_tensors(&folder.path().join("model.safetensors"), &weights);
            let mut model = Model::load(folder.path(), &LoadOptions::default()).unwrap();
            model.set_diffusion(DiffusionInfo::new(0, false)).unwrap();
            for which in ["long", "short"] {
                for (visibility, layout) in [("causal", AttentionLayout::causal()), ("bidir", AttentionLayout::full())]
                {
                    let ids = &tensors[&format!("ids.{which}")];
                    let states = model.hidden_states(&DenoiserInput::new(ids, &layout)).unwrap();
                    let logits = model.head().logits(&states).unwrap();
                    let expected = &tensors[&format!("logits.{family}.{name}.{which}.{visibility}")];
                    let error = (&logits - expected).abs().max().double_value(&[]);
                    largest.entry(visibility).and_modify(|e: &mut f64| *e = e.max(error)).or_insert(error);
                    assert_close(&format!("{family} {name} {generation} {which}"), &logits, expected, 1e-4, 1e-4);
                }
            }
        }
        for (visibility, error) in largest {
            let layout = format!("{visibility} {name}");
            println!("{family:18} {layout:32} largest error {error:.1e}"); // the table that `make golden-models` shows
        }
        kinds.insert(case["new"]["rope_parameters"]["rope_type"].as_str().unwrap());
    }
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["dynamic", "linear", "llama3", "longrope", "yarn"]);
}
