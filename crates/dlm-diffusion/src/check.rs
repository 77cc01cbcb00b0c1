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
