//! LLaDA's Monte-Carlo likelihood: the same masks from the same draws.

use dlm_diffusion::{
    Denoiser, DenoiserInput, DiffusionError, Head,
    evaluate::{LikelihoodConfig, LikelihoodDraws, loglikelihood},
};
use dlm_golden::{files, integers, json};
use serde_json::Value;
use std::{cell::RefCell, collections::VecDeque};
use tch::{Device, Kind, Tensor};

/// Recorded draws, in the order of their calls.
struct Recorded(VecDeque<(String, Vec<i64>)>);

impl Recorded {
    fn new(draws: &Value) -> Self {
        let of = |draw: &Value| {
            let values = if draw["values"].is_array() {
                integers(&draw["values"])
            } else {
                vec![draw["values"].as_i64().unwrap()]
            };
            (draw["kind"].as_str().unwrap().to_owned(), values)
        };
        Self(draws.as_array().unwrap().iter().map(of).collect())
    }

    fn next(&mut self, kind: &str) -> Vec<i64> {
        let (found, values) = self.0.pop_front().expect("a draw");
        assert_eq!(found, kind);
        values
    }
}

impl LikelihoodDraws for Recorded {
    fn shift(&mut self, _round: usize, _len: usize) -> usize {
        self.next("randint")[0] as usize
    }

    fn order(&mut self, _round: usize, _row: usize, len: usize) -> Vec<usize> {
        let order = self.next("randperm");
        assert_eq!(order.len(), len);
        order.into_iter().map(|i| i as usize).collect()
    }
}

/// Remembers the rows that it is shown.
struct Shown(RefCell<Vec<Vec<i64>>>);

impl Denoiser for Shown {
    fn hidden_states(&self, input: &DenoiserInput<'_>) -> Result<Tensor, DiffusionError> {
        self.0.borrow_mut().extend(Vec::<Vec<i64>>::try_from(input.ids).unwrap());
        Ok(Tensor::zeros([input.wanted.unwrap().numel() as i64, 1], (Kind::Float, Device::Cpu)))
    }

    fn head(&self) -> &dyn Head {
        self
    }
}

impl Head for Shown {
    fn logits(&self, hidden: &Tensor) -> Result<Tensor, DiffusionError> {
        Ok(Tensor::zeros([hidden.size()[0], 100_000], (Kind::Float, Device::Cpu)))
    }
}

#[test]
fn golden_draws_mask_what_llada_masked_with_the_same_weights() {
    let mut compared = 0;
    for path in files("sample_llada_loglikelihood", "json") {
        for case in json(&path)["cases"].as_array().expect("cases") {
            let (prompt, answer) = (integers(&case["prompt"]), integers(&case["answer"]));
            let config = LikelihoodConfig {
                mask_token_id: case["mask_token_id"].as_i64().unwrap(),
                samples: case["mc_num"].as_u64().unwrap() as usize,
                batch_size: case["batch_size"].as_u64().unwrap() as usize,
                guidance: case["cfg_scale"].as_f64().unwrap(),
            };
            let shown = Shown(RefCell::default());
            let found = loglikelihood(&shown, &prompt, &answer, &config, &mut Recorded::new(&case["draws"])).unwrap();
            // Every token costs the logarithm of the vocabulary, so an estimate is that of the answer whatever the weights.
            let expected = -(answer.len() as f64) * 100_000f64.ln();
            assert!((found.log_likelihood - expected).abs() < 1e-3 * expected.abs());
            let rows = shown.0.into_inner();
            let expected: Vec<Vec<i64>> = case["perturbed"]
                .as_array()
                .unwrap()
                .iter()
                .flat_map(|round| round.as_array().unwrap())
                .map(integers)
                .collect();
            // With guidance each round is shown twice, without its prompt the second time; one token is shown once.
            let step = if config.guidance > 0.0 { 2 } else { 1 };
            if answer.len() == 1 && step == 1 {
                assert_eq!(rows, expected[..1]);
            } else {
                let conditional: Vec<&[Vec<i64>]> = rows.chunks(config.batch_size).step_by(step).collect();
                assert_eq!(conditional.concat(), expected);
            }
            dlm_golden::record(&format!("case {compared}"), 0.0);
            compared += 1;
        }
    }
    assert!(compared > 0);
}
