//! The parts of a transformer's block: in one pass each on a CPU, as chains of operators elsewhere.
//!
//! What each gains in a training step of SmolLM2-135M is in `docs/training-step.md`.

use crate::{
    additions::{check, pointers, taken},
    error::Result,
};
use std::{cell::Cell, ptr};
use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

unsafe extern "C" {
    fn dlm_norm(
        x: *const C_tensor,
        delta: *const C_tensor,
        weight: *const C_tensor,
        eps: f64,
        half: bool,
        out: *mut *mut C_tensor,
    ) -> i32;
    fn dlm_swiglu(gate_up: *const C_tensor, out: *mut *mut C_tensor) -> i32;
    fn dlm_rotate(
        tokens: *const C_tensor,
        cos: *const C_tensor,
        sin: *const C_tensor,
        batch: i64,
        heads: i64,
        kv_heads: i64,
        out: *mut *mut C_tensor,
    ) -> i32;
    fn dlm_linears(
        x: *const C_tensor,
        weights: *const *const C_tensor,
        count: usize,
        copy: *const C_tensor,
        out: *mut *mut C_tensor,
    ) -> i32;
    fn dlm_lie_joined(weights: *const *const C_tensor, count: usize) -> i32;
    fn dlm_attention(
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
        pieces: *const C_tensor,
        out: *mut *mut C_tensor,
    ) -> i32;
}

/// A residual stream and its normalised form.
#[derive(Debug)]
pub struct Normed {
    /// What came in, with what was added to it.
    pub sum: Tensor,
    /// Its rows divided by their root mean square, times the weight.
    pub normed: Tensor,
}

/// RMSNorm ([arXiv:1910.07467](https://arxiv.org/abs/1910.07467)) of `x`, or of `x + delta`, in float32 whatever the kinds.
///
/// Keeps the sum and one number for each row; the plain chain (add, square, mean, root, two products) keeps five tensors.
///
/// # Shapes
/// - `x`, `delta`: `[n, width]`, of `Float` or `BFloat16`; `weight`: `[width]`
/// - `normed` and `delta` are of `kind`, which is `x`'s or a lesser one.
///
/// # Errors
/// [`TorchError::Libtorch`](crate::TorchError::Libtorch) when shapes or kinds do not fit.
pub fn norm(x: &Tensor, delta: Option<&Tensor>, weight: &Tensor, eps: f64, kind: Kind) -> Result<Normed> {
    if !is_fused(x) {
        return plain::norm(x, delta, weight, eps, kind);
    }
    let mut out = [ptr::null_mut(); 2];
    let half = kind == Kind::BFloat16;
    // SAFETY: the tensors outlive the call; on success `out` holds one or two tensors that are ours.
    unsafe {
        let code = dlm_norm(x.as_ptr(), pointer(delta), weight.as_ptr(), eps, half, out.as_mut_ptr());
        check(code, "norm")?;
        let first = taken(out[0]);
        Ok(match delta {
            Some(_) => Normed { sum: first, normed: taken(out[1]) },
            None => Normed { sum: x.shallow_clone(), normed: first },
        })
    }
}

/// `silu(gate) * up` (SwiGLU, [arXiv:2002.05202](https://arxiv.org/abs/2002.05202)) of rows that hold gate and then up.
///
/// # Shapes
/// `[n, 2 * width]` of `Float` or `BFloat16` to `[n, width]`.
///
/// # Errors
/// [`TorchError::Libtorch`](crate::TorchError::Libtorch) when shapes or kinds do not fit.
pub fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
    if !is_fused(gate_up) {
        return plain::swiglu(gate_up);
    }
    let mut out = ptr::null_mut();
    // SAFETY: the tensor outlives the call; on success `out` is ours.
    unsafe {
        check(dlm_swiglu(gate_up.as_ptr(), &raw mut out), "swiglu")?;
        Ok(taken(out))
    }
}

/// The angles by which tokens are turned.
#[derive(Debug)]
pub struct Angles {
    /// Cosines, `[batch * seq_len, dim / 2]`, or `[seq_len, dim / 2]` for all rows alike, of `Float`.
    pub cos: Tensor,
    /// Sines, in the same shape.
    pub sin: Tensor,
}

/// Queries, keys and values of tokens, apart by head, with queries and keys turned (RoPE,
/// [arXiv:2104.09864](https://arxiv.org/abs/2104.09864)): dimension `i` pairs with `i + dim / 2`.
///
/// # Shapes
/// - `tokens`: `[batch * seq_len, (heads + 2 kv_heads) * dim]`, queries, then keys, then values
/// - out: `[batch, heads, seq_len, dim]` and twice `[batch, kv_heads, seq_len, dim]`
///
/// # Errors
/// [`TorchError::Libtorch`](crate::TorchError::Libtorch) when shapes or kinds do not fit.
pub fn rotate(tokens: &Tensor, angles: &Angles, batch: i64, heads: i64, kv_heads: i64) -> Result<[Tensor; 3]> {
    if !is_fused(tokens) {
        return plain::rotate(tokens, angles, batch, heads, kv_heads);
    }
    let mut out = [ptr::null_mut(); 3];
    let Angles { cos, sin } = angles;
    // SAFETY: the tensors outlive the call; on success `out` holds three tensors that are ours.
    unsafe {
        let code = dlm_rotate(tokens.as_ptr(), cos.as_ptr(), sin.as_ptr(), batch, heads, kv_heads, out.as_mut_ptr());
        check(code, "rotate")?;
        Ok(out.map(|pointer| taken(pointer)))
    }
}

/// `x` times each of one to three matrices, side by side: one product where [they lie joined](lie_joined) in memory.
///
/// `copy` is the matrices, joined, in the kind of `x`; gradients are of the kind of the matrices. So float32 weights are trained
/// in bfloat16 and cast once for each of their values, not once for each use.
///
/// # Shapes
/// `x`: `[n, in]`; weights: `[out_i, in]`; out: `[n, sum of out_i]`.
///
/// # Errors
/// [`TorchError::Libtorch`](crate::TorchError::Libtorch) when shapes or kinds do not fit.
pub fn linears(x: &Tensor, weights: &[Tensor], copy: Option<&Tensor>) -> Result<Tensor> {
    let weights = pointers(weights);
    let mut out = ptr::null_mut();
    // SAFETY: the tensors outlive the call; on success `out` is ours.
    unsafe {
        let code = dlm_linears(x.as_ptr(), weights.as_ptr(), weights.len(), pointer(copy), &raw mut out);
        check(code, "linears")?;
        Ok(taken(out))
    }
}

/// Whether matrices lie behind each other in one piece of memory.
///
/// # Errors
/// [`TorchError::Libtorch`](crate::TorchError::Libtorch) for no tensors, and for some that are no matrices.
pub fn lie_joined(weights: &[Tensor]) -> Result<bool> {
    let weights = pointers(weights);
    // SAFETY: the tensors outlive the call.
    let found = unsafe { dlm_lie_joined(weights.as_ptr(), weights.len()) };
    check(i32::from(found < 0), "lie_joined")?;
    Ok(found == 1)
}

/// Bidirectional attention with grouped keys and values, `softmax(q k^T / sqrt(dim)) v`, the softmax in float32.
///
/// Without `pieces` every token attends to every token of its row. A piece, a row of `[n, 7]` of `Int64`, lets some queries
/// attend to some keys: `row` (-1 for all rows alike), first query, queries, first key, keys, and another range of keys, first and
/// number. Tokens that are no query get 0. Queries lie in one piece at most.
///
/// Queries that share keys are multiplied with them at once, nothing is repeated for the group, and no more than 2^22 scores are
/// held. How long that takes beside libtorch's flash kernel is in `docs/training-step.md`.
///
/// # Shapes
/// `q`: `[batch, heads, seq_len, dim]`; `k`, `v`: `[batch, kv_heads, seq_len, dim]`; out: `[batch, seq_len, heads * dim]`.
///
/// # Errors
/// [`TorchError::Libtorch`](crate::TorchError::Libtorch) when shapes or kinds do not fit, or away from a CPU with pieces.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, pieces: Option<&Tensor>) -> Result<Tensor> {
    if !is_fused(q) && pieces.is_none() {
        return plain::attention(q, k, v, None);
    }
    let mut out = ptr::null_mut();
    // SAFETY: the tensors outlive the call; on success `out` is ours.
    unsafe {
        let code = dlm_attention(q.as_ptr(), k.as_ptr(), v.as_ptr(), pointer(pieces), &raw mut out);
        check(code, "attention")?;
        Ok(taken(out))
    }
}

thread_local! {
    static PLAIN: Cell<bool> = const { Cell::new(false) };
}

/// Calls `work`, during which this thread takes libtorch's operators in place of loops of our own, but for [`attention`] in pieces.
///
/// Results are then those of other programs over libtorch to the bit. It matters where rounding is amplified: SmolLM2-135M made to look
/// both ways has logits that differ by 1e-3 between any two ways of adding up the same float32 numbers.
pub fn with_plain_operators<T>(work: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            PLAIN.set(self.0);
        }
    }
    let _restore = Restore(PLAIN.replace(true));
    work()
}

/// Whether there is a loop for tensors like this one, and it is wanted.
fn is_fused(tensor: &Tensor) -> bool {
    !PLAIN.get() && tensor.device() == Device::Cpu && matches!(tensor.kind(), Kind::Float | Kind::BFloat16)
}

fn pointer(tensor: Option<&Tensor>) -> *const C_tensor {
    tensor.map_or(ptr::null(), Tensor::as_ptr)
}

/// The same by libtorch's operators: for other devices, and what tests compare with.
mod plain {
    use super::{Angles, Normed};
    use crate::error::{Result, TorchError};
    use tch::{Kind, TchError, Tensor};

    fn failed(operation: &'static str) -> impl Fn(TchError) -> TorchError {
        move |error| TorchError::Libtorch { operation, message: error.to_string() }
    }

    pub(super) fn norm(x: &Tensor, delta: Option<&Tensor>, weight: &Tensor, eps: f64, kind: Kind) -> Result<Normed> {
        let fail = failed("norm");
        let sum = delta.map_or_else(|| Ok(x.shallow_clone()), |delta| x.f_add(delta)).map_err(&fail)?;
        let wide = sum.f_to_kind(Kind::Float).map_err(&fail)?;
        let squares = wide.square().f_mean_dim([-1i64].as_slice(), true, Kind::Float).map_err(&fail)?;
        let normed = wide.f_mul(&(squares + eps).rsqrt()).and_then(|x| x.f_mul(weight)).map_err(&fail)?;
        Ok(Normed { sum, normed: normed.to_kind(kind) })
    }

    pub(super) fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
        let halves = gate_up.f_chunk(2, -1).map_err(failed("swiglu"))?;
        halves[0].silu().f_mul(&halves[1]).map_err(failed("swiglu"))
    }

    pub(super) fn rotate(
        tokens: &Tensor,
        angles: &Angles,
        batch: i64,
        heads: i64,
        kv_heads: i64,
    ) -> Result<[Tensor; 3]> {
        let fail = failed("rotate");
        let dim = tokens.size()[1] / (heads + 2 * kv_heads).max(1);
        // Of no rows at all only the angles say how long they are.
        let seq_len = if batch == 0 { angles.cos.size()[0] } else { tokens.size()[0] / batch };
        let all = tokens.f_view([batch, seq_len, heads + 2 * kv_heads, dim]).map_err(&fail)?.transpose(1, 2);
        let turn = |first: i64, count: i64| -> std::result::Result<Tensor, TchError> {
            let x = all.f_narrow(1, first, count)?;
            let [cos, sin] = [&angles.cos, &angles.sin].map(|x| x.f_view([-1, 1, seq_len, dim / 2]));
            let (cos, sin, halves) = (cos?, sin?, x.chunk(2, -1));
            let (a, b) = (&halves[0], &halves[1]);
            Ok(Tensor::f_cat(&[a * &cos - b * &sin, b * &cos + a * &sin], -1)?.to_kind(x.kind()))
        };
        let q = turn(0, heads).map_err(&fail)?;
        let k = turn(heads, kv_heads).map_err(&fail)?;
        Ok([q, k, all.narrow(1, heads + kv_heads, kv_heads)])
    }

    /// `mask`, booleans broadcastable to `[batch, heads, seq_len, seq_len]`, says who attends to whom.
    pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let is_grouped = k.size()[1] < q.size()[1];
        let mixed = Tensor::f_scaled_dot_product_attention(q, k, v, mask, 0.0, false, None, is_grouped);
        let mixed = mixed.map_err(failed("attention"))?.transpose(1, 2);
        Ok(mixed.flatten(2, 3))
    }
}

#[cfg(test)]
mod tests;
