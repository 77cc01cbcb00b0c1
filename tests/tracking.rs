//! `dlm train` reports to Weights & Biases: the run arrives whole on a strict stand-in server.

use dlm_tests::{Scratch, repository};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

const DLM: &str = env!("CARGO_BIN_EXE_dlm-under-test");
const KEY: &str = "0123456789abcdef0123456789abcdef01234567";

struct Server {
    process: Child,
    url: String,
}

impl Server {
    fn start(scratch: &Scratch) -> Self {
        let mut process = Command::new("python3")
            .arg(repository().join("tests/wandb/stub_server.py"))
            .args(["--strict", "--max-seconds", "300", "--log", "requests.jsonl", "--state", "state.json"])
            .current_dir(scratch.path(""))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdout(Stdio::piped())
            .spawn()
            .expect("`python3` starts");
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).expect("the server prints its address");
        Self { process, url: ready["url"].as_str().unwrap().to_owned() }
    }

    /// Stops the server, and gives the only run it saw.
    fn stop(mut self, scratch: &Scratch) -> Value {
        let stopped = Command::new("kill").arg(self.process.id().to_string()).status().unwrap();
        assert!(stopped.success());
        self.process.wait().unwrap();
        let state: Value = serde_json::from_str(&scratch.read("state.json")).unwrap();
        let runs = state["runs"].as_object().unwrap();
        assert_eq!(runs.len(), 1, "{runs:?}");
        runs.values().next().unwrap().clone()
    }
}

fn prepared() -> Scratch {
    let scratch = Scratch::new(DLM);
    let base = dlm_golden::model("llama").canonicalize().unwrap();
    scratch.prepare((0..60).map(|i| format!("Line {i} of the file says {} and then {}.", i * 7, i + 3)), &base, 48);
    scratch.write(
        "run.toml",
        format!(
            "base_model = {base:?}\ndataset_prepared_path = \"data\"\noutput_dir = \"run\"\nmax_steps = 6\nmicro_batch_size = 2\n\
             learning_rate = 1e-3\nsave_steps = 3\nwandb_project = \"diffusion\"\nwandb_name = \"a test\"\n\
             [diffusion]\ngeneration_interval = 3\nnum_generation_samples = 2\ngeneration_steps = 2\n"
        ),
    );
    scratch
}

fn train(scratch: &Scratch, url: &str, more: &[&str]) -> dlm_tests::Finished {
    let arguments: Vec<&str> =
        ["train", "--profile", "pretrain", "--config", "run.toml"].iter().chain(more).copied().collect();
    let mut command = scratch.command(&arguments);
    command.env("WANDB_BASE_URL", url).env("WANDB_API_KEY", KEY);
    dlm_tests::Finished::from(command.output().unwrap())
}

#[test]
fn a_run_arrives_whole_with_config_history_samples_and_exit_code() {
    let scratch = prepared();
    let server = Server::start(&scratch);
    let finished = train(&scratch, &server.url, &[]);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let run = server.stop(&scratch);

    assert_eq!(run["exitcode"], 0);
    let history = run["history"].as_array().unwrap();
    let logged = scratch.json_lines("run/metrics.jsonl");
    let losses = |rows: &[Value]| -> Vec<f64> { rows.iter().filter_map(|row| row["train/loss"].as_f64()).collect() };
    assert_eq!(losses(history), losses(&logged));
    assert_eq!(losses(history).len(), 6);
    assert!(run["config"].to_string().contains("learning_rate"), "{}", run["config"]);
    let files = run["files"].to_string();
    assert!(files.contains("table.json"), "the samples are a table: {files}");
    assert!(!scratch.read("requests.jsonl").is_empty());

    let check = Command::new("python3")
        .arg(repository().join("tests/wandb/check_log.py"))
        .arg(scratch.path("requests.jsonl"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    assert!(
        check.status.success(),
        "{}{}",
        String::from_utf8_lossy(&check.stdout),
        String::from_utf8_lossy(&check.stderr)
    );
    // The key is nowhere in the run's folder.
    for file in ["settings.toml", "metrics.jsonl", "dlm.log"] {
        assert!(!scratch.read(&format!("run/{file}")).contains(KEY), "{file}");
    }
}

#[test]
fn a_refused_key_stops_the_run_before_it_trains() {
    let scratch = prepared();
    let server = Server::start(&scratch);
    let mut command = scratch.command(&["train", "--profile", "pretrain", "--config", "run.toml"]);
    command.env("WANDB_BASE_URL", &server.url).env("WANDB_API_KEY", "f".repeat(40));
    let finished = dlm_tests::Finished::from(command.output().unwrap());
    assert_eq!(finished.code, Some(1), "{}", finished.stderr);
    assert!(finished.stderr.contains("key"), "{}", finished.stderr);
    assert!(!scratch.path("run").exists(), "a refused run leaves no folder");
    let mut process = server.process;
    process.kill().unwrap();
    process.wait().unwrap();
}

#[test]
fn a_resumed_run_goes_on_in_the_same_run_of_the_tracker() {
    let scratch = prepared();
    let server = Server::start(&scratch);
    let longer = ["--set", "max_steps=40", "--set", "diffusion.generate_samples=false"];
    let arguments: Vec<&str> =
        ["train", "--profile", "pretrain", "--config", "run.toml"].into_iter().chain(longer).collect();
    let mut command = scratch.command(&arguments);
    command.env("WANDB_BASE_URL", &server.url).env("WANDB_API_KEY", KEY).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    assert!(scratch.wait_for_a_checkpoint("run", &mut child), "the run ended before it could be killed");
    child.kill().unwrap();
    child.wait().unwrap();

    let resumed = train(&scratch, &server.url, &[&longer[..], &["--resume"]].concat());
    assert_eq!(resumed.code, Some(0), "{}", resumed.stderr);
    let run = server.stop(&scratch);
    let steps: Vec<u64> = run["history"].as_array().unwrap().iter().filter_map(|row| row["_step"].as_u64()).collect();
    assert_eq!(steps, (1..=40).collect::<Vec<_>>());
    assert_eq!(run["exitcode"], 0);
}
