//! Sources on other machines, against servers that run here: an S3 one, and one that speaks the hub's paths.

use crate::support::{prepare, texts, tokenizer, tree};
use dlm_data::{DataError, Pack, Pipeline, Remote, Resources, Retry, Source, Tokenize};
use dlm_servers::{Fault, Hub, Server};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

const TOKEN: &str = "hf_very-secret-token";

/// A place for caches and output, and how to reach a server.
struct Place {
    folder: tempfile::TempDir,
    remote: Remote,
}

impl Place {
    fn new(variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("hf").to_string_lossy().into_owned();
        let variables: BTreeMap<String, String> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .chain([("HF_HOME".to_owned(), home)])
            .collect();
        let retry = Retry { attempts: 3, first_wait: Duration::from_millis(1), longest_wait: Duration::from_millis(5) };
        let remote = Remote { variables: Some(variables), cache: Some(folder.path().join("cache")), retry };
        Self { folder, remote }
    }

    fn hub(hub: &Hub) -> Self {
        Self::new(&[("HF_ENDPOINT", hub.address()), ("HF_TOKEN", TOKEN)])
    }

    fn s3(server: &Server, secret: &str) -> Self {
        Self::new(&[
            ("AWS_ENDPOINT", server.address()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "access"),
            ("AWS_SECRET_ACCESS_KEY", secret),
        ])
    }

    fn pipeline(&self, source: impl Into<Source>) -> Pipeline {
        Pipeline { remote: self.remote.clone(), ..Pipeline::new().relative_to(self.folder.path()).source(source) }
    }

    fn read(&self, source: impl Into<Source>) -> Result<Vec<String>, DataError> {
        self.pipeline(source).texts(&Resources::default())?.collect()
    }

    fn fails(&self, source: &str) -> (Option<u16>, String) {
        let error = self.read(source).unwrap_err();
        let DataError::Remote { address, status, .. } = &error else { panic!("{error}") };
        assert!(source.starts_with(address.as_str()) || address.starts_with(source), "{address}");
        assert!(error.help().is_some());
        (*status, error.to_string())
    }
}

fn jsonl(text: &str) -> String {
    format!("{{\"text\": \"{text}\"}}\n")
}

fn bucket(root: &Path, files: &[(&str, &str)]) {
    for (key, text) in files {
        let path = root.join("bucket").join(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, jsonl(text)).unwrap();
    }
}

#[test]
fn objects_patterns_and_folders_of_a_bucket_are_read() {
    let root = tempfile::tempdir().unwrap();
    bucket(
        root.path(),
        &[("data/a.jsonl", "a"), ("data/b.jsonl", "b"), ("data/sub/c.jsonl", "c"), ("other.jsonl", "o")],
    );
    let server = Server::s3(root.path(), "access", "secret");
    let place = Place::s3(&server, "secret");
    assert_eq!(place.read("s3://bucket/data/a.jsonl").unwrap(), ["a"]);
    assert_eq!(place.read("s3://bucket/data/*.jsonl").unwrap(), ["a", "b"]);
    assert_eq!(place.read("s3://bucket/**/[bc].jsonl").unwrap(), ["b", "c"]);
    assert_eq!(place.read("s3://bucket/data/").unwrap(), ["a", "b", "c"]);
    // A new object under the same key is brought anew; the tag tells.
    fs::write(root.path().join("bucket/data/a.jsonl"), jsonl("changed, and longer")).unwrap();
    assert_eq!(place.read("s3://bucket/data/a.jsonl").unwrap(), ["changed, and longer"]);
}

#[test]
fn a_bucket_says_what_is_missing_or_forbidden() {
    let root = tempfile::tempdir().unwrap();
    bucket(root.path(), &[("a.jsonl", "a")]);
    let server = Server::s3(root.path(), "access", "secret");
    let (status, text) = Place::s3(&server, "secret").fails("s3://bucket/absent.jsonl");
    assert!(status == Some(404) && text.contains("s3://bucket/absent.jsonl"), "{text}");
    let (status, text) = Place::s3(&server, "another").fails("s3://bucket/a.jsonl");
    assert!(status == Some(403) && !text.contains("another"), "{text}");
    let (status, text) = Place::s3(&server, "secret").fails("s3://bucket/*.csv");
    assert!(status.is_none() && text.contains("nothing there"), "{text}");
}

/// A hub with a data set of three files and the golden tokenizer.
fn hub() -> Hub {
    let hub = Hub::start();
    for (path, text) in [("data/a.jsonl", "a"), ("data/b.jsonl", "b"), ("data/deep/c.jsonl", "c")] {
        hub.put(&format!("datasets/o/n/{path}"), jsonl(text));
    }
    hub.put("datasets/o/n/README.md", "The card of the data set.");
    for entry in fs::read_dir(tokenizer()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.ends_with(".json") || name.ends_with(".jinja") {
            hub.put(&format!("o/model/{name}"), fs::read(path).unwrap());
        }
    }
    hub
}

#[test]
fn files_patterns_and_folders_of_a_data_set_are_read_and_kept() {
    let hub = hub();
    hub.require_token(TOKEN);
    let place = Place::hub(&hub);
    assert_eq!(place.read("hf://datasets/o/n/data/a.jsonl").unwrap(), ["a"]);
    assert_eq!(place.read("hf://datasets/o/n@main/data/*.jsonl").unwrap(), ["a", "b"]);
    assert_eq!(place.read("hf://datasets/o/n").unwrap(), ["a", "b", "c"]);
    hub.take_requests();
    // What is here already is asked about and not brought again: one byte is asked for, to see its tag.
    assert_eq!(place.read("hf://datasets/o/n/data/a.jsonl").unwrap(), ["a"]);
    assert_eq!(hub.take_requests().len(), 1);
    let kept = place.folder.path().join("hf/hub/datasets--o--n/snapshots/c0ffee/data/a.jsonl");
    assert_eq!(fs::read_to_string(kept).unwrap(), jsonl("a"));
}

#[test]
fn a_tokenizer_of_the_hub_is_used() {
    let hub = hub();
    let place = Place::hub(&hub);
    hub.put("datasets/o/n/rows.jsonl", texts(30).map(|row| format!("{row}\n")).collect::<String>());
    let with = |tokenizer: PathBuf| {
        let pipeline = place.pipeline("hf://datasets/o/n/rows.jsonl").tokenize(Tokenize::new(tokenizer));
        let report = prepare(&pipeline.pack(Pack::new(32)).output("prepared")).unwrap();
        let made = (report.manifest.train.clone(), report.manifest.tokenizer.clone());
        fs::remove_dir_all(report.output).unwrap();
        made
    };
    assert_eq!(with("hf://o/model".into()), with(tokenizer()));
    let absent = place.pipeline("hf://datasets/o/n/rows.jsonl").tokenize(Tokenize::new("hf://o/absent"));
    let error = prepare(&absent.pack(Pack::new(32)).output("prepared")).unwrap_err();
    assert!(
        matches!(&error, DataError::Remote { status: Some(404), address, .. } if address == "hf://o/absent/tokenizer.json"),
        "{error}"
    );
}

#[test]
fn a_server_in_trouble_is_asked_again_and_given_up_in_the_end() {
    let hub = hub();
    let place = Place::hub(&hub);
    let path = "datasets/o/n/resolve/main/data/a.jsonl";
    let source = "hf://datasets/o/n/data/a.jsonl";
    for fault in [Fault::Status(500, 9), Fault::Status(429, 9)] {
        hub.fail(path, fault);
        hub.take_requests();
        let (status, text) = place.fails(source);
        let Fault::Status(expected, _) = fault else { unreachable!() };
        assert!(status == Some(expected) && text.contains("at the last of 3 attempts"), "{text}");
        assert_eq!(hub.take_requests().len(), 3);
    }
    // What cannot pass is not asked again.
    for status in [403, 404] {
        hub.fail(path, Fault::Status(status, 9));
        assert_eq!(place.fails(source).0, Some(status));
        assert_eq!(hub.take_requests().len(), 1);
    }
    hub.fail(path, Fault::Status(429, 2));
    assert_eq!(place.read(source).unwrap(), ["a"]);
    hub.fail("datasets/o/n/resolve/main/data/b.jsonl", Fault::HalfWay(2));
    assert_eq!(place.read("hf://datasets/o/n/data/b.jsonl").unwrap(), ["b"]);
    hub.fail("api/datasets/o/n/tree/main", Fault::Status(503, 2));
    assert_eq!(place.read("hf://datasets/o/n").unwrap(), ["a", "b", "c"]);
}

#[test]
fn a_file_of_the_web_is_brought_once_and_whole() {
    let hub = Hub::start();
    hub.put("web/rows.jsonl", jsonl("w"));
    let place = Place::new(&[]);
    let source = format!("{}/web/rows.jsonl", hub.address());
    hub.fail("web/rows.jsonl", Fault::HalfWay(2));
    assert_eq!(place.read(source.as_str()).unwrap(), ["w"]);
    hub.take_requests();
    assert_eq!(place.read(source.as_str()).unwrap(), ["w"]);
    assert_eq!(hub.take_requests().iter().map(|request| request.status).collect::<Vec<_>>(), [304]);
    hub.put("web/rows.jsonl", jsonl("new"));
    assert_eq!(place.read(source.as_str()).unwrap(), ["new"]);

    hub.put("web/other.jsonl", jsonl("o"));
    hub.fail("web/other.jsonl", Fault::HalfWay(9));
    let (status, text) = place.fails(&format!("{}/web/other.jsonl", hub.address()));
    assert!(status.is_none() && text.contains("at the last of 3 attempts"), "{text}");
    hub.fail("web/other.jsonl", Fault::Status(429, 1));
    assert_eq!(place.read(format!("{}/web/other.jsonl", hub.address())).unwrap(), ["o"]);
}

#[test]
fn a_machine_that_does_not_answer_is_named() {
    let address = Hub::start().address().to_owned(); // stopped already
    let (status, text) = Place::new(&[]).fails(&format!("{address}/rows.jsonl"));
    assert!(status.is_none() && text.contains("the connection failed"), "{text}");
}

#[test]
fn no_secret_gets_into_the_output_or_a_message() {
    let hub = hub();
    hub.require_token(TOKEN);
    let place = Place::hub(&hub);
    let pipeline = place
        .pipeline("hf://datasets/o/n")
        .tokenize(Tokenize::new("hf://o/model"))
        .pack(Pack::new(32))
        .output("prepared");
    let report = prepare(&pipeline).unwrap();
    let asked = hub.take_requests();
    assert!(
        !asked.is_empty()
            && asked.iter().all(|request| request.authorization.as_deref() == Some(&format!("Bearer {TOKEN}")))
    );
    let holds = |content: &[u8], secret: &str| content.windows(secret.len()).any(|window| window == secret.as_bytes());
    for (path, content) in tree(place.folder.path()) {
        assert!(!holds(&content, TOKEN), "{}", path.display());
    }
    assert!(!format!("{pipeline:?}{report:?}").contains(TOKEN));
    assert!(!pipeline.explain(&Resources::default()).unwrap().contains(TOKEN));
    assert_eq!(report.manifest.inputs[0].path, "hf://datasets/o/n/data/a.jsonl");

    // A signed address is used as it is and shown without its values.
    let hub = Hub::start();
    hub.put("web/rows.jsonl", jsonl("w"));
    let signed = format!("{}/web/rows.jsonl?X-Amz-Signature=geheim", hub.address());
    let pipeline =
        place.pipeline(signed.as_str()).tokenize(Tokenize::new(tokenizer())).pack(Pack::new(32)).output("signed");
    let report = prepare(&pipeline).unwrap();
    for (path, content) in tree(&report.output) {
        assert!(!holds(&content, "geheim"), "{}", path.display());
    }
    assert!(
        report.manifest.sources[0].path.ends_with("rows.jsonl?X-Amz-Signature=..."),
        "{}",
        report.manifest.sources[0].path
    );
    hub.fail("web/rows.jsonl", Fault::Status(403, 9));
    let error = place.read(signed.as_str()).unwrap_err();
    assert!(!error.to_string().contains("geheim") && !format!("{error:?}").contains("geheim"), "{error}");
    let error = place.read("https://me:geheim@127.0.0.1:1/rows.jsonl").unwrap_err();
    assert!(error.to_string().contains("environment") && !error.to_string().contains("geheim"), "{error}");
}
