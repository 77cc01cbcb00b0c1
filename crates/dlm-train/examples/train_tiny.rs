//! Trains a model of a few thousand parameters on rows made here, and shows what it learnt.
//!
//! Run with `cargo run -p dlm-train --example train_tiny`.

use dlm_model::{LoadOptions, Model, ModelConfig};
use dlm_train::{
    EvaluationConfig, Interval, LossCurve, MemoryRows, MetricSink, ObjectiveConfig, Preview, PreviewConfig, RunConfig,
    RunLength, Start, Trainer, metric,
};
use std::error::Error;

const MASK: i64 = 26;
const SEQ_LEN: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    tch::set_num_threads(1);
    let folder = tempfile::tempdir()?;

    // The alphabet from different letters on: a letter is known as soon as one of its neighbours is.
    let texts: Vec<Vec<i32>> =
        (0..26).map(|first| (first..first + SEQ_LEN as i32).map(|id| id % 26).collect()).collect();
    let rows = MemoryRows::of_texts(SEQ_LEN, &texts)?;

    let json = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16,
        "vocab_size": 27, "rms_norm_eps": 1e-5, "tie_word_embeddings": true}"#;
    let model = Model::from_config(
        ModelConfig::from_json(serde_json::from_str(json)?, "config.json".as_ref())?,
        42,
        &LoadOptions::default(),
    )?;
    println!("{} parameters; a guess costs ln 26 = {:.3} nats a letter", model.parameter_count(), 26f64.ln());

    let objective = ObjectiveConfig::new(MASK);
    println!("{}\n", objective.effective_range()?);
    let mut config = RunConfig::new(folder.path().join("run"), RunLength::Steps(400), objective);
    config.batches.micro_batch_size = 16;
    config.lr_schedule.learning_rate = 5e-3;
    config.evaluation = EvaluationConfig { every: Interval::Steps(50), ..EvaluationConfig::default() };
    config.previews = Some(PreviewConfig { interval: 200, count: 2, steps: 8, ..PreviewConfig::default() });

    let letters =
        |ids: &[i64]| ids.iter().map(|&id| if id == MASK { '_' } else { char::from(b'a' + id as u8) }).collect();
    let trainer = Trainer::new(config, model, &rows)?.with_validation(&rows)?.with_text(letters).with_sink(Console);
    trainer.run(Start::New)?;

    println!("\n{}", LossCurve::of_run(&folder.path().join("run"))?.to_terminal(60, 12));
    Ok(())
}

/// Prints evaluations and samples.
struct Console;

impl MetricSink for Console {
    fn log(&mut self, step: u64, metrics: &[(String, f64)]) -> dlm_train::Result<()> {
        if let (Some(train), Some(eval)) = (metric(metrics, "train/nelbo"), metric(metrics, "eval/nelbo")) {
            println!("step {step:3}: nelbo {train:.3} on the batch, {eval:.3} over all rows");
        }
        Ok(())
    }

    fn samples(&mut self, _step: u64, previews: &[Preview]) -> dlm_train::Result<()> {
        for preview in previews {
            println!("          {} -> {}", preview.masked, preview.generated);
        }
        Ok(())
    }
}
