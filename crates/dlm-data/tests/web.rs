//! `pipelines/web.toml` on the pages of the repository.

mod support;

use dlm_data::{Pipeline, PrepareOptions};
use std::path::Path;

#[test]
fn the_web_pipeline_keeps_prose_once_and_says_why_the_rest_went() {
    let pipelines = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines");
    let folder = tempfile::tempdir().unwrap();
    let options = PrepareOptions { output: Some(folder.path().join("web")), ..support::options(2) };
    let report = Pipeline::from_file(pipelines.join("web.toml")).unwrap().prepare(&options, |_| ()).unwrap();
    let account = &report.manifest.account;
    let step = |name: &str| account.steps.iter().find(|step| step.step == name).unwrap();
    // Five pages of prose, a near and an exact duplicate, one that differs in white space, and one with an evaluation question.
    assert_eq!((account.rows, step("step.2.quality").rows), (15, 9));
    assert_eq!(step("step.2.quality").reasons.values().sum::<u64>(), 6);
    assert_eq!((step("step.3.dedup").rows, step("step.4.dedup").rows), (8, 6));
    assert_eq!((step("step.5.decontaminate").rows, account.documents), (5, 5));
    assert_eq!(step("step.5.decontaminate").reasons["contaminated"], 1);
}
