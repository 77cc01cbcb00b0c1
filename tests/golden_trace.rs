//! `dlm sample --json --trace` repeats recorded trajectories token by token.

use dlm_golden::{files, integers, json, model, number};
use dlm_tests::Scratch;
use serde_json::Value;

fn joined(numbers: impl IntoIterator<Item = i64>) -> String {
    numbers.into_iter().map(|n| n.to_string()).collect::<Vec<_>>().join(",")
}

/// Whether the command line can pose the case: greedy, and every token visible to every other.
fn can_be_asked(case: &Value) -> bool {
    let visible = case["options"]["attention_mask"]
        .as_array()
        .is_none_or(|rows| rows.iter().flat_map(integers).all(|value| value == 1));
    number(&case["temperature"]) == Some(0.0) && visible && case.get("fragile").is_none() && case.get("error").is_none()
}

#[test]
fn golden_trajectories_are_repeated_by_the_command() {
    let scratch = Scratch::new(env!("CARGO_BIN_EXE_dlm-under-test"));
    let mut compared = 0;
    for path in files("sample_axolotl", "json") {
        let golden = json(&path);
        for case in golden["cases"].as_array().into_iter().flatten() {
            let (Some(start), true) = (case.get("start_ids"), can_be_asked(case)) else { continue };
            let name = &case["name"];
            let (ids, start, mask) = (integers(&case["input_ids"]), integers(start), case["mask_token_id"].to_string());
            let folder = model(case["model"].as_str().expect("a model"));
            let masked: Vec<i64> = (0..).zip(&start).filter(|(_, id)| id.to_string() == mask).map(|(i, _)| i).collect();
            let mut arguments = vec![
                "sample".to_owned(),
                "--json".to_owned(),
                "--trace".to_owned(),
                "--model".to_owned(),
                folder.display().to_string(),
                "--set".to_owned(),
                format!("diffusion.mask_token_id={mask}"),
                "--steps".to_owned(),
                case["num_diffusion_steps"].to_string(),
                "--input-ids".to_owned(),
                joined(ids.iter().copied()),
            ];
            if start.len() > ids.len() {
                arguments.extend(["--complete".to_owned(), (start.len() - ids.len()).to_string()]);
            } else {
                arguments.extend(["--mask-positions".to_owned(), joined(masked.iter().copied())]);
            }
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let output: Value = serde_json::from_str(&scratch.succeed(&arguments)).expect("one JSON object");

            let calls = case["model_calls"].as_u64().expect("a number of calls") as usize;
            let states = case["states"].as_array().expect("states");
            assert_eq!(output["nfe"], calls, "{name}");
            assert_eq!(integers(&output["masked_positions"]), masked, "{name}");
            let trace = output["trace"].as_array().expect("a trace");
            assert_eq!(trace.len(), states.len(), "{name}");
            for (step, (found, expected)) in trace.iter().zip(states).enumerate() {
                assert_eq!(integers(found), integers(expected), "{name}, step {step}");
            }
            assert_eq!(integers(&output["ids"]), integers(states.last().expect("a last state")), "{name}");
            compared += 1;
        }
    }
    assert!(compared > 0, "no case could be asked");
}
