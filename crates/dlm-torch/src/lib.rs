//! What [`tch`] lacks and a training step needs, as five small C++ files compiled against libtorch's headers.
//!
//! - [`linear_cross_entropy`]: the loss of a language model's head without its logits;
//! - [`norm`], [`rotate`], [`swiglu`], [`attention`], [`linears`]: the parts of a transformer's block, each in as few passes over
//!   memory as it needs, with a backward pass of its own;
//! - [`checkpoint`]: a part of a network whose activations are computed again instead of kept;
//! - [`fused_adamw`]: one AdamW step in one pass over memory;
//! - [`clip_grad_norm`]: clipping that tells the norm.
//!
//! Its build script also lets every test, example and program above it find libtorch without `LD_LIBRARY_PATH`.
//!
//! ```
//! use tch::{Device, Kind, Tensor};
//!
//! // Two states that prefer tokens 1 and 0 of a vocabulary of three, scored against tokens 1 and 2.
//! let hidden = Tensor::from_slice2(&[[0f32, 5.0], [5.0, 0.0]]);
//! let weight = Tensor::from_slice2(&[[1f32, 0.0], [0.0, 1.0], [0.0, 0.0]]);
//! let targets = Tensor::from_slice(&[1i64, 2]);
//! let weights = Tensor::ones([2], (Kind::Float, Device::Cpu));
//! let scores = dlm_torch::linear_cross_entropy(&hidden, &weight, None, &targets, &weights, 128, &Default::default())?;
//! assert_eq!(Vec::<i64>::try_from(&scores.argmax)?, [1, 0]);
//! assert!(scores.nll.double_value(&[0]) < 0.02 && scores.nll.double_value(&[1]) > 5.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod additions;
mod checkpoint;
mod error;
mod fused;
#[cfg(test)]
mod levels;

pub use additions::{
    AdamWStep, CrossEntropyOptions, LinearCrossEntropy, chunk_rows, clear_gradients, clip_grad_norm, fused_adamw,
    keep_freed_memory, libtorch_version, linear_cross_entropy,
};
pub use checkpoint::checkpoint;
pub use error::{Result, TorchError};
pub use fused::{Angles, Normed, attention, lie_joined, linears, norm, rotate, swiglu, with_plain_operators};
