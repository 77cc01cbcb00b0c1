//! A small denoiser that sees what it may see: for tests of packing and of windows.

#![allow(dead_code)] // each test uses some of it

pub(crate) mod exact;
pub(crate) mod golden;

use dlm_diffusion::{
    BlockStart, Denoiser, DenoiserInput, DiffusionError, Head, NoiseKey, PackingIsolation, Purpose,
    predicting_positions_in,
};
use tch::{Device, Kind, Tensor};

pub(crate) const VOCAB: i64 = 11;
pub(crate) const MASK: i64 = 10;
const HIDDEN: i64 = 6;

/// Two layers. State of a token: itself and the mean of the tokens it attends to, each embedded with its position; then a
/// nonlinearity.
pub(crate) struct Toy {
    embedding: Tensor,
    positions: Tensor,
    head: Linear,
    shift: Option<PackingIsolation>,
    pub(crate) block_start: BlockStart,
}

struct Linear(Tensor);

impl Head for Linear {
    fn logits(&self, hidden: &Tensor) -> Result<Tensor, DiffusionError> {
        Ok(hidden.matmul(&self.0.tr()))
    }
}

impl Toy {
    pub(crate) fn new(seed: u64, shift: Option<PackingIsolation>) -> Self {
        let matrix = |which, rows: i64| {
            let draws = NoiseKey::new(seed, Purpose::Preview, which).uniforms(0, (rows * HIDDEN) as usize);
            let matrix = Tensor::from_slice(&draws).view([rows, HIDDEN]) * 4.0 - 2.0;
            matrix.set_requires_grad(true)
        };
        Self {
            embedding: matrix(0, VOCAB),
            positions: matrix(1, 64),
            head: Linear(matrix(2, VOCAB)),
            shift,
            block_start: BlockStart::Clean,
        }
    }

    pub(crate) fn parameters(&self) -> [&Tensor; 3] {
        [&self.embedding, &self.positions, &self.head.0]
    }

    /// Takes the gradients out, flattened in one vector.
    pub(crate) fn take_gradient(&self) -> Tensor {
        let gradients = self.parameters().map(|parameter| {
            let mut gradient = parameter.grad();
            let taken = gradient.flatten(0, -1).copy();
            let _ = gradient.zero_();
            taken
        });
        Tensor::cat(&gradients, 0)
    }
}

impl Denoiser for Toy {
    fn hidden_states(&self, input: &DenoiserInput<'_>) -> Result<Tensor, DiffusionError> {
        let size = input.ids.size();
        let counted = Tensor::arange(size[1], (Kind::Int64, Device::Cpu)).expand([size[0], size[1]], false);
        let positions = input.position_ids.unwrap_or(&counted);
        let embed = |table: &Tensor, ids: &Tensor| Tensor::embedding(table, ids, -1, false, false);
        let embedded = embed(&self.embedding, input.ids) + embed(&self.positions, positions); // [batch, seq_len, hidden]
        let allowed = input.attention.dense_mask(size[1], Device::Cpu);
        let allowed = allowed.unwrap_or_else(|| Tensor::ones([1, 1, size[1], size[1]], (Kind::Bool, Device::Cpu)));
        let allowed = allowed.squeeze_dim(1).to_kind(Kind::Float); // [batch, query, key]
        let mean = allowed.matmul(&embedded) / allowed.sum_dim_intlist(&[-1i64][..], true, Kind::Float).clamp_min(1.0);
        let first = (embedded + mean * 2.0).tanh();
        let mean = allowed.matmul(&first) / allowed.sum_dim_intlist(&[-1i64][..], true, Kind::Float).clamp_min(1.0);
        let states = (first * 2.0 + mean * 3.0).tanh().flatten(0, 1);
        let everywhere = Tensor::arange(size[0] * size[1], (Kind::Int64, Device::Cpu));
        let wanted = input.wanted.unwrap_or(&everywhere);
        let sources = match self.shift {
            Some(isolation) => predicting_positions_in(wanted, size[1], input.attention, isolation, self.block_start)?,
            None => wanted.shallow_clone(),
        };
        Ok(states.index_select(0, &sources))
    }

    fn head(&self) -> &dyn Head {
        &self.head
    }
}
