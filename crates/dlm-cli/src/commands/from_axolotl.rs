//! `dlm data prepare --config`: an Axolotl file as a pipeline.

use super::{data::with_overrides, tell_keys};
use crate::settings::{Ignored, of_training};
use dlm_data::{Pipeline, axolotl};
use std::{
    io::{Write, stderr, stdout},
    path::Path,
};

/// The pipeline of an Axolotl file with its overrides, after printing it: to standard output, or to standard error where that is
/// taken by JSON.
pub(crate) fn pipeline(
    file: &Path,
    overrides: &[String],
    output: Option<&Path>,
    json: bool,
) -> anyhow::Result<Pipeline> {
    let translation = axolotl::translate_file(file)?;
    let origin = file.display().to_string();
    let mut ignored = of_training(&translation.others, &origin)?;
    ignored.extend(translation.ignored.into_iter().map(|key| Ignored {
        key: key.key,
        origin: origin.clone(),
        reason: key.reason.to_owned(),
    }));
    tell_keys(&ignored);

    let mut pipeline = with_overrides(translation.pipeline, overrides)?;
    if let Some(output) = output {
        pipeline = pipeline.output(output);
    }
    let text = format!("# The pipeline of {origin}\n\n{}\n", pipeline.to_toml()?);
    if json {
        stderr().write_all(text.as_bytes())?;
    } else {
        stdout().write_all(text.as_bytes())?;
    }
    Ok(pipeline)
}
