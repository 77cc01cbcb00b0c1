//! `dlm eval` through the binary: bounds of texts and prepared data, questions, and generated texts.

use dlm_golden::{files, model};
use dlm_tests::Scratch;
use serde_json::{Value, json};

/// A golden model folder and the id of its mask token.
fn subject() -> (String, String) {
    let path = &files("sample_axolotl", "json")[0];
    let file = dlm_golden::json(path);
    let case =
        file["cases"].as_array().and_then(|cases| cases.iter().find(|case| case["model"].is_string())).expect("a case");
    (model(case["model"].as_str().expect("a model")).display().to_string(), case["mask_token_id"].to_string())
}

struct Eval {
    scratch: Scratch,
    model: String,
    mask: String,
}

impl Eval {
    fn new() -> Self {
        let (model, mask) = subject();
        let scratch = Scratch::new(env!("CARGO_BIN_EXE_dlm-under-test"));
        let texts = ["The model fills in masks.", "A second text, a little longer than the first one.", "Short."];
        let lines: Vec<String> = texts.iter().map(|text| json!({ "text": text, "body": "x" }).to_string()).collect();
        scratch.write("texts.jsonl", lines.join("\n"));
        Self { scratch, model, mask: format!("diffusion.mask_token_id={mask}") }
    }

    fn text(&self, arguments: &[&str]) -> String {
        let mut all = vec!["eval", "--model", &self.model, "--set", &self.mask];
        all.extend(arguments);
        self.scratch.succeed(&all)
    }

    fn objects(&self, arguments: &[&str]) -> Vec<Value> {
        let text = self.text(&[arguments, &["--json"]].concat());
        text.lines().map(|line| serde_json::from_str(line).expect("a JSON object")).collect()
    }

    fn object(&self, arguments: &[&str]) -> Value {
        self.objects(arguments).pop().expect("an object")
    }
}

#[test]
fn texts_are_bounded_with_errors_and_every_option_has_an_effect() {
    let eval = Eval::new();
    let texts = ["--jsonl", "texts.jsonl"];
    let of = |more: &[&str]| eval.object(&[&texts[..], more].concat());
    let base = of(&[]);
    assert_eq!((&base["kind"], &base["documents"]), (&json!("bound"), &json!(3)));
    let nats = |report: &Value| report["nats_per_token"].as_f64().expect("a number");
    assert!((base["perplexity"].as_f64().unwrap() - nats(&base).exp()).abs() < 1e-6 * nats(&base).exp());
    assert!(base["bits_per_byte"].as_f64().unwrap() > 0.0 && base["standard_error"].as_f64().unwrap() > 0.0);
    assert!(base["monte_carlo_error"].as_f64().unwrap() > 0.0);
    assert_eq!(base["rows"], 3 * 4 * 2, "documents, passes, replicates");
    assert_eq!(nats(&base), nats(&of(&[])), "the same again");

    assert_eq!(of(&["--passes", "2"])["rows"], 3 * 2 * 2);
    assert_eq!(of(&["--replicates", "3"])["rows"], 3 * 4 * 3);
    assert_eq!(of(&["--max-documents", "1"])["documents"], 1);
    assert!((nats(&of(&["--batch-size", "1"])) - nats(&base)).abs() < 1e-4, "a batch is only a batch");
    assert_ne!(nats(&of(&["--set", "seed=7"])), nats(&base));
    assert_ne!(of(&["--field", "body"])["tokens"], base["tokens"]);
    let skipped = of(&["--max-len", "12", "--long", "skip"]);
    assert!(skipped["excluded"]["long_documents"].as_u64().unwrap() > 0);
    let cut = of(&["--max-len", "12", "--long", "cut"]);
    assert!(cut["excluded"]["cut_tokens"].as_u64().unwrap() > 0);
    let rolled = of(&["--max-len", "12", "--long", "roll"]);
    assert_eq!(rolled["tokens"], base["tokens"]);
    assert_ne!(nats(&of(&["--set", "diffusion.block_length=4"])), nats(&base));
    let exact = of(&["--autoregressive"]);
    assert_eq!((&exact["kind"], exact["monte_carlo_error"].as_f64()), (&json!("likelihood"), Some(0.0)));

    let table = eval.text(&["--jsonl", "texts.jsonl", "--svg", "plot.svg"]);
    assert!(
        table.contains("nats per token") && table.contains("bits per byte") && table.contains("left out"),
        "{table}"
    );
    let svg = eval.scratch.read("plot.svg");
    assert!(svg.starts_with("<svg") && svg.contains("polyline"), "{svg}");
}

#[test]
fn prepared_data_is_scored_document_by_document() {
    let eval = Eval::new();
    let pipeline = format!(
        "[[source]]\npath = \"texts.jsonl\"\n[[step]]\ntokenize = {{ tokenizer = {:?} }}\n[[step]]\npack = {{ sequence_len = 64 }}\n[output]\npath = \"data\"\n",
        eval.model
    );
    eval.scratch.write("pipeline.toml", pipeline);
    eval.scratch.succeed(&["data", "prepare", "pipeline.toml"]);
    let report = eval.object(&["--data", "data"]);
    assert_eq!(report["documents"], 3);
    assert!(report["bytes"].as_u64().unwrap() > 70, "{report}");
}

#[test]
fn questions_are_answered_by_either_method() {
    let eval = Eval::new();
    let question = json!({ "context": "The sky is", "choices": [" blue", " a fish and more", " 7"], "answer": 0 });
    eval.scratch.write("questions.jsonl", format!("{question}\n{question}\n"));
    let found = eval.objects(&["--choices", "questions.jsonl", "--method", "chain"]);
    assert_eq!(found.len(), 3, "two questions and their summary");
    assert_eq!(found[0]["log_likelihoods"].as_array().unwrap().len(), 3);
    let summary = &found[2];
    assert_eq!((&summary["kind"], &summary["questions"]), (&json!("choices"), &json!(2)));
    let is_right = found[0]["chosen"] == 0;
    assert_eq!(summary["accuracy"].as_f64().unwrap(), f64::from(is_right));
    let monte_carlo = eval.objects(&["--choices", "questions.jsonl", "--samples", "16", "--max-documents", "1"]);
    assert_eq!(monte_carlo.len(), 2);
    assert_ne!(monte_carlo[0]["log_likelihoods"][1], found[0]["log_likelihoods"][1]);
    let more = eval.objects(&["--choices", "questions.jsonl", "--samples", "32", "--max-documents", "1"]);
    assert_ne!(more[0]["log_likelihoods"][1], monte_carlo[0]["log_likelihoods"][1]);
    let guided =
        eval.objects(&["--choices", "questions.jsonl", "--samples", "16", "--max-documents", "1", "--guidance", "1"]);
    assert_ne!(guided[0]["log_likelihoods"][1], monte_carlo[0]["log_likelihoods"][1]);

    eval.scratch.write("wrong.jsonl", "{\"context\": \"a\", \"choices\": [\"b\"], \"answer\": 1}\n");
    let arguments = ["eval", "--model", &eval.model, "--set", &eval.mask, "--choices", "wrong.jsonl"];
    eval.scratch.refuse(&arguments, 2, &["`answer` in line 1 of wrong.jsonl is 1"]);
}

#[test]
fn generated_texts_are_judged() {
    let eval = Eval::new();
    let lines = [
        json!({ "text": "one two three four one two three four one two three four", "expected": "one  two" }),
        json!({ "text": "five", "expected": "five" }),
    ];
    eval.scratch.write("generated.jsonl", lines.map(|line| line.to_string()).join("\n"));
    let found = eval.object(&["--generated", "generated.jsonl"]);
    assert_eq!((&found["texts"], &found["exact_match"]), (&json!(2), &json!(0.5)));
    assert!(found["repetition"].as_f64().unwrap() > 0.0 && found["entropy"].as_f64().unwrap() > 0.0);
    assert!(found["perplexity"].is_null());
    let judged = eval.object(&["--generated", "generated.jsonl", "--ar-model", &eval.model]);
    assert!(judged["perplexity"].as_f64().unwrap() > 1.0);
}
