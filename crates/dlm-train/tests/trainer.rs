//! What a run promises: it learns, stops and resumes to the bit, and leaves whole files behind.

use dlm_diffusion::AutoregressivePart;
use dlm_model::{LoadOptions, Model, ModelConfig};
use dlm_train::{
    CheckpointConfig, EvaluationConfig, Interval, MemoryRows, MetricSink, Metrics, ObjectiveConfig, Outcome, Precision,
    Preview, PreviewConfig, RunConfig, RunLength, SAMPLES_FILE, Start, TrainError, Trainer, metric, read_metrics,
};
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};
use tch::{Kind, Tensor};

const SEQ_LEN: usize = 16;
const MASK: i64 = 31;

/// Texts that count upwards from different numbers, of different lengths.
fn texts() -> MemoryRows {
    let texts: Vec<Vec<i32>> = (0..10).map(|first| (first..first + 12 + first % 5).collect()).collect();
    MemoryRows::of_texts(SEQ_LEN, &texts).unwrap()
}

fn model() -> Model {
    let json = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16,
        "vocab_size": 32, "rms_norm_eps": 1e-5, "tie_word_embeddings": true}"#;
    let config = ModelConfig::from_json(serde_json::from_str(json).unwrap(), Path::new("config.json")).unwrap();
    Model::from_config(config, 3, &LoadOptions::default()).unwrap()
}

fn config(output_dir: &Path, steps: u64) -> RunConfig {
    let mut config = RunConfig::new(output_dir, RunLength::Steps(steps), ObjectiveConfig::new(MASK));
    config.batches.micro_batch_size = 2;
    config.batches.gradient_accumulation_steps = 2;
    config.lr_schedule.learning_rate = 3e-3;
    config.lr_schedule.warmup = dlm_train::Warmup::Steps(2);
    config
}

/// Evaluation, previews and checkpoints switched on.
fn busy(output_dir: &Path, steps: u64) -> RunConfig {
    let mut config = config(output_dir, steps);
    config.logging_steps = 2;
    config.evaluation =
        EvaluationConfig { every: Interval::Steps(2), max_rows: Some(4), ..EvaluationConfig::default() };
    config.checkpoints = CheckpointConfig { every: Interval::Steps(3), total_limit: None };
    config.previews = Some(PreviewConfig { interval: 2, count: 2, steps: 3, ..PreviewConfig::default() });
    config
}

fn run(config: RunConfig, start: Start) -> dlm_train::Result<(Outcome, Model)> {
    let (rows, validation) = (texts(), texts());
    Trainer::new(config, model(), &rows)?.with_validation(&validation)?.with_identity("data", "counting").run(start)
}

/// What of a run has to repeat itself: everything but the clock and the machine.
fn repeatable(output_dir: &Path) -> Vec<(u64, Metrics)> {
    let mut lines = read_metrics(&output_dir.join("metrics.jsonl")).unwrap();
    for (_, metrics) in &mut lines {
        metrics.retain(|(name, _)| name != "train/tokens_per_s" && name != "train/memory_gib");
    }
    lines
}

fn weights(model: &Model) -> BTreeMap<String, Tensor> {
    model.named_parameters().iter().map(|(name, tensor)| (name.clone(), tensor.detach().copy())).collect()
}

fn names(folder: &Path, prefix: &str) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.starts_with(prefix)).collect();
    names.sort();
    names
}

#[test]
fn a_tiny_model_learns_to_count() {
    let folder = tempfile::tempdir().unwrap();
    let output_dir = folder.path().join("run");
    let mut config = config(&output_dir, 200);
    config.evaluation = EvaluationConfig { every: Interval::Steps(100), ..EvaluationConfig::default() };
    config.evaluation.tokens_per_byte = Some(0.25);
    let (outcome, _) = run(config, Start::New).unwrap();
    assert_eq!(outcome, Outcome::Finished { step: 200 });

    let lines = repeatable(&output_dir);
    let nelbo = |range: std::ops::Range<usize>| {
        let values: Vec<f64> = lines[range].iter().map(|(_, line)| metric(line, "train/nelbo").unwrap()).collect();
        values.iter().sum::<f64>() / values.len() as f64
    };
    let (first, last) = (nelbo(0..20), nelbo(180..200));
    assert!(last < 0.7 * first, "nelbo from {first} to {last}");
    let eval = |line: usize, name: &str| metric(&lines[line].1, name).unwrap();
    assert!(eval(199, "eval/nelbo") < eval(99, "eval/nelbo"));
    let bits = eval(199, "eval/nelbo") * 0.25 / std::f64::consts::LN_2;
    assert!((eval(199, "eval/bits_per_byte") - bits).abs() < 1e-12);
    assert!(eval(199, "eval/nelbo_stderr") > 0.0 && eval(199, "eval/nelbo_mc_error") > 0.0);
    assert_eq!(metric(&lines[0].1, "train/learning_rate"), Some(0.0));
    assert!(metric(&lines[0].1, "train/answer_ratio").is_none(), "texts have no answers");

    let saved = Model::load(&output_dir, &LoadOptions::default()).unwrap();
    assert_eq!(saved.parameter_count(), model().parameter_count());
    assert!(fs::read_to_string(output_dir.join("loss_curve.svg")).unwrap().contains("eval/nelbo"));
}

#[test]
fn a_run_that_is_never_evaluated_is_not_evaluated_at_its_end_either() {
    let folder = tempfile::tempdir().unwrap();
    let evaluated = |every, name: &str| {
        let output_dir = folder.path().join(name);
        let mut config = config(&output_dir, 5);
        config.evaluation = EvaluationConfig { every, ..EvaluationConfig::default() };
        run(config, Start::New).unwrap();
        let lines = repeatable(&output_dir);
        lines.iter().filter(|line| metric(&line.1, "eval/nelbo").is_some()).map(|line| line.0).collect::<Vec<_>>()
    };
    assert!(evaluated(Interval::Never, "never").is_empty());
    assert_eq!(evaluated(Interval::Steps(2), "steps"), [2, 4, 5]);
}

#[test]
fn an_evaluation_of_a_part_looks_at_exactly_so_many_rows_the_same_ones_every_time() {
    let evaluated = |max_rows, micro_batch_size, seed| {
        let folder = tempfile::tempdir().unwrap();
        let output_dir = folder.path().join("run");
        let mut config = config(&output_dir, 1);
        config.lr_schedule.learning_rate = 1e-30; // nothing is learnt between two evaluations
        config.seed = seed;
        config.evaluation = EvaluationConfig { max_rows, micro_batch_size, ..EvaluationConfig::default() };
        run(config, Start::New).unwrap();
        metric(&repeatable(&output_dir)[0].1, "eval/nelbo").unwrap()
    };
    let close = |a: f64, b: f64| (a - b).abs() < 1e-5 * a.abs();
    let five = evaluated(Some(5), 8, 1);
    // However rows are batched: the last batch is cut where the part ends.
    assert!(close(evaluated(Some(5), 2, 1), five), "{five}");
    assert!(!close(evaluated(Some(6), 2, 1), five));
    assert!(!close(evaluated(None, 2, 1), five));
    assert!(close(evaluated(Some(100), 8, 1), evaluated(None, 8, 1)));
}

#[test]
fn a_resumed_run_ends_with_the_weights_and_logs_of_an_unbroken_one_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let (unbroken, broken) = (folder.path().join("unbroken"), folder.path().join("broken"));
    let (_, expected) = run(busy(&unbroken, 6), Start::New).unwrap();

    run(busy(&broken, 6), Start::New).unwrap();
    // As a kill after step 5 would leave it: nothing final, logs ahead of the checkpoint, half a line and half a checkpoint.
    for name in ["config.json", "model.safetensors", "loss_curve.svg"] {
        fs::remove_file(broken.join(name)).unwrap();
    }
    fs::remove_dir_all(broken.join("checkpoint-6")).unwrap();
    let half = fs::read_to_string(broken.join("metrics.jsonl")).unwrap();
    fs::write(broken.join("metrics.jsonl"), &half[..half.len() - 20]).unwrap();
    fs::create_dir(broken.join(".tmp-checkpoint-6-1-0")).unwrap();
    fs::create_dir(broken.join("checkpoint-5")).unwrap();

    let (outcome, found) = run(busy(&broken, 6), Start::Resume).unwrap();
    assert_eq!(outcome, Outcome::Finished { step: 6 });
    assert_eq!(weights(&found), weights(&expected));
    assert_eq!(repeatable(&broken), repeatable(&unbroken));
    assert_eq!(fs::read(broken.join(SAMPLES_FILE)).unwrap(), fs::read(unbroken.join(SAMPLES_FILE)).unwrap());
    assert_eq!(
        fs::read(broken.join("model.safetensors")).unwrap(),
        fs::read(unbroken.join("model.safetensors")).unwrap()
    );
    assert_eq!(names(&broken, ""), names(&unbroken, ""));
}

/// A run of 6 steps whose weights, metrics and samples are the same when it is resumed at step 3.
fn resumes_to_the_bit(change: &dyn Fn(&mut RunConfig)) -> (RunConfig, Model, Vec<(u64, Metrics)>) {
    let folder = tempfile::tempdir().unwrap();
    let (unbroken, broken) = (folder.path().join("unbroken"), folder.path().join("broken"));
    let config = |folder: &Path| {
        let mut config = busy(folder, 6);
        change(&mut config);
        config
    };
    let (_, expected) = run(config(&unbroken), Start::New).unwrap();
    run(config(&broken), Start::New).unwrap();
    for name in ["config.json", "model.safetensors", "loss_curve.svg"] {
        fs::remove_file(broken.join(name)).unwrap();
    }
    fs::remove_dir_all(broken.join("checkpoint-6")).unwrap();
    let (_, found) = run(config(&broken), Start::Resume).unwrap();
    assert_eq!(weights(&found), weights(&expected));
    assert_eq!(repeatable(&broken), repeatable(&unbroken));
    (config(&unbroken), found, repeatable(&unbroken))
}

#[test]
fn each_precision_trains_in_its_own_kinds_and_resumes_to_the_bit() {
    let in_precision = |precision| resumes_to_the_bit(&move |config| config.precision = precision);
    let (_, exact, exact_metrics) = in_precision(Precision::Float32);
    let (_, mixed, mixed_metrics) = in_precision(Precision::Mixed);
    let (_, pure, _) = in_precision(Precision::Bfloat16);
    assert_eq!((exact.kind(), exact.compute_kind()), (Kind::Float, Kind::Float));
    assert_eq!((mixed.kind(), mixed.compute_kind()), (Kind::Float, Kind::BFloat16));
    assert_eq!((pure.kind(), pure.compute_kind()), (Kind::BFloat16, Kind::BFloat16));
    // Training and evaluation differ from those in float32, and not by much.
    for name in ["train/loss", "eval/nelbo"] {
        let last = |metrics: &[(u64, Metrics)]| metrics.iter().rev().find_map(|(_, of_step)| metric(of_step, name));
        let (exact, mixed) = (last(&exact_metrics).unwrap(), last(&mixed_metrics).unwrap());
        assert!(exact != mixed && (exact / mixed - 1.0).abs() < 0.05, "{name}: {exact} and {mixed}");
    }
}

#[test]
fn a_checkpoint_of_another_precision_is_not_resumed() {
    let folder = tempfile::tempdir().unwrap();
    run(busy(folder.path(), 3), Start::New).unwrap();
    fs::remove_file(folder.path().join("config.json")).unwrap();
    let other = RunConfig { precision: Precision::Mixed, ..busy(folder.path(), 3) };
    let error = run(other, Start::Resume).unwrap_err().to_string();
    assert!(error.contains("`precision` was float32, is mixed"), "{error}");
}

#[test]
fn gradient_checkpointing_changes_no_number_and_may_change_between_parts_of_a_run() {
    let (_, with, with_metrics) = resumes_to_the_bit(&|config| config.gradient_checkpointing = true);
    let (_, without, without_metrics) = resumes_to_the_bit(&|_| ());
    assert_eq!((with.gradient_checkpointing(), without.gradient_checkpointing()), (true, false));
    assert_eq!(weights(&with), weights(&without));
    assert_eq!(with_metrics, without_metrics);
}

#[test]
fn evaluating_previewing_and_saving_do_not_change_what_is_trained() {
    let folder = tempfile::tempdir().unwrap();
    let (_, quiet) = run(config(&folder.path().join("quiet"), 4), Start::New).unwrap();
    let (_, loud) = run(busy(&folder.path().join("loud"), 4), Start::New).unwrap();
    assert_eq!(weights(&quiet), weights(&loud));
}

#[test]
fn a_run_that_is_asked_to_stop_saves_where_it_is_and_goes_on_from_there() {
    let folder = tempfile::tempdir().unwrap();
    let (unbroken, stopped) = (folder.path().join("unbroken"), folder.path().join("stopped"));
    let (_, expected) = run(config(&unbroken, 4), Start::New).unwrap();

    let rows = texts();
    let stop = Arc::new(AtomicBool::new(true));
    let trainer = Trainer::new(config(&stopped, 4), model(), &rows).unwrap().with_stop(stop);
    let (outcome, _) = trainer.with_identity("data", "counting").run(Start::New).unwrap();
    let checkpoint = stopped.join("checkpoint-1");
    assert_eq!(outcome, Outcome::Interrupted { step: 1, checkpoint: checkpoint.clone() });
    assert!(checkpoint.join("config.json").exists() && !stopped.join("config.json").exists());

    let (outcome, found) = run(config(&stopped, 4), Start::Resume).unwrap();
    assert_eq!(outcome, Outcome::Finished { step: 4 });
    assert_eq!(weights(&found), weights(&expected));
    assert_eq!(repeatable(&stopped), repeatable(&unbroken));
}

#[test]
fn a_run_killed_before_its_first_checkpoint_begins_again() {
    let folder = tempfile::tempdir().unwrap();
    let (unbroken, killed) = (folder.path().join("unbroken"), folder.path().join("killed"));
    let (_, expected) = run(config(&unbroken, 3), Start::New).unwrap();
    fs::create_dir(&killed).unwrap();
    fs::write(killed.join("metrics.jsonl"), "{\"step\":1,\"train/loss\":3.0}\n").unwrap();
    let (_, found) = run(config(&killed, 3), Start::Resume).unwrap();
    assert_eq!(weights(&found), weights(&expected));
    assert_eq!(repeatable(&killed), repeatable(&unbroken));
}

#[test]
fn a_checkpoint_of_other_data_or_settings_is_refused_and_what_does_not_matter_may_change() {
    let folder = tempfile::tempdir().unwrap();
    run(busy(folder.path(), 3), Start::New).unwrap();
    let rows = texts();
    let resume = |config: RunConfig, data: &str| {
        Trainer::new(config, model(), &rows).unwrap().with_identity("data", data).run(Start::Resume)
    };
    let refused = |config: RunConfig, data: &str| match resume(config, data) {
        Err(error @ TrainError::OtherRun { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let message = refused(busy(folder.path(), 3), "other");
    assert!(message.contains("`data` was counting, is other"), "{message}");
    let mut other = busy(folder.path(), 3);
    other.objective.eps = 0.01;
    other.batches.micro_batch_size = 1;
    let message = refused(other, "counting");
    assert!(
        message.contains("`objective.eps` was 0.001, is 0.01") && message.contains("`batches.micro_batch_size`"),
        "{message}"
    );
    // A cosine over another number of steps is another run.
    assert!(refused(busy(folder.path(), 9), "counting").contains("`max_steps` was 3, is 9"));

    let mut free = busy(folder.path(), 3);
    (free.logging_steps, free.previews, free.checkpoints.every) = (1, None, Interval::Never);
    assert_eq!(resume(free, "counting").unwrap().0, Outcome::Finished { step: 3 });
}

#[test]
fn a_folder_that_holds_a_run_is_not_written_over_and_an_empty_one_is_not_resumed() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(run(config(folder.path(), 1), Start::Resume), Err(TrainError::NoCheckpoint { .. })));
    run(config(folder.path(), 1), Start::New).unwrap();
    let error = run(config(folder.path(), 1), Start::New).unwrap_err();
    assert!(matches!(error, TrainError::RunExists { .. }) && error.help().unwrap().contains("--resume"), "{error}");
}

#[test]
fn only_the_newest_checkpoints_stay() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path(), 5);
    config.checkpoints = CheckpointConfig { every: Interval::Steps(1), total_limit: Some(2) };
    run(config, Start::New).unwrap();
    assert_eq!(names(folder.path(), "checkpoint-"), ["checkpoint-4", "checkpoint-5"]);
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run_before_the_weights_change_and_names_the_documents() {
    let folder = tempfile::tempdir().unwrap();
    let broken = model();
    let _ = tch::no_grad(|| broken.named_parameters()[0].1.get(5).fill_(f64::NAN));
    let rows = texts();
    let failed = Arc::new(std::sync::Mutex::new(None));
    let sink = Watching { outcome: failed.clone() };
    let before = broken.named_parameters()[1].1.copy();
    let kept = broken.named_parameters()[1].1.shallow_clone();
    let error =
        Trainer::new(config(folder.path(), 3), broken, &rows).unwrap().with_sink(sink).run(Start::New).unwrap_err();
    assert!(matches!(&error, TrainError::NotFinite { step: 1, documents, .. } if !documents.is_empty()), "{error}");
    assert_eq!(kept, before);
    assert!(matches!(&*failed.lock().unwrap(), Some(Outcome::Failed { step: 0, .. })));
}

struct Watching {
    outcome: Arc<std::sync::Mutex<Option<Outcome>>>,
}

impl MetricSink for Watching {
    fn log(&mut self, _step: u64, _metrics: &[(String, f64)]) -> dlm_train::Result<()> {
        Ok(())
    }

    fn finish(&mut self, outcome: &Outcome) -> dlm_train::Result<()> {
        *self.outcome.lock().unwrap() = Some(outcome.clone());
        Ok(())
    }
}

#[test]
fn a_sink_may_ask_for_a_stop_and_sees_the_samples() {
    #[derive(Default)]
    struct Impatient {
        steps: u64,
        samples: Arc<std::sync::Mutex<Vec<Preview>>>,
    }
    impl MetricSink for Impatient {
        fn log(&mut self, step: u64, _metrics: &[(String, f64)]) -> dlm_train::Result<()> {
            self.steps = step;
            Ok(())
        }
        fn samples(&mut self, _step: u64, previews: &[Preview]) -> dlm_train::Result<()> {
            self.samples.lock().unwrap().extend_from_slice(previews);
            Ok(())
        }
        fn wants_stop(&self) -> bool {
            self.steps >= 2
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let (rows, sink) = (texts(), Impatient::default());
    let samples = sink.samples.clone();
    let trainer = Trainer::new(busy(folder.path(), 6), model(), &rows).unwrap().with_sink(sink);
    let (outcome, _) = trainer.with_text(|ids| format!("<{}>", ids.len())).run(Start::New).unwrap();
    assert!(matches!(outcome, Outcome::Interrupted { step: 2, .. }), "{outcome:?}");
    let samples = samples.lock().unwrap();
    assert_eq!(samples.len(), 2);
    let lines = fs::read_to_string(folder.path().join(SAMPLES_FILE)).unwrap();
    let first: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(first["step"], 2);
    assert_eq!(first["generated"], samples[0].generated);
    assert!(!lines.contains('\u{0}') && lines.lines().count() == 2);
}

#[test]
fn rows_that_do_not_fit_the_model_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let long = MemoryRows::of_texts(17, &[vec![1; 17]]).unwrap();
    let error = Trainer::new(config(folder.path(), 1), model(), &long).err().unwrap();
    assert!(matches!(error, TrainError::RowsTooLong { seq_len: 17, max_seq_len: 16 }), "{error}");
    let empty = MemoryRows::of_texts(16, &[]).unwrap();
    assert!(matches!(Trainer::new(config(folder.path(), 1), model(), &empty).err().unwrap(), TrainError::NoRows));
    let unknown = MemoryRows::of_texts(16, &[vec![1, 2, 99]]).unwrap();
    let error = Trainer::new(config(folder.path(), 1), model(), &unknown).unwrap().run(Start::New).unwrap_err();
    assert!(matches!(error, TrainError::IdBeyondVocabulary { document: 0, id: 99, vocab_size: 32 }), "{error}");
}

#[test]
fn every_objective_trains_a_model_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let base = ObjectiveConfig::new(MASK);
    let objectives = [
        ("plain", base.clone()),
        ("blocks", ObjectiveConfig { block_length: Some("0:1, 2:4".parse().unwrap()), ..base.clone() }),
        ("pairs", ObjectiveConfig { complementary_masks: true, ..base.clone() }),
        ("counts", ObjectiveConfig { masking: dlm_diffusion::Masking::ExactCount, ..base.clone() }),
        ("annealed", ObjectiveConfig { attention_annealing_steps: 3, ..base.clone() }),
        ("autoregressive", ObjectiveConfig { autoregressive: Some(true), ..base.clone() }),
        (
            "hybrid",
            ObjectiveConfig {
                autoregressive_part: Some(AutoregressivePart { weight: 0.5, logits_shift: true }),
                ..base.clone()
            },
        ),
        ("lengths", ObjectiveConfig { random_length_probability: 1.0, ..base.clone() }),
        ("smoothed", ObjectiveConfig { label_smoothing: 0.2, z_loss: 0.1, forbid_mask: true, ..base.clone() }),
        ("cart", ObjectiveConfig { loss_weight: dlm_diffusion::LossWeight::Cart, ..base }),
    ];
    let mut seen: Vec<(&str, f64)> = Vec::new();
    for (name, objective) in objectives {
        let output_dir = folder.path().join(name);
        let mut config = config(&output_dir, 4);
        config.objective = objective;
        let (_, model) = run(config, Start::New).unwrap();
        let size: f64 = model
            .named_parameters()
            .iter()
            .map(|(_, tensor)| tensor.abs().sum(tch::Kind::Double).double_value(&[]))
            .sum();
        assert!(seen.iter().all(|(_, other)| (size - other).abs() > 1e-9), "{name} trained like another: {seen:?}");
        let lines = repeatable(&output_dir);
        assert!(metric(&lines[3].1, "eval/nelbo").unwrap().is_finite(), "{name}");
        seen.push((name, size));
    }
}
