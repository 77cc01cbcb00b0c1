//! Whole training runs of Axolotl's trainer, repeated with its recorded noise.

mod support;

use dlm_data::Batch;
use dlm_diffusion::StepMetrics;
use dlm_golden::{assert_close, assert_number, integers, number};
use dlm_model::Model;
use dlm_train::{
    AdamW, LrSchedule, LrScheduleConfig, LrScheduler, NoisedWindow, ObjectiveConfig, OptimizerConfig, StepReport,
    Warmup, optimizer_step,
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};
use support::{RecordedNoise, axolotl_objective, batch, models_shaped_like};
use tch::{Device, Tensor};

/// A recorded run, of all weights or of an adapter.
struct Run {
    name: String,
    json: Value,
    tensors: BTreeMap<String, Tensor>,
    scheduler: LrScheduler,
    objective: ObjectiveConfig,
}

impl Run {
    /// `None` for other files, and for learning rate schedules that are none of ours.
    fn read(path: &Path) -> Option<Self> {
        let json = dlm_golden::json(path);
        let arguments = json.get("training_args")?;
        let tensors = dlm_golden::tensors(&path.with_extension("safetensors"));
        if !tensors.contains_key("data.input_ids") {
            return None;
        }
        let scheduler = arguments["lr_scheduler_type"].as_str().unwrap().parse().ok()?;
        let has_labels = tensors.contains_key("data.labels");
        assert_eq!(json["sft"].as_bool(), Some(has_labels), "labels and `sft` go together");
        let objective = axolotl_objective(
            json["mask_token_id"].as_i64().unwrap(),
            integers(&json["special_token_ids"]),
            number(&json["eps"]).unwrap(),
            json["importance_weighting"].as_bool().unwrap(),
            has_labels,
        );
        Some(Self { name: dlm_golden::stem(path).to_owned(), json, tensors, scheduler, objective })
    }

    fn argument(&self, name: &str) -> f64 {
        number(&self.json["training_args"][name]).unwrap_or_else(|| panic!("{}: no {name}", self.name))
    }

    fn optimizer(&self) -> OptimizerConfig {
        OptimizerConfig {
            beta1: self.argument("adam_beta1"),
            beta2: self.argument("adam_beta2"),
            eps: self.argument("adam_epsilon"),
            weight_decay: self.argument("weight_decay"),
            max_grad_norm: Some(self.argument("max_grad_norm")).filter(|max| *max > 0.0),
        }
    }

    fn schedule(&self) -> LrSchedule {
        let warmup = Warmup::Steps(self.argument("warmup_steps") as u64);
        let config =
            LrScheduleConfig { learning_rate: self.argument("learning_rate"), scheduler: self.scheduler, warmup };
        LrSchedule::new(&config, self.argument("max_steps") as u64)
    }

    /// Micro-batch `index` and its noise.
    fn micro_batch(&self, index: i64, noise: &mut RecordedNoise) -> Batch {
        let rows = self.argument("per_device_train_batch_size") as i64;
        let start = index * rows;
        let slice = |name: &str| self.tensors.get(name).map(|all| all.narrow(0, start, rows));
        let [ids, mask] = ["data.input_ids", "data.attention_mask"].map(|name| slice(name).unwrap());
        let batch = batch(&ids, &mask, slice("data.labels").as_ref(), 1000 * index);
        noise.record(&batch, &self.tensors[&format!("micro{index}.t")], &self.tensors[&format!("micro{index}.u")]);
        batch
    }

    fn window(&self, step: i64) -> NoisedWindow {
        let count = self.argument("gradient_accumulation_steps") as i64;
        let mut noise = RecordedNoise::default();
        let batches: Vec<Batch> = (0..count).map(|i| self.micro_batch(step * count + i, &mut noise)).collect();
        NoisedWindow::new(&batches, 0, &self.objective.process().unwrap(), &noise).unwrap()
    }

    /// The model that was trained: of those with the right parameters, the one with the first recorded loss.
    fn model(&self) -> Model {
        let finals = self.tensors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix("final.")?, tensor)));
        let shapes = finals.map(|(name, tensor)| (name.to_owned(), tensor.size())).collect();
        let expected = number(&self.json["micro_batch_losses"][0]).unwrap();
        let window = self.window(0);
        let candidates = match self.initial_adapter() {
            Some(initial) => adapters_like(&initial),
            None => models_shaped_like(&shapes),
        };
        let found = candidates.into_iter().find(|(_, model)| {
            let scored = tch::no_grad(|| window.score(model, Device::Cpu, &self.objective.loss(), 1)).unwrap();
            (value(&scored[0], "loss").unwrap() - expected).abs() <= 1e-3 * expected.abs()
        });
        found.unwrap_or_else(|| panic!("{}: no golden model has its first loss {expected}", self.name)).1
    }

    /// What an adapter began as, where it is one that was trained.
    fn initial_adapter(&self) -> Option<BTreeMap<String, &Tensor>> {
        let initial = self.tensors.iter().filter_map(|(name, t)| Some((ours(name.strip_prefix("init.")?), t)));
        let initial: BTreeMap<_, _> = initial.filter(|(name, _)| name.contains("lora")).collect();
        (!initial.is_empty()).then_some(initial)
    }

    fn check_report(&self, step: i64, lr: f64, report: &StepReport) {
        let what = |name: &str| format!("{} step {} {name}", self.name, step + 1);
        let count = report.micro_batches.len();
        for (i, metrics) in report.micro_batches.iter().enumerate() {
            let expected = number(&self.json["micro_batch_losses"][step as usize * count + i]).unwrap();
            assert_number(&what(&format!("micro-batch {i}")), value(metrics, "loss").unwrap(), expected, 0.0, 1e-3);
        }
        let lines = self.json["log"].as_array().unwrap();
        let line = lines.iter().find(|line| line["step"] == step + 1 && line.get("loss").is_some()).unwrap();
        let metrics: BTreeMap<&str, f64> = report.metrics.named().into_iter().collect();
        for (name, expected) in line.as_object().unwrap() {
            let expected = number(expected).unwrap();
            match name.as_str() {
                // `ppl` is the exponential of a weighted loss, which means nothing; the others are the loop's.
                "step" | "ppl" | "epoch" => {}
                "learning_rate" => assert_number(&what(name), lr, expected, 0.0, 1e-12),
                "grad_norm" => assert_number(&what(name), report.grad_norm, expected, 1e-4, 1e-3),
                "num_masked_tokens" => assert_number(&what(name), metrics["num_masked_tokens"], expected, 0.0, 0.0),
                // Rounded to five digits in the log.
                _ => assert_number(&what(name), metrics[name.as_str()], expected, 1e-5, 1e-3),
            }
        }
    }

    fn check_weights(&self, prefix: &str, model: &Model) {
        let parameters: BTreeMap<&str, &Tensor> =
            model.trainable_parameters().iter().map(|(n, t)| (n.as_str(), t)).collect();
        let prefix = format!("{prefix}.");
        for (name, expected) in self.tensors.iter().filter_map(|(name, t)| Some((name.strip_prefix(&prefix)?, t))) {
            let name = ours(name);
            assert_close(&format!("{} {prefix}{name}", self.name), parameters[name.as_str()], expected, 5e-4, 0.0);
        }
    }

    fn check_gradients(&self, step: i64, model: &Model) {
        for (name, parameter) in model.named_parameters() {
            if let Some(expected) = self.tensors.get(&format!("grad.step{}.{name}", step + 1)) {
                assert_close(&format!("{} gradient {name}", self.name), &parameter.grad(), expected, 1e-4, 1e-3);
            }
        }
    }
}

/// peft keeps several adapters in a model, each under its name, and only one in a file.
fn ours(name: &str) -> String {
    name.replace(".default", "")
}

/// The golden adapters with those tensors, put back to where the run began.
fn adapters_like(initial: &BTreeMap<String, &Tensor>) -> Vec<(PathBuf, Model)> {
    let folders = std::fs::read_dir(dlm_golden::folder().join("models")).unwrap().map(|entry| entry.unwrap().path());
    let folders = folders.filter(|path| path.join(dlm_model::ADAPTER_CONFIG).exists());
    let models = folders.filter_map(|path| {
        let mut model = Model::load(&path, &dlm_model::LoadOptions::default()).unwrap();
        let state = model.trainable_parameters();
        let fits = state.len() == initial.len()
            && state.iter().all(|(name, tensor)| initial.get(name).is_some_and(|other| other.size() == tensor.size()));
        if !fits {
            return None;
        }
        for (name, tensor) in state {
            tch::no_grad(|| tensor.shallow_clone().copy_(initial[name]));
        }
        model.set_packing_isolation(dlm_diffusion::PackingIsolation::Row);
        model.train(true);
        Some((path, model))
    });
    models.collect()
}

fn value(metrics: &StepMetrics, name: &str) -> Option<f64> {
    metrics.named().into_iter().find(|(known, _)| *known == name).map(|(_, value)| value)
}

#[test]
fn golden_training_runs_have_the_losses_rates_norms_and_weights_of_the_reference() {
    let runs: Vec<Run> = dlm_golden::files("train_", "json").iter().filter_map(|path| Run::read(path)).collect();
    assert!(!runs.is_empty(), "no run of full weights to compare with");
    for run in runs {
        let model = run.model();
        let mut optimizer = AdamW::new(model.trainable_parameters(), &run.optimizer());
        if let Some(groups) = run.json["optimizer_groups"].as_array() {
            let decays = |group: &&Value| number(&group["weight_decay"]) != Some(0.0);
            let names = groups.iter().filter(decays).flat_map(|group| group["params"].as_array().unwrap());
            let mut expected: Vec<String> = names.map(|name| ours(name.as_str().unwrap())).collect();
            let mut found: Vec<String> = optimizer.decayed().map(str::to_owned).collect();
            expected.sort_unstable();
            found.sort_unstable();
            if run.argument("weight_decay") != 0.0 {
                assert_eq!(found, expected, "{}: parameters that decay", run.name);
            }
        }
        let schedule = run.schedule();
        let steps = run.argument("max_steps") as i64;
        for step in 0..steps {
            let lr = schedule.rate(step as u64);
            let window = run.window(step);
            let loss = run.objective.loss();
            let report =
                optimizer_step(&model, Device::Cpu, &mut optimizer, &window, &loss, lr, step as u64 + 1).unwrap();
            run.check_report(step, lr, &report);
            run.check_gradients(step, &model);
            run.check_weights(&format!("step{}", step + 1), &model);
        }
        run.check_weights("final", &model);
    }
}
