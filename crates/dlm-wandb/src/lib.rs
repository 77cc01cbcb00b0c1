//! A Weights & Biases client: a training run's config, history, summary and tables, live on a web page.
//!
//! ```no_run
//! use dlm_wandb::{Object, Resume, Run, Settings, Table};
//! use serde_json::json;
//!
//! // WANDB_API_KEY, WANDB_BASE_URL and the others, then what the program knows better.
//! let settings = Settings { project: "poems".into(), resume: Resume::Allow, ..Settings::from_environment()? };
//! let run = Run::start(settings, json!({"learning_rate": 3e-4, "model": {"layers": 2}}))?;
//! for step in 0..100 {
//!     run.log(step, [("train/loss", 1.0 / (step + 1) as f64)])?; // never waits for the network
//!     if step % 50 == 0 {
//!         let table = Table::new(["masked", "generated"]).row(["the [M] sat".into(), "the cat sat".into()]);
//!         run.log_table(step, "samples", &table)?;
//!     }
//!     if run.stop_requested() {
//!         break;
//!     }
//! }
//! run.summary(Object::new().with("best/loss", 0.01))?;
//! println!("{}", run.finish(0)?.url);
//! # Ok::<(), dlm_wandb::WandbError>(())
//! ```
//!
//! - **Values** are JSON and the floats that JSON lacks: a diverged loss arrives as `NaN`. Any `serde_json` map, array of
//!   pairs or iterator of pairs is an [`Object`].
//! - **Delivery** happens on the run's own thread, at most every 15 s ([`Pace`]). A request without the server's
//!   confirmation is repeated word for word, with growing waits or as `Retry-After` says; lines carry their number in the
//!   history, so a repetition changes nothing. What could not be delivered is an error of [`Run::finish`] with its count.
//! - **A status that means "never"** (a deleted run, a withdrawn key) ends the delivery with one warning; training goes on.
//! - **Resuming** under the same id continues the history: steps that the server has are not sent again.
//! - **The key** is shown by no error and no `Debug` text, and is sent to the server alone, never to upload addresses.
//!
//! ```
//! use dlm_wandb::{Object, Value};
//!
//! let mut row: Object = serde_json::json!({"train": {"loss": 0.5}}).as_object().unwrap().clone().into();
//! row.merge(Object::new().with("train", Object::from([("grad_norm", f64::INFINITY)])));
//! assert_eq!(row.to_string(), r#"{"train":{"grad_norm":Infinity,"loss":0.5}}"#);
//! assert_eq!(Value::from_json(&row.to_string())?, Value::from(row));
//! # Ok::<(), serde_json::Error>(())
//! ```

mod credentials;
mod error;
mod handshake;
mod http;
mod journal;
mod run;
mod sender;
mod settings;
mod table;
mod value;

pub use credentials::ApiKey;
pub use error::{Result, WandbError};
pub use run::{Report, Run};
pub use settings::{Mode, Pace, Resume, Settings};
pub use table::Table;
pub use value::{Object, Value};
