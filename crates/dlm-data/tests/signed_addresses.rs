//! The signature in an address is nobody's business, and another one is no other pipeline.

mod support;

use dlm_data::{Decontaminate, InspectOptions, Pack, Pipeline, Remote, Resources, Source, Tokenize, inspect};
use dlm_servers::Hub;
use std::collections::BTreeMap;
use support::{prepare, texts, tokenizer, tree};

#[test]
fn signatures_of_sources_and_evaluation_sets_are_neither_shown_nor_part_of_the_identity() {
    let hub = Hub::start();
    hub.put("eval.jsonl", "{\"q\": \"one two three four five six seven eight nine ten eleven twelve thirteen\"}\n");
    let rows: String = texts(30).map(|row| format!("{row}\n")).collect();
    hub.put("rows.jsonl", rows);
    let folder = tempfile::tempdir().unwrap();
    let variables = BTreeMap::from([("HF_HOME".to_owned(), folder.path().join("hf").to_string_lossy().into_owned())]);
    let cache = Some(folder.path().join("cache"));
    let remote = Remote { variables: Some(variables), cache, ..Remote::default() };
    let pipeline = |signature: &str| {
        let address = |file: &str| format!("{}/{file}?X-Amz-Signature={signature}", hub.address());
        let pipeline = Pipeline::new()
            .relative_to(folder.path())
            .source(Source::new(address("rows.jsonl")))
            .decontaminate(Decontaminate::new([address("eval.jsonl")]))
            .tokenize(Tokenize::new(tokenizer()))
            .pack(Pack::new(64))
            .output("prepared");
        Pipeline { remote: remote.clone(), ..pipeline }
    };
    let report = prepare(&pipeline("geheim1")).unwrap();
    for (path, content) in tree(&report.output) {
        assert!(!String::from_utf8_lossy(&content).contains("geheim"), "{}", path.display());
    }
    assert!(report.manifest.pipeline.contains("eval.jsonl?X-Amz-Signature=..."), "{}", report.manifest.pipeline);
    let inspected = serde_json::to_string(&inspect(&report.output, &InspectOptions::default()).unwrap()).unwrap();
    assert!(!inspected.contains("geheim"), "{inspected}");
    let explained = pipeline("geheim1").explain(&Resources::default()).unwrap();
    assert!(explained.contains("/eval.jsonl?X-Amz-Signature=...") && !explained.contains("geheim"), "{explained}");

    assert!(prepare(&pipeline("geheim2")).unwrap().already_prepared);
}
