//! LLaDA's Monte-Carlo likelihood of answers, from recorded draws through a whole model.

use dlm_diffusion::evaluate::{LikelihoodConfig, LikelihoodDraws, loglikelihood};
use dlm_golden::{assert_number, files, integers, json};
use dlm_model::{LoadOptions, Model};
use serde_json::Value;
use std::collections::VecDeque;

/// Recorded draws, in the order of their calls.
struct Recorded(VecDeque<Vec<usize>>);

impl Recorded {
    fn new(draws: &Value) -> Self {
        let of = |draw: &Value| {
            let values = if draw["values"].is_array() {
                integers(&draw["values"])
            } else {
                vec![draw["values"].as_i64().unwrap()]
            };
            values.into_iter().map(|value| value as usize).collect()
        };
        Self(draws.as_array().unwrap().iter().map(of).collect())
    }
}

impl LikelihoodDraws for Recorded {
    fn shift(&mut self, _round: usize, _len: usize) -> usize {
        self.0.pop_front().expect("a draw")[0]
    }

    fn order(&mut self, _round: usize, _row: usize, _len: usize) -> Vec<usize> {
        self.0.pop_front().expect("a draw")
    }
}

#[test]
fn golden_log_likelihoods_are_ours_with_and_without_guidance() {
    let mut guided = 0;
    for path in files("sample_llada_loglikelihood", "json") {
        let file = json(&path);
        let folder = file["model"].as_str().expect("a model").trim_start_matches("models/");
        let model = Model::load(&dlm_golden::model(folder), &LoadOptions::default()).unwrap();
        for (i, case) in file["cases"].as_array().expect("cases").iter().enumerate() {
            let config = LikelihoodConfig {
                mask_token_id: case["mask_token_id"].as_i64().unwrap(),
                samples: case["mc_num"].as_u64().unwrap() as usize,
                batch_size: case["batch_size"].as_u64().unwrap() as usize,
                guidance: case["cfg_scale"].as_f64().unwrap(),
            };
            let (prompt, answer) = (integers(&case["prompt"]), integers(&case["answer"]));
            let found = loglikelihood(&model, &prompt, &answer, &config, &mut Recorded::new(&case["draws"])).unwrap();
            let expected = dlm_golden::number(&case["log_likelihood"]).expect("a number");
            assert_number(&format!("case {i}"), found.log_likelihood, expected, 0.0, 1e-4);
            guided += usize::from(config.guidance > 0.0);
        }
    }
    assert!(guided > 0);
}
