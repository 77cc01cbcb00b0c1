//! The sampler against recorded trajectories of Axolotl's `generate`: every canvas after every step.

use dlm_diffusion::Denoiser;
use dlm_model::{LoadOptions, Model, PackingIsolation};
use dlm_sample::{
    Canvas, DrawRequest, Draws, Generation, KeyedDraws, SampleError, SamplerConfig, has_prompt_and_answer,
    preview_mask_ratio, sample,
};
use serde_json::Value;
use std::{collections::BTreeMap, ops::ControlFlow};
use tch::{Device, Kind, Tensor};

#[test]
fn golden_trajectories_are_repeated_token_by_token() {
    let noise = recorded_noise();
    let mut models = Models::default();
    let mut n_cases = 0;
    for case in cases() {
        let name = text(&case["name"]);
        let canvas = match canvas(&case) {
            Ok(canvas) => canvas,
            Err(error) if case.get("error").is_some() => {
                assert!(matches!(error, SampleError::RatioOutOfRange { .. }), "{name}: {error}");
                continue;
            }
            Err(error) => panic!("{name}: {error}"),
        };
        assert_eq!(canvas.ids(), dlm_golden::integers(&case["start_ids"]), "{name}: start");
        assert_eq!(positions(&canvas), dlm_golden::integers(&case["result"]["masked_positions"]), "{name}: masks");

        let mut draws = Recorded { noise: &noise, case: name.clone() };
        let model = models.get(&case["model"]);
        let found = run(model, &[canvas], &config(&case), &mut draws).remove(0);

        assert_eq!(found.nfe as u64, case["model_calls"].as_u64().expect("a number of calls"), "{name}: NFE");
        let expected = states(&case);
        if case.get("fragile").is_some() {
            // All positions are alike there: which is taken first, with all that follows, hangs on the last bit. What does not is
            // how many are taken in each step and, as long as they are alike, which token.
            let mask = case["mask_token_id"].as_i64().expect("an id");
            let taken = |states: &[Vec<i64>]| -> Vec<usize> {
                states.iter().map(|state| state.iter().filter(|id| **id != mask).count()).collect()
            };
            assert_eq!(taken(&found.trace), taken(&expected), "{name}: tokens taken");
            let first = |states: &[Vec<i64>]| -> Vec<i64> {
                let is_first = |state: &&Vec<i64>| state.iter().any(|id| *id != mask);
                states.iter().find(is_first).into_iter().flatten().copied().filter(|id| *id != mask).collect()
            };
            assert_eq!(first(&found.trace), first(&expected), "{name}: first tokens");
            // Once one is taken they differ: from the reference's first state on, all is as there.
            let masked: Vec<usize> = (0..expected[0].len()).filter(|&i| expected[0][i] == mask).collect();
            let canvas = Canvas::mask_positions(&expected[0], &masked, mask).unwrap();
            let steps = config(&case).with_steps(expected.len() - 1);
            let found = run(model, &[canvas], &steps, &mut KeyedDraws::new(0)).remove(0);
            assert_eq!(found.trace, expected[1..], "{name}: states behind the first");
            assert_eq!(found.ids, dlm_golden::integers(&case["result"]["generated_ids"]), "{name}: end");
        } else {
            assert_eq!(found.trace, expected, "{name}: states");
            assert_eq!(found.ids, dlm_golden::integers(&case["result"]["generated_ids"]), "{name}: end");
        }
        n_cases += 1;
    }
    assert!(n_cases > 0);
}

#[test]
fn golden_trajectories_are_the_same_side_by_side_in_one_batch() {
    let mut models = Models::default();
    let mut batches: BTreeMap<(String, u64, i64), Vec<Value>> = BTreeMap::new();
    for case in cases() {
        let is_greedy = dlm_golden::number(&case["temperature"]) == Some(0.0);
        if is_greedy && case.get("fragile").is_none() && case.get("error").is_none() {
            let steps = case["num_diffusion_steps"].as_u64().expect("a number of steps");
            let mask_token_id = case["mask_token_id"].as_i64().expect("an id");
            batches.entry((text(&case["model"]), steps, mask_token_id)).or_default().push(case);
        }
    }
    for batch in batches.values() {
        let canvases: Vec<Canvas> = batch.iter().map(|case| canvas(case).unwrap()).collect();
        // Chunks of an odd length, so that they begin and end inside canvases.
        let config = config(&batch[0]).with_chunk_len(7);
        let found = run(models.get(&batch[0]["model"]), &canvases, &config, &mut KeyedDraws::new(0));
        for (case, found) in batch.iter().zip(found) {
            assert_eq!(found.trace, states(case), "{}: states", case["name"]);
            assert_eq!(found.nfe as u64, case["model_calls"].as_u64().unwrap(), "{}: NFE", case["name"]);
        }
    }
}

fn run(model: &dyn Denoiser, canvases: &[Canvas], config: &SamplerConfig, draws: &mut dyn Draws) -> Vec<Generation> {
    sample(model, canvases, config, draws, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn config(case: &Value) -> SamplerConfig {
    SamplerConfig::new(case["mask_token_id"].as_i64().expect("an id"))
        .with_steps(case["num_diffusion_steps"].as_u64().expect("a number of steps") as usize)
        .with_temperature(dlm_golden::number(&case["temperature"]).expect("a temperature"))
        .with_trace()
}

/// The start of a case: answers where labels tell them from a prompt, else a completion, else random masks.
fn canvas(case: &Value) -> Result<Canvas, SampleError> {
    let ids = dlm_golden::integers(&case["input_ids"]);
    let mask_token_id = case["mask_token_id"].as_i64().expect("an id");
    let options = &case["options"];
    let row = |value: &Value| value.get(0).map(dlm_golden::integers);
    let labels = row(&options["labels"]).filter(|labels| has_prompt_and_answer(labels));
    let n_tokens = options["completion_tokens"].as_u64().filter(|_| options["mode"] == "completion");

    let canvas = match (labels, n_tokens) {
        (Some(labels), _) => Canvas::answers(&ids, &labels, mask_token_id)?,
        (None, Some(n_tokens @ 1..)) => Canvas::completion(&ids, n_tokens as usize, mask_token_id)?,
        _ => {
            let ratio = dlm_golden::number(&options["target_mask_ratio"])
                .unwrap_or_else(|| preview_mask_ratio(draw(case, "rand")[0].as_f64().expect("a draw")));
            let order = draw(case, "randperm").iter().map(|index| index.as_u64().expect("an index") as usize);
            match Canvas::random_masks(&ids, ratio, &[], &order.collect::<Vec<_>>(), mask_token_id) {
                // The reference masks one token at a ratio of 0 and all of them above 1.
                Err(SampleError::RatioOutOfRange { .. }) if !ratio.is_nan() => {
                    let masked = dlm_golden::integers(&case["result"]["masked_positions"]);
                    let masked: Vec<usize> = masked.into_iter().map(|position| position as usize).collect();
                    Canvas::mask_positions(&ids, &masked, mask_token_id)?
                }
                canvas => canvas?,
            }
        }
    };
    match row(&options["attention_mask"]) {
        Some(segment_ids) => canvas.with_segments(&segment_ids),
        None => Ok(canvas),
    }
}

/// The recorded draw of that kind; a case has one of each but for its noise.
fn draw<'a>(case: &'a Value, kind: &str) -> &'a Vec<Value> {
    let draws = case["draws"].as_array().expect("draws");
    let draw = draws.iter().find(|draw| draw["kind"] == kind).unwrap_or_else(|| panic!("{}: no {kind}", case["name"]));
    draw["values"].as_array().expect("recorded values")
}

/// Every trajectory in the golden folder.
fn cases() -> Vec<Value> {
    let files = dlm_golden::files("sample_axolotl", "json");
    let lists = files.iter().map(|file| dlm_golden::json(file)).filter_map(|json| json["cases"].as_array().cloned());
    lists.flatten().filter(|case| case.get("states").is_some() || case.get("error").is_some()).collect()
}

fn recorded_noise() -> BTreeMap<String, Tensor> {
    dlm_golden::files("sample_axolotl", "safetensors").iter().flat_map(|file| dlm_golden::tensors(file)).collect()
}

/// The uniforms that the reference drew, `[masks, vocab]` in each step.
struct Recorded<'a> {
    noise: &'a BTreeMap<String, Tensor>,
    case: String,
}

impl Draws for Recorded<'_> {
    fn uniforms(&mut self, request: &DrawRequest<'_>) -> dlm_sample::Result<Tensor> {
        let drawn = &self.noise[&format!("{}.step{}.u", self.case, request.step)];
        assert_eq!(drawn.size()[1], request.vocab_size as i64);
        Ok(drawn.narrow(0, request.masks.start as i64, request.masks.len() as i64))
    }
}

/// Golden models by name, each loaded once.
#[derive(Default)]
struct Models(BTreeMap<String, Model>);

impl Models {
    fn get(&mut self, name: &Value) -> &Model {
        self.0.entry(text(name)).or_insert_with_key(|name| {
            let options = LoadOptions { device: Device::Cpu, kind: Kind::Float };
            let mut model = Model::load(&dlm_golden::model(name), &options).unwrap();
            // The reference lets positions run on over a packed row and shifts logits across borders.
            model.set_packing_isolation(PackingIsolation::Row);
            model
        })
    }
}

fn states(case: &Value) -> Vec<Vec<i64>> {
    case["states"].as_array().expect("states").iter().map(dlm_golden::integers).collect()
}

fn positions(canvas: &Canvas) -> Vec<i64> {
    canvas.masked_positions().iter().map(|&position| position as i64).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}
