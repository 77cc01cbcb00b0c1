//! Keys of the `diffusion` block whose effect shows in a whole run: samples, what the model folder says, and what is refused.

use dlm_tests::Scratch;
use serde_json::{Value, json};

fn prepared() -> Scratch {
    let scratch = Scratch::new(env!("CARGO_BIN_EXE_dlm-under-test"));
    let rows: String = (0..60)
        .map(|i| {
            format!("{}\n", json!({ "text": format!("Row {i} counts from {} to {} and back.", i * 3, i * 5 + 2) }))
        })
        .collect();
    scratch.write("rows.jsonl", rows);
    let model = dlm_golden::model("llama").canonicalize().unwrap();
    scratch.write(
        "pipeline.toml",
        format!(
            "[[source]]\npath = \"rows.jsonl\"\n[[step]]\ntokenize = {{ tokenizer = {model:?}, add_eos = true }}\n\
             [[step]]\npack = {{ sequence_len = 64 }}\n[output]\npath = \"data\"\n"
        ),
    );
    scratch.succeed(&["data", "prepare", "pipeline.toml"]);
    scratch.write(
        "run.toml",
        format!(
            "base_model = {model:?}\ndataset_prepared_path = \"data\"\nmax_steps = 2\nmicro_batch_size = 2\nlearning_rate = 1e-3\n\
             [diffusion]\ngeneration_interval = 1\nnum_generation_samples = 2\ngeneration_steps = 3\ngeneration_max_length = 24\n"
        ),
    );
    scratch
}

fn arguments<'a>(output: &'a str, settings: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["train", "--profile", "pretrain", "--config", "run.toml", "--set", output];
    settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
    arguments
}

/// What a run leaves behind.
struct Run {
    samples: Vec<Value>,
    metrics: Vec<Value>,
    diffusion: Value,
}

impl Run {
    fn of(scratch: &Scratch, name: &str, settings: &[&str]) -> Self {
        let output = format!("output_dir={name}");
        scratch.succeed(&arguments(&output, settings));
        let samples = format!("{name}/samples.jsonl");
        let config: Value = serde_json::from_str(&scratch.read(&format!("{name}/config.json"))).unwrap();
        Self {
            samples: if scratch.path(&samples).exists() { scratch.json_lines(&samples) } else { Vec::new() },
            metrics: scratch.json_lines(&format!("{name}/metrics.jsonl")),
            diffusion: config["diffusion"].clone(),
        }
    }

    /// A value of every sample.
    fn each(&self, key: &str) -> Vec<Value> {
        self.samples.iter().map(|sample| sample[key].clone()).collect()
    }

    fn metric(&self, name: &str) -> Option<f64> {
        self.metrics[0][name].as_f64()
    }
}

#[test]
fn every_setting_of_the_samples_made_while_training_shows_in_them() {
    let scratch = prepared();
    let base = Run::of(&scratch, "base", &[]);
    assert_eq!(base.each("nfe"), vec![json!(3); 4], "two samples after each of two steps, of three passes");
    let longest = |run: &Run| run.each("ids").iter().map(|ids| ids.as_array().unwrap().len()).max();
    assert!(longest(&base) <= Some(24));
    assert_eq!(Run::of(&scratch, "none", &["diffusion.generate_samples=false"]).samples.len(), 0);
    assert_eq!(Run::of(&scratch, "rare", &["diffusion.generation_interval=2"]).samples.len(), 2);
    assert_eq!(Run::of(&scratch, "one", &["diffusion.num_generation_samples=1"]).samples.len(), 2);
    assert_eq!(Run::of(&scratch, "quick", &["diffusion.generation_steps=1"]).each("nfe"), vec![json!(1); 4]);
    assert!(longest(&Run::of(&scratch, "short", &["diffusion.generation_max_length=12"])) <= Some(12));
    let hot = Run::of(&scratch, "hot", &["diffusion.generation_temperature=3"]);
    assert_eq!(hot.each("masked_positions"), base.each("masked_positions"));
    assert_ne!(hot.each("generated_ids"), base.each("generated_ids"));
    // Written as the model is trained to write.
    let causal = Run::of(&scratch, "causal", &["diffusion.objective=autoregressive"]);
    assert_eq!(causal.each("mode"), vec![json!("continuation"); 4]);
    assert_eq!(causal.each("nfe"), causal.each("num_masked"), "token by token");
    let blocks = Run::of(&scratch, "blocks", &["diffusion.block_length=1"]);
    assert_eq!(blocks.each("nfe"), blocks.each("num_masked"), "block by block");
}

#[test]
fn what_the_model_folder_says_of_diffusion_follows_from_the_settings() {
    let scratch = prepared();
    let quiet = "diffusion.generate_samples=false";
    let blocks = Run::of(&scratch, "blocks", &[quiet, "diffusion.block_length=4"]);
    let noisy = Run::of(&scratch, "noisy", &[quiet, "diffusion.block_length=4", "diffusion.block_start=noisy"]);
    assert_eq!((&blocks.diffusion["block_length"], &noisy.diffusion["block_start"]), (&json!(4), &json!("noisy")));
    assert_ne!(blocks.metric("train/loss"), noisy.metric("train/loss"), "another state predicts the first of a block");

    let spared = Run::of(&scratch, "spared", &[quiet, "diffusion.never_mask=bos,eos"]);
    let base = Run::of(&scratch, "plain", &[quiet]);
    assert_eq!(spared.diffusion["never_mask"], json!(["bos", "eos"]));
    assert_ne!(spared.metric("train/num_masked_tokens"), base.metric("train/num_masked_tokens"));

    Run::of(&scratch, "named", &[quiet, "diffusion.mask_token_str=<|hole|>"]);
    assert!(scratch.read("named/tokenizer.json").contains("<|hole|>"));
    let chosen = Run::of(&scratch, "chosen", &[quiet, "diffusion.mask_token_id=7"]);
    assert_eq!(chosen.diffusion["mask_token_id"], 7);

    let sample = |steps: &str| -> Value {
        let steps = format!("diffusion.num_diffusion_steps={steps}");
        let text = scratch.succeed(&[
            "sample",
            "--model",
            "plain",
            "--prompt",
            "Row",
            "--complete",
            "9",
            "--json",
            "--set",
            &steps,
        ]);
        serde_json::from_str(text.lines().last().unwrap()).unwrap()
    };
    assert_eq!((&sample("2")["nfe"], &sample("5")["nfe"]), (&json!(2), &json!(5)));
}

#[test]
fn an_autoregressive_loss_beside_the_masked_one_is_reported_and_uneven_blocks_are_refused_when_asked() {
    let scratch = prepared();
    let quiet = "diffusion.generate_samples=false";
    let hybrid = Run::of(&scratch, "hybrid", &[quiet, "diffusion.autoregressive_weight=0.5"]);
    let base = Run::of(&scratch, "plain", &[quiet]);
    let beside = hybrid.metric("train/autoregressive_nll").expect("a metric of its own");
    assert_eq!(
        (base.metric("train/autoregressive_nll"), hybrid.metric("train/nelbo")),
        (None, base.metric("train/nelbo"))
    );
    let (loss, masked) = (hybrid.metric("train/loss").unwrap(), base.metric("train/loss").unwrap());
    assert!((loss - masked - 0.5 * beside).abs() < 1e-4 * loss, "{loss}, {masked} and {beside}");

    let settings = [quiet, "diffusion.block_length=7", "diffusion.last_block=whole"];
    scratch.refuse(&arguments("output_dir=uneven", &settings), 1, &["does not divide into blocks of 7 tokens"]);
    Run::of(&scratch, "shorter", &[quiet, "diffusion.block_length=7", "diffusion.last_block=shorter"]);
}
