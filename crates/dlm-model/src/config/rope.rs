//! `rope_theta`, `rope_scaling` and `rope_parameters`: two generations of the same settings.

use crate::{
    config::keys::Keys,
    error::Result,
    rotary::{RotaryConfig, RotaryScaling},
};
use serde_json::{Value, json};

/// What transformers takes where nothing is said.
const DEFAULT_THETA: f64 = 10_000.0;

#[derive(Clone, Copy)]
enum Type {
    Default,
    Linear,
    Llama3,
}

const TYPES: &[(&str, Type)] = &[("default", Type::Default), ("linear", Type::Linear), ("llama3", Type::Llama3)];

/// Reads `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before).
pub(super) fn read(keys: &mut Keys<'_>, family: &'static str) -> Result<RotaryConfig> {
    let outer_theta = keys.positive("rope_theta")?;
    let (old, new) = (keys.object("rope_scaling")?, keys.object("rope_parameters")?);
    if old.is_some() && new.is_some() {
        let found = keys.value("rope_scaling").unwrap_or(&Value::Null);
        return Err(keys.refused("rope_scaling", found, "absent beside `rope_parameters`"));
    }
    let Some(mut inner) = old.or(new) else {
        return Ok(RotaryConfig {
            theta: outer_theta.unwrap_or(DEFAULT_THETA),
            scaling: RotaryScaling::Default,
            full_precision: false,
        });
    };
    let inner_theta = inner.positive("rope_theta")?;
    if let (Some(outer), Some(found)) = (outer_theta, inner.value("rope_theta"))
        && inner_theta != Some(outer)
    {
        return Err(inner.refused("rope_theta", found, format!("{outer} like the one beside it")));
    }
    // Old files say `type` for `rope_type`, some say both.
    let (kind, old_kind) = (inner.word("rope_type", TYPES)?, inner.word("type", TYPES)?);
    let scaling = match kind.or(old_kind).unwrap_or(Type::Default) {
        Type::Default => RotaryScaling::Default,
        Type::Linear => RotaryScaling::Linear { factor: inner.required_positive("factor")? },
        Type::Llama3 => {
            let factor = inner.required_positive("factor")?;
            let low_freq_factor = inner.required_positive("low_freq_factor")?;
            let high_freq_factor = inner.required_positive("high_freq_factor")?;
            if high_freq_factor <= low_freq_factor {
                let accepted = format!("above `low_freq_factor`, which is {low_freq_factor}");
                return Err(inner.refused("high_freq_factor", &json!(high_freq_factor), accepted));
            }
            let original_len = inner.required_integer("original_max_position_embeddings", 1..=i64::from(i32::MAX))?;
            RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_len }
        }
    };
    inner.only("partial_rotary_factor", &json!(1.0))?;
    inner.finish(family, &[])?;
    Ok(RotaryConfig { theta: inner_theta.or(outer_theta).unwrap_or(DEFAULT_THETA), scaling, full_precision: false })
}
