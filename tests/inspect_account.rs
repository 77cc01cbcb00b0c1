//! The page of `inspect` has the whole account: what steps left, and which tokens came and went.

use dlm_tests::Scratch;

const DLM: &str = env!("CARGO_BIN_EXE_dlm-under-test");

#[test]
fn the_page_says_what_each_step_left_and_which_tokens_steps_added_and_removed() {
    let scratch = Scratch::new(DLM);
    scratch.write(
        "rows.jsonl",
        (0..9).map(|i| format!("{{\"text\": \"row {i} counts on and on\", \"i\": {i}}}\n")).collect::<String>(),
    );
    let tokenizer = dlm_golden::model("llama").canonicalize().unwrap();
    scratch.write(
        "rows.toml",
        format!(
            "[[source]]\npath = \"rows.jsonl\"\n[[step]]\nfilter = \"i > 2\"\n[[step]]\ntokenize = {{ tokenizer = {tokenizer:?} }}\n\
             [[step]]\ntruncate = {{ max_tokens = 9 }}\n[[step]]\nchunk = {{ max_tokens = 5, overlap = 2 }}\n\
             [[step]]\npack = {{ sequence_len = 16 }}\n[output]\npath = \"data\"\n"
        ),
    );
    scratch.succeed(&["data", "prepare", "rows.toml"]);
    scratch.succeed(&["data", "inspect", "data", "--html", "page.html"]);
    let page = scratch.read("page.html");
    for row in [
        "<tr><th>rows read</th><td>9</td></tr>",
        "<tr><th>step.0.filter</th><td>6</td></tr>",
        "<tr><th>tokens in of 6 documents</th>",
        "<tr><th>tokens in added by chunk: overlap</th>",
        "<tr><th>dropped by truncate: beyond max_tokens</th>",
    ] {
        assert!(page.contains(row), "{row} is missing in\n{page}");
    }
}
