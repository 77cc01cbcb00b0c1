//! What is around the sampler against recorded values of Axolotl: prompt commands, preview rows, masked text.

use dlm_sample::{
    DEFAULT_COMPLETION_TOKENS, PreviewLimits, PreviewRow, PromptMode, SampleError, choose_previews, masked_text,
    parse_commands,
};
use serde_json::Value;

#[test]
fn golden_commands_give_the_same_mode_count_and_ratio_and_nonsense_is_refused() {
    let mut n_valid = 0;
    for case in helpers("parse_commands") {
        let (prompt, expected) = (text(&case["text"]), &case["result"]);
        let count = expected["completion_tokens"].as_i64();
        let ratio = dlm_golden::number(&expected["target_mask_ratio"]);
        let words: Vec<&str> = prompt.split_whitespace().collect();
        let completes =
            words.first().is_some_and(|word| *word == ":complete" || *word == ":mask") && words.contains(&":complete");

        let makes_sense = ratio.is_none_or(|ratio| ratio > 0.0 && ratio <= 1.0)
            && count.is_some_and(|count| count > 0 || (count == 0 && !completes));
        let parsed = match parse_commands(prompt) {
            Ok(parsed) => parsed,
            Err(SampleError::BadCommand { .. }) if !makes_sense => continue,
            Err(error) => panic!("{prompt:?}: {error}"),
        };
        assert!(makes_sense, "{prompt:?} is accepted");
        let mode = match parsed.mode.unwrap_or(PromptMode::Mask) {
            PromptMode::Complete => "completion",
            PromptMode::Mask => "random",
        };
        assert_eq!(mode, expected["mode"], "{prompt:?}");
        assert_eq!(parsed.completion_tokens.unwrap_or(0) as i64, count.unwrap_or(0), "{prompt:?}");
        assert_eq!(parsed.mask_ratio, ratio, "{prompt:?}");
        // The reference loses white space, which stays here.
        let words: Vec<&str> = parsed.text.split_whitespace().collect();
        assert_eq!(words.join(" "), text(&expected["cleaned"]), "{prompt:?}");
        n_valid += 1;
    }
    assert!(n_valid > 0);
    assert_eq!(DEFAULT_COMPLETION_TOKENS, 64);
}

#[test]
fn golden_preview_rows_are_chosen_with_the_recorded_draws() {
    let mut n_cases = 0;
    for file in dlm_golden::files("sample_axolotl", "json") {
        let json = dlm_golden::json(&file);
        let Some(cases) = json.as_array() else { continue };
        for case in cases {
            let name = &case["name"];
            let mut draws = case["draws"].as_array().expect("draws").iter();
            let mut draw = |kind: &str| {
                let draw = draws.next().unwrap_or_else(|| panic!("{name}: no draw left"));
                assert_eq!(draw["kind"], kind, "{name}");
                dlm_golden::integers(&draw["values"])
            };
            let n_skipped = draw("randint")[0] as usize;
            let size = |key: &str| case[key].as_u64().unwrap_or_else(|| panic!("{name}: no {key}")) as usize;
            let limits = PreviewLimits::new(size("num_samples"), size("max_length"));
            let chosen = choose_previews(batches(cases, case).skip(n_skipped), limits, |n_rows| {
                let order = draw("randperm");
                assert_eq!(order.len(), n_rows, "{name}");
                order.into_iter().map(|index| index as usize).collect()
            });
            let expected = case["result"].as_array().expect("a result");
            let expected: Vec<PreviewRow> = expected.iter().map(|row| rows(row, &[]).remove(0)).collect();
            assert_eq!(chosen, expected, "{name}");
            assert!(draws.next().is_none(), "{name}: draws are left");
            n_cases += 1;
        }
    }
    assert!(n_cases > 0);
}

#[test]
fn golden_masked_texts_are_tidied_alike() {
    let json = dlm_golden::json_named("diffusion_axolotl_helpers");
    let specials: Vec<&str> =
        json["special_tokens_map"].as_object().expect("a map").values().filter_map(Value::as_str).collect();
    let mask_token = json["resolve_mask_token_id"].as_array().expect("cases")[0]["resolved_token"].as_str();
    for case in helpers("clean_masked_text") {
        let found = masked_text(text(&case["text"]), mask_token.expect("a mask token"), &specials);
        assert_eq!(found, text(&case["cleaned"]), "{}", case["text"]);
    }
}

fn helpers(key: &str) -> Vec<Value> {
    let cases = dlm_golden::json_named("diffusion_axolotl_helpers")[key].as_array().cloned().unwrap_or_default();
    assert!(!cases.is_empty(), "no cases of {key}");
    cases
}

/// A case's batches: its own, or `as NAME` those of another, perhaps `without KEY,KEY`.
fn batches<'a>(cases: &'a [Value], case: &'a Value) -> impl Iterator<Item = Vec<PreviewRow>> + 'a {
    let (source, without) = match case["batches"].as_str() {
        None => (case, Vec::new()),
        Some(reference) => {
            let reference = reference.strip_prefix("as ").unwrap_or_else(|| panic!("{reference:?} names no case"));
            let (name, without) = reference.split_once(" without ").unwrap_or((reference, ""));
            let source = cases.iter().find(|other| other["name"] == name).unwrap_or_else(|| panic!("no case {name}"));
            (source, without.split(',').collect())
        }
    };
    let batches = source["batches"].as_array().expect("batches");
    batches.iter().map(move |batch| rows(batch, &without))
}

/// A batch's rows, without the named columns.
fn rows(batch: &Value, without: &[&str]) -> Vec<PreviewRow> {
    let column = |key: &str| batch[key].as_array().filter(|_| !without.contains(&key));
    let ids = column("input_ids").expect("input_ids");
    let cell = |key: &str, row: usize| column(key).map(|rows| dlm_golden::integers(&rows[row]));
    let row = |(index, ids)| PreviewRow {
        ids: dlm_golden::integers(ids),
        segment_ids: cell("attention_mask", index),
        labels: cell("labels", index),
    };
    ids.iter().enumerate().map(row).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}
