//! The gated MLP: SwiGLU and its kin.

use crate::{linear::Linear, state_dict::Tensors};
use tch::{TchError, Tensor};

/// What the gate of an MLP goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// `x * sigmoid(x)`: SwiGLU ([arXiv:2002.05202](https://arxiv.org/abs/2002.05202)).
    Silu,
    /// `x * Phi(x)`: GeGLU.
    Gelu,
    /// GELU by its approximation with a hyperbolic tangent.
    GeluTanh,
    /// `max(x, 0)`: ReGLU.
    Relu,
}

impl Activation {
    /// What config.json calls them.
    pub(crate) const NAMES: &[(&str, Self)] = &[
        ("silu", Self::Silu),
        ("swish", Self::Silu),
        ("gelu", Self::Gelu),
        ("gelu_new", Self::GeluTanh),
        ("gelu_pytorch_tanh", Self::GeluTanh),
        ("relu", Self::Relu),
    ];

    fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Self::Silu => x.silu(),
            Self::Gelu => x.gelu("none"),
            Self::GeluTanh => x.gelu("tanh"),
            Self::Relu => x.relu(),
        }
    }
}

/// `down(activation(gate(x)) * up(x))`.
#[derive(Debug)]
pub(crate) struct Mlp {
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl Mlp {
    pub(crate) fn new(tensors: &Tensors<'_>, [gate, up, down]: [&str; 3], activation: Activation) -> Self {
        let linear = |name| Linear::new(tensors, name);
        Self { gate: linear(gate), up: linear(up), down: linear(down), activation }
    }

    /// `[n, hidden]` to `[n, hidden]`; `keys` as in [`Linear::forward`].
    pub(crate) fn forward(&self, x: &Tensor, keys: Option<&Tensor>) -> Result<Tensor, TchError> {
        let gated = self.activation.apply(&self.gate.forward(x, keys)?) * self.up.forward(x, keys)?; // [n, intermediate]
        self.down.forward(&gated, keys)
    }
}
