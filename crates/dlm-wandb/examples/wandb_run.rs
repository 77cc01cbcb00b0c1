//! Records a short run: a falling loss, a diverged gradient, a table.
//!
//! With `WANDB_API_KEY` set it goes to `WANDB_BASE_URL` (else to the public service). Without a key it goes to the
//! stand-in server that this repository's tests use, which needs `python3` and no network.

use std::{
    error::Error,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use dlm_wandb::{ApiKey, Object, Run, Settings, Table};
use serde_json::json;

/// The key that the stand-in server lets in.
const STUB_KEY: &str = "0123456789abcdef0123456789abcdef01234567";

fn main() -> Result<(), Box<dyn Error>> {
    let mut settings = Settings { project: "dlm-example".into(), ..Settings::from_environment()? };
    let mut stub = None;
    if settings.api_key.is_none() {
        println!("WANDB_API_KEY is not set: recording to the stand-in server of tests/wandb");
        let (server, url) = start_stub()?;
        stub = Some(server);
        settings.base_url = url;
        settings.api_key = Some(ApiKey::new(STUB_KEY, "this example")?);
    }
    let result = record(settings);
    if let Some(mut server) = stub {
        server.kill()?;
        server.wait()?;
    }
    result
}

fn record(settings: Settings) -> Result<(), Box<dyn Error>> {
    let run = Run::start(settings, json!({"learning_rate": 3e-4, "model": {"layers": 2, "hidden_size": 64}}))?;
    println!("run `{}` at {}", run.name(), run.url());
    for step in 0..10 {
        let loss = 5.0 / f64::from(step + 1);
        let grad_norm = if step == 3 { f64::NAN } else { loss / 2.0 };
        let row = Object::new().with("train/loss", loss).with("train/grad_norm", grad_norm).with("tokens", step * 1024);
        println!("step {step}: {row}");
        run.log(step as u64, row)?;
    }
    let samples = Table::new(["masked", "generated"])
        .row(["the [MASK] sat".into(), "the cat sat".into()])
        .row(["a [MASK] tree".into(), "a green tree".into()]);
    run.log_table(9, "samples", &samples)?;
    run.summary([("best/loss", 0.5)])?;
    let report = run.finish(0)?;
    println!("the server confirmed {} rows and {} files", report.rows_sent, report.files_sent);
    Ok(())
}

fn start_stub() -> Result<(Child, String), Box<dyn Error>> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/wandb/stub_server.py");
    let mut server = Command::new("python3")
        .args([script, "--strict", "--max-seconds", "60"])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start `python3`: {error}"))?;
    let mut line = String::new();
    BufReader::new(server.stdout.take().ok_or("the server has no output")?).read_line(&mut line)?;
    let ready: serde_json::Value = serde_json::from_str(&line)?;
    let url = ready["url"].as_str().ok_or("the server did not name its address")?;
    Ok((server, url.to_owned()))
}
