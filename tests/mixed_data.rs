//! Runs over several prepared folders, and what limits an evaluation.

use dlm_tests::Scratch;
use serde_json::{Value, json};

const DLM: &str = env!("CARGO_BIN_EXE_dlm-under-test");

/// Two folders of prepared data: `many` and `few`, the first with five times as many rows.
fn prepared() -> Scratch {
    let scratch = Scratch::new(DLM);
    for (name, count) in [("many", 100), ("few", 20)] {
        let row = |i: i32| {
            format!(
                "{}\n",
                json!({ "text": format!("In {name} row {i} counts from {} to {} and back.", i * 3, i * 5) })
            )
        };
        scratch.write(&format!("{name}.jsonl"), (0..count).map(row).collect::<String>());
        let tokenizer = dlm_golden::model("llama").canonicalize().unwrap();
        scratch.write(
            &format!("{name}.toml"),
            format!(
                "[[source]]\npath = \"{name}.jsonl\"\n[[step]]\ntokenize = {{ tokenizer = {tokenizer:?}, add_eos = true }}\n\
                 [[step]]\npack = {{ sequence_len = 48 }}\n[output]\npath = \"{name}\"\n"
            ),
        );
        scratch.succeed(&["data", "prepare", &format!("{name}.toml")]);
    }
    scratch
}

fn settings(paths: &str, output: &str) -> String {
    format!(
        "base_model = {:?}\ndataset_prepared_path = {paths}\noutput_dir = \"{output}\"\nmax_steps = 6\nmicro_batch_size = 2\n\
         learning_rate = 1e-3\nval_set_size = 0.2\nsave_steps = 3\n[diffusion]\ngenerate_samples = false\n",
        dlm_golden::model("llama").canonicalize().unwrap()
    )
}

fn train(scratch: &Scratch, paths: &str, output: &str, more: &[&str]) -> dlm_tests::Finished {
    scratch.write(&format!("{output}.toml"), settings(paths, output));
    let config = format!("{output}.toml");
    scratch.run(&[&["train", "--profile", "pretrain", "--config", &config], more].concat())
}

fn weights(scratch: &Scratch, output: &str) -> Vec<u8> {
    std::fs::read(scratch.path(output).join("model.safetensors")).unwrap()
}

const EQUAL: &str = "[{ path = \"many\", weight = 1 }, { path = \"few\", weight = 1 }]";
const UNEQUAL: &str = "[{ path = \"many\", weight = 9 }, { path = \"few\", weight = 1 }]";

#[test]
fn folders_are_mixed_by_their_weights_and_a_mixed_run_resumes_to_the_bit() {
    let scratch = prepared();
    let mixed = train(&scratch, EQUAL, "mixed", &[]);
    assert_eq!(mixed.code, Some(0), "{}", mixed.stderr);
    let counts: Vec<u64> = mixed
        .stderr
        .lines()
        .filter_map(|line| line.trim().split_once(" rows of an epoch are from ")?.0.parse().ok())
        .collect();
    assert!(counts.len() == 2 && counts[0].abs_diff(counts[1]) <= 1, "{}", mixed.stderr);

    for (paths, output) in [(UNEQUAL, "unequal"), ("[\"many\", \"few\"]", "plain")] {
        let run = train(&scratch, paths, output, &[]);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        assert!(weights(&scratch, output) != weights(&scratch, "mixed"), "{paths} has no effect");
    }

    // Back to the checkpoint in the middle, with nothing read ahead: the same weights.
    std::fs::remove_dir_all(scratch.path("mixed/checkpoint-6")).unwrap();
    let whole = weights(&scratch, "mixed");
    let resumed = train(&scratch, EQUAL, "mixed", &["--resume", "--set", "dataloader_prefetch_factor=0"]);
    assert_eq!(resumed.code, Some(0), "{}", resumed.stderr);
    assert!(weights(&scratch, "mixed") == whole);
    let other = train(&scratch, UNEQUAL, "mixed", &["--resume"]);
    assert_ne!(other.code, Some(0));
    assert!(other.stderr.contains("data.weights"), "{}", other.stderr);
}

#[test]
fn folders_that_do_not_go_together_are_refused_by_name() {
    let scratch = prepared();
    scratch.succeed(&["data", "prepare", "few.toml", "--set", "pack.sequence_len=32", "--output", "short"]);
    let says = |paths: &str| {
        let run = train(&scratch, paths, "run", &[]);
        assert_ne!(run.code, Some(0));
        assert!(!scratch.path("run").exists());
        run.stderr.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert!(says("[\"many\", \"short\"]").contains("cannot be mixed"));
    assert!(says("[\"many\", \"many\"]").contains("they are the same"));
    assert!(says("[\"many\", \"absent\"]").contains("`absent`"));
}

#[test]
fn an_evaluation_can_be_limited_to_some_rows() {
    let scratch = prepared();
    let nelbo = |output: &str, more: &[&str]| {
        let run = train(&scratch, "\"many\"", output, more);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        let lines = scratch.json_lines(&format!("{output}/metrics.jsonl"));
        let nelbo = lines.iter().rev().find_map(|line| line["eval/nelbo"].as_f64()).unwrap();
        (nelbo, run.stderr)
    };
    let (all, _) = nelbo("all", &[]);
    let (some, told) = nelbo("some", &["--set", "max_eval_samples=3"]);
    assert_ne!(all, some);
    assert!(told.contains(", 3 of "), "{told}");
    assert_eq!(nelbo("again", &["--set", "max_eval_samples=3"]).0, some);
}

#[test]
fn inspect_says_the_same_in_words_as_json_and_as_a_page() {
    let scratch = prepared();
    let shown = scratch.succeed(&["data", "inspect", "few", "--rows", "2", "--split", "train"]);
    for part in ["train row 1", "── document ", "tokens per character", "% of the places hold tokens", "#####"] {
        assert!(shown.contains(part), "`{part}` is not in\n{shown}");
    }
    assert!(!shown.contains("train row 2"));
    let inspection = scratch.succeed(&["data", "inspect", "few", "--rows", "1", "--json", "--html", "few.html"]);
    let inspection: Value = serde_json::from_str(&inspection).unwrap();
    let side = inspection["sides"][0].as_object().unwrap();
    let keys: Vec<&str> = side.keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "split",
            "rows",
            "segments",
            "tokens",
            "padding_tokens",
            "label_tokens",
            "packing_efficiency",
            "label_share",
            "tokens_per_character",
            "length",
            "lengths",
            "fill",
            "samples"
        ]
    );
    let number = |key: &str| side[key].as_u64().unwrap();
    assert_eq!(number("tokens") + number("padding_tokens"), number("rows") * 48);
    assert_eq!(side["label_share"], 1.0);
    let total = |list: &str, key: &str| -> u64 {
        side[list].as_array().unwrap().iter().map(|item| item[key].as_u64().unwrap()).sum()
    };
    assert_eq!((total("lengths", "segments"), total("fill", "rows")), (number("segments"), number("rows")));
    // Every character of this text is a byte or less of a token: between one token a character and one for many.
    let ratio = side["tokens_per_character"].as_f64().unwrap();
    assert!(ratio > 0.1 && ratio <= 1.0, "{ratio}");

    let page = scratch.read("few.html");
    assert!(
        page.starts_with("<!doctype html>") && page.contains("<svg") && page.contains("prefers-color-scheme: dark")
    );
    // Nothing is asked of a network or another file.
    assert!(
        !page.contains("http") && !page.contains("src=") && !page.contains("url("),
        "the page needs something else"
    );
    assert!(page.contains("row 0") && !page.contains("row 1 "));

    let absent = scratch.run(&["data", "inspect", "few", "--split", "validation"]);
    assert_eq!(absent.code, Some(1));
    assert!(absent.stderr.contains("`validation`"), "{}", absent.stderr);
}
