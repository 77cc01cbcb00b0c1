//! Axolotl's validation of its `diffusion` block against ours: what is accepted, and what a key that is given is read as.

use dlm_cli::settings::{Resolved, SettingsError, resolve_file};
use dlm_golden::{files, json, number};
use serde_json::{Value, json};

#[test]
fn golden_diffusion_blocks_are_accepted_or_refused_as_by_axolotl() {
    let mut compared = 0;
    for file in files("config_", "json") {
        let golden = json(&file);
        for case in golden["cases"].as_array().expect("a list of cases") {
            let Some(config) = case.get("config").and_then(Value::as_object) else { continue };
            compare(case, &Value::Object(config.clone()));
            compared += 1;
        }
    }
    assert!(compared > 0, "no case has a `config`");
}

fn compare(case: &Value, config: &Value) {
    let Some(expected) = case.get("result") else {
        assert!(read(config).is_err(), "{config} is accepted");
        return;
    };
    let known = |key: &str| expected.get(key).is_some();
    let given = config.as_object().expect("an object");
    // Axolotl drops keys that it does not know; here they are errors.
    if !given.keys().all(|key| known(key)) {
        let error = read(config).expect_err("an unknown key is refused");
        assert!(matches!(error, SettingsError::UnknownKey { .. }), "{config}: {error}");
        return;
    }
    let resolved = read(config).unwrap_or_else(|error| panic!("{config}: {error}"));
    let found = serde_json::to_value(&resolved.settings.diffusion).expect("settings are data");
    for key in given.keys() {
        let same = match (&found[key], &expected[key]) {
            (Value::Number(_), Value::Number(_)) => number(&found[key]) == number(&expected[key]),
            (found, expected) => found == expected,
        };
        assert!(same, "{config}: `{key}` is {}, expected {}", found[key], expected[key]);
    }
}

fn read(config: &Value) -> Result<Resolved, SettingsError> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("config.yaml");
    // JSON is YAML.
    std::fs::write(&path, json!({ "diffusion": config }).to_string()).expect("a temporary file");
    resolve_file(&path)
}
