//! Settings in layers: defaults, profile, `dlm.toml`, files, environment, assignments and flags.
//!
//! [`resolve`] reads them all and gives the typed [`Settings`] together with the origin of every value. A key nobody knows, a
//! value of the wrong kind and a value that cannot be are errors that name the key and where it was set. Files written for
//! Axolotl's diffusion plugin are read as they are: what has no effect here is listed with the reason, and what asks for another
//! training is refused.

mod axolotl;
mod choices;
mod data_keys;
mod dtype;
mod error;
mod keys;
mod layer;
mod lenient;
mod prepared;
mod resolve;
mod show;
mod without_effect;

pub use choices::{Adapter, Bf16, Compat, ObjectiveName, Optimizer, Strategy, WandbMode};
pub(crate) use data_keys::of_training;
pub use dtype::{Dtype, LoadDtype};
pub use error::{Given, SettingsError};
pub use keys::{DEFAULT_MASK_TOKEN, Diffusion, Settings};
pub use prepared::{PreparedPath, PreparedPaths};
pub use resolve::{Ignored, Resolved, Sources, resolve, resolve_file};
pub use show::Entry;
