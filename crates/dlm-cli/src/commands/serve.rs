//! `dlm serve`: a page and an interface on this machine for the same two modes as `dlm chat`.

use super::{chat, runtime, tell_ignored};
use crate::{
    args::ServeArgs,
    inference::{Decoding, Inference, Masking, Span},
    report::{Interrupted, help},
    settings::resolve,
};
use anyhow::Context;
use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use dlm_sample::parse_commands;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpListener;

const PAGE: &str = include_str!("serve/page.html");

/// Runs `dlm serve` until Ctrl-C.
pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let resolved = resolve(&args.settings.sources())?;
    tell_ignored(&resolved);
    let device = runtime::start(&resolved.settings)?;
    let inference = Inference::load(args.model.as_deref(), &args.sampling, &resolved, device)?;
    let address = std::net::SocketAddr::new(args.host, args.port);
    tokio::runtime::Runtime::new()?.block_on(async {
        let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        eprintln!("http://{}  (Ctrl-C ends)", listener.local_addr()?);
        let served = axum::serve(listener, routes(inference));
        served.with_graceful_shutdown(ctrl_c()).await?;
        Err(Interrupted.into())
    })
}

/// One prompt at a time: the model uses all threads for each.
type Shared = Arc<Mutex<Inference>>;

fn routes(inference: Inference) -> Router {
    let shared: Shared = Arc::new(Mutex::new(inference));
    Router::new().route("/", get(|| async { Html(PAGE) })).route("/api/generate", post(generate)).with_state(shared)
}

async fn ctrl_c() {
    if tokio::signal::ctrl_c().await.is_err() {
        // Without a handler the default one stays, and Ctrl-C ends the process at once.
        std::future::pending::<()>().await;
    }
}

/// What `POST /api/generate` takes. Commands before the prompt are read as `dlm chat` does; `mode` and the numbers are in place of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    prompt: String,
    mode: Option<Mode>,
    tokens: Option<usize>,
    ratio: Option<f64>,
    steps: Option<usize>,
    temperature: Option<f64>,
    seed: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mode {
    Complete,
    Mask,
}

/// What `POST /api/generate` gives.
#[derive(Debug, Serialize)]
struct Reply {
    ids: Vec<i64>,
    masked_positions: Vec<usize>,
    text: String,
    nfe: usize,
    elapsed_s: f64,
    /// The canvas before the first step.
    masked: Vec<Span>,
    /// The canvas after the last one.
    generated: Vec<Span>,
}

async fn generate(State(shared): State<Shared>, Json(request): Json<Request>) -> Response {
    let work = tokio::task::spawn_blocking(move || {
        // A prompt that made another thread panic left nothing half-changed: the model is only read.
        let inference = shared.lock().unwrap_or_else(PoisonError::into_inner);
        reply(&inference, &request)
    });
    match work.await {
        Ok(Ok(reply)) => Json(reply).into_response(),
        Ok(Err(error)) => {
            let help = error.chain().find_map(help);
            let body = serde_json::json!({ "error": format!("{error:#}"), "help": help });
            (StatusCode::BAD_REQUEST, Json(body)).into_response()
        }
        Err(error) => {
            let body = serde_json::json!({ "error": error.to_string(), "help": null });
            (StatusCode::INTERNAL_SERVER_ERROR, Json(body)).into_response()
        }
    }
}

fn reply(inference: &Inference, request: &Request) -> anyhow::Result<Reply> {
    let prompt = parse_commands(&request.prompt)?;
    let (masking, text) = match request.mode {
        None => (chat::masking(&prompt), prompt.text),
        Some(Mode::Complete) => {
            (Masking::Complete(request.tokens.unwrap_or(dlm_sample::DEFAULT_COMPLETION_TOKENS)), &*request.prompt)
        }
        Some(Mode::Mask) => (Masking::Ratio(request.ratio), &*request.prompt),
    };
    let default = inference.decoding;
    let decoding = Decoding {
        steps: request.steps.unwrap_or(default.steps),
        temperature: request.temperature.unwrap_or(default.temperature),
        seed: request.seed.unwrap_or(default.seed),
        trace: false,
    };
    let answer = inference.answer(inference.encode(text)?, &masking, decoding, |_| {})?;
    Ok(Reply {
        masked: inference.masked_spans(&answer.canvas, &answer.original)?,
        generated: inference.spans(&answer.generation.ids, &answer)?,
        text: inference.text(&answer.generation.ids)?,
        nfe: answer.generation.nfe,
        elapsed_s: answer.generation.elapsed_s,
        masked_positions: answer.generation.masked_positions,
        ids: answer.generation.ids,
    })
}
