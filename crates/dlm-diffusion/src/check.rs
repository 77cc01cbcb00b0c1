//! Shapes, kinds and ranges, checked once where a tensor or a setting enters the crate.

use crate::error::{DiffusionError, Result};
use std::ops::RangeInclusive;
use tch::{Kind, Tensor};

pub(crate) fn expect_shape(name: &'static str, tensor: &Tensor, expected: &[i64]) -> Result<()> {
    let found = tensor.size();
    if found == expected {
        return Ok(());
    }
    Err(DiffusionError::ShapeMismatch { name, found, expected: format!("{expected:?}") })
}

/// `[batch, seq_len]`, or `[batch, 1]` for what a whole row shares.
pub(crate) fn expect_per_token_or_row(name: &'static str, tensor: &Tensor, shape: (i64, i64)) -> Result<()> {
    let (found, (batch, seq_len)) = (tensor.size(), shape);
    if found == [batch, seq_len] || found == [batch, 1] {
        return Ok(());
    }
    Err(DiffusionError::ShapeMismatch { name, found, expected: format!("[{batch}, {seq_len}] or [{batch}, 1]") })
}

pub(crate) fn expect_kind(name: &'static str, tensor: &Tensor, kind: Kind) -> Result<()> {
    let expected = match kind {
        Kind::Int64 => "Int64",
        Kind::Bool => "Bool",
        _ => "Float",
    };
    if tensor.kind() == kind {
        return Ok(());
    }
    Err(DiffusionError::KindMismatch { name, found: tensor.kind(), expected })
}

/// Draws from [0, 1) for each token; 1 is let through, which masks nothing.
pub(crate) fn expect_uniform(uniform: &Tensor, (batch, seq_len): (i64, i64)) -> Result<()> {
    expect_shape("uniform", uniform, &[batch, seq_len])?;
    expect_kind("uniform", uniform, Kind::Float)?;
    expect_unit("uniform", uniform)
}

/// Refuses what is no number between 0 and 1.
pub(crate) fn expect_unit(name: &'static str, values: &Tensor) -> Result<()> {
    for end in [values.min(), values.max()] {
        expect_within(name, end.double_value(&[]), 0.0..=1.0, "between 0 and 1")?;
    }
    Ok(())
}

pub(crate) fn expect_mask_token(id: i64) -> Result<()> {
    expect_within("mask_token_id", id as f64, 0.0..=f64::MAX, "a token id")
}

pub(crate) fn expect_within(
    name: &'static str,
    value: f64,
    range: RangeInclusive<f64>,
    expected: &'static str,
) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(DiffusionError::OutOfRange { name, value, expected })
}
