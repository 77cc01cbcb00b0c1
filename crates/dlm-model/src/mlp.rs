//! The gated MLP: SwiGLU and its kin.

use crate::{
    linear::{Linears, torch},
    state_dict::Tensors,
};
use tch::{Kind, TchError, Tensor};

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
    gate_up: Linears,
    down: Linears,
    activation: Activation,
}

impl Mlp {
    pub(crate) fn new(tensors: &Tensors<'_>, [gate, up, down]: [&str; 3], activation: Activation) -> Self {
        Self { gate_up: Linears::new(tensors, &[gate, up]), down: Linears::new(tensors, &[down]), activation }
    }

    /// `[n, hidden]` to `[n, hidden]`; `keys` as in [`Linears::forward`].
    pub(crate) fn forward(&self, x: &Tensor, keys: Option<&Tensor>) -> Result<Tensor, TchError> {
        let gate_up = self.gate_up.forward(x, keys)?; // [n, 2 intermediate]
        let gated = if self.activation == Activation::Silu {
            dlm_torch::swiglu(&gate_up).map_err(torch)?
        } else {
            let halves = gate_up.f_chunk(2, 1)?;
            self.activation.apply(&halves[0]) * &halves[1]
        };
        self.down.forward(&gated, keys)
    }

    pub(crate) fn join(&mut self) -> Result<(), TchError> {
        self.gate_up.join()
    }

    pub(crate) fn compute_in(&mut self, kind: Kind) -> Result<(), TchError> {
        self.gate_up.compute_in(kind)?;
        self.down.compute_in(kind)
    }

    /// The same MLP in another pair of hands.
    pub(crate) fn share(&self) -> Self {
        Self { gate_up: self.gate_up.share(), down: self.down.share(), activation: self.activation }
    }
}
