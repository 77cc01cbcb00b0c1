//! The parts of a transformer's block: in one pass each on a CPU, as chains of operators elsewhere.
//!
//! What each gains in a training step of SmolLM2-135M is in `docs/training-step.md`.

use crate::{
    additions::{check, pointers, taken},
    error::Result,
};
use std::ptr;
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
/// [`TorchError::Libtorch`](crate::TorchError::Libtorch) for tensors that are no matrices.
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
/// held. On a CPU libtorch's flash kernel takes two to four times as long for rows of 256 tokens in bfloat16.
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

/// Whether there is a loop for tensors like this one.
fn is_fused(tensor: &Tensor) -> bool {
    tensor.device() == Device::Cpu && matches!(tensor.kind(), Kind::Float | Kind::BFloat16)
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
        let dim = tokens.size()[1] / (heads + 2 * kv_heads);
        let seq_len = tokens.size()[0] / batch.max(1);
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
mod tests {
    use super::*;

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    fn random(shape: &[i64], kind: Kind) -> Tensor {
        Tensor::randn(shape, CPU).to_kind(kind).set_requires_grad(true)
    }

    /// Largest difference as a share of the largest number.
    fn expect_close(found: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
        assert_eq!(found.size(), expected.size(), "{what}");
        let [found, expected] = [found, expected].map(|x| x.detach().to_kind(Kind::Double));
        let error = ((found - &expected).abs().max() / expected.abs().max().clamp_min(1e-6)).double_value(&[]);
        assert!(error <= tolerance, "{what}: differs by {error:e}");
    }

    /// Values and gradients, given random gradients of the values.
    fn expect_equal(found: &[Tensor], expected: &[Tensor], inputs: &[&Tensor], tolerance: f64) {
        for (i, (a, b)) in found.iter().zip(expected).enumerate() {
            assert_eq!(a.kind(), b.kind());
            expect_close(a, b, tolerance, &format!("value {i}"));
        }
        let weights: Vec<Tensor> = expected.iter().map(|x| Tensor::randn(x.size(), CPU)).collect();
        let loss = |values: &[Tensor]| {
            let sums = values.iter().zip(&weights).map(|(x, w)| (x * w).sum(Kind::Float));
            sums.reduce(|a, b| a + b).unwrap()
        };
        let grads = |values: &[Tensor]| Tensor::run_backward(&[loss(values)], inputs, false, false);
        for (i, (a, b)) in grads(found).iter().zip(&grads(expected)).enumerate() {
            assert_eq!(a.kind(), b.kind());
            expect_close(a, b, 2.0 * tolerance, &format!("gradient {i}"));
        }
    }

    fn tolerance(kind: Kind) -> f64 {
        if kind == Kind::Float { 2e-6 } else { 2e-2 }
    }

    #[test]
    fn a_norm_of_a_sum_equals_the_chain_of_operators_in_every_mix_of_kinds() {
        tch::manual_seed(1);
        let mixes = [
            (Kind::Float, Kind::Float, Kind::Float),
            (Kind::Float, Kind::BFloat16, Kind::Float),
            (Kind::BFloat16, Kind::BFloat16, Kind::Float),
            (Kind::BFloat16, Kind::BFloat16, Kind::BFloat16),
        ];
        for (sum_kind, kind, weight_kind) in mixes {
            let (x, delta, weight) = (random(&[50, 70], sum_kind), random(&[50, 70], kind), random(&[70], weight_kind));
            let both = |normed: Normed| [normed.sum, normed.normed];
            let found = both(norm(&x, Some(&delta), &weight, 1e-5, kind).unwrap());
            let expected = both(plain::norm(&x, Some(&delta), &weight, 1e-5, kind).unwrap());
            expect_equal(&found, &expected, &[&x, &delta, &weight], tolerance(kind));
            let found = norm(&x, None, &weight, 1e-5, kind).unwrap().normed;
            let expected = plain::norm(&x, None, &weight, 1e-5, kind).unwrap().normed;
            expect_equal(&[found], &[expected], &[&x, &weight], tolerance(kind));
        }
        assert!(norm(&random(&[2, 3], Kind::Float), None, &random(&[4], Kind::Float), 1e-5, Kind::Float).is_err());
    }

    #[test]
    fn swiglu_equals_the_chain_of_operators() {
        tch::manual_seed(2);
        for kind in [Kind::Float, Kind::BFloat16] {
            let x = random(&[40, 2 * 33], kind);
            expect_equal(&[swiglu(&x).unwrap()], &[plain::swiglu(&x).unwrap()], &[&x], tolerance(kind));
        }
        // Where the sigmoid saturates there is neither infinity nor NaN.
        let far = Tensor::from_slice(&[-200f32, 200.0, 1.0, 1.0]).view([1, 4]);
        let found = swiglu(&far).unwrap();
        assert!(found.double_value(&[0, 0]).abs() < 1e-30 && found.double_value(&[0, 1]) == 200.0);
        let nan = Tensor::from_slice(&[f32::NAN, 1.0]).view([1, 2]);
        assert!(swiglu(&nan).unwrap().double_value(&[0, 0]).is_nan());
    }

    #[test]
    fn turning_equals_the_chain_of_operators_for_common_and_for_own_positions() {
        tch::manual_seed(3);
        let (batch, seq_len, heads, kv_heads, dim) = (3, 20, 6, 2, 8);
        for kind in [Kind::Float, Kind::BFloat16] {
            for positions in [seq_len, batch * seq_len] {
                let angles = Tensor::randn([positions, dim / 2], CPU);
                let angles = Angles { cos: angles.cos(), sin: angles.sin() };
                let tokens = random(&[batch * seq_len, (heads + 2 * kv_heads) * dim], kind);
                let found = rotate(&tokens, &angles, batch, heads, kv_heads).unwrap();
                let expected = plain::rotate(&tokens, &angles, batch, heads, kv_heads).unwrap();
                expect_equal(&found, &expected, &[&tokens], tolerance(kind));
            }
        }
    }

    #[test]
    fn joined_maps_equal_maps_one_by_one_and_float32_weights_get_float32_gradients() {
        tch::manual_seed(4);
        let whole = Tensor::randn([12, 16], CPU);
        let parts = |whole: &Tensor| [(0, 6), (6, 4), (10, 2)].map(|(at, rows)| whole.narrow(0, at, rows));
        let joined = parts(&whole).map(|part| part.detach().set_requires_grad(true));
        let apart = parts(&whole).map(|part| part.detach().copy().set_requires_grad(true));
        assert!(lie_joined(&joined).unwrap() && !lie_joined(&apart).unwrap());
        let x = random(&[9, 16], Kind::Float);
        let expected = |x: &Tensor, weights: &[Tensor]| {
            Tensor::cat(&weights.iter().map(|w| x.matmul(&w.tr().to_kind(x.kind()))).collect::<Vec<_>>(), 1)
        };
        for weights in [&joined, &apart] {
            let inputs: Vec<&Tensor> = std::iter::once(&x).chain(weights).collect();
            expect_equal(&[linears(&x, weights, None).unwrap()], &[expected(&x, weights)], &inputs, 1e-5);
        }
        let (half, copy) = (random(&[9, 16], Kind::BFloat16), whole.to_kind(Kind::BFloat16));
        let inputs: Vec<&Tensor> = std::iter::once(&half).chain(&joined).collect();
        expect_equal(&[linears(&half, &joined, Some(&copy)).unwrap()], &[expected(&half, &joined)], &inputs, 2e-2);
    }

    fn heads(kind: Kind, seq_len: i64) -> [Tensor; 3] {
        [6, 2, 2].map(|heads| random(&[3, heads, seq_len, 16], kind))
    }

    #[test]
    fn attention_equals_libtorchs() {
        tch::manual_seed(5);
        // The last is longer than the scores that are held at once.
        for (kind, seq_len) in [(Kind::Float, 40), (Kind::BFloat16, 40), (Kind::Float, 1500)] {
            let [q, k, v] = heads(kind, seq_len);
            let (found, expected) = (attention(&q, &k, &v, None).unwrap(), plain::attention(&q, &k, &v, None).unwrap());
            let tolerance = if kind == Kind::Float { 2e-5 } else { 3e-2 };
            expect_equal(&[found], &[expected], &[&q, &k, &v], tolerance);
        }
    }

    #[test]
    fn pieces_of_attention_equal_a_mask_and_tokens_outside_get_zero() {
        tch::manual_seed(6);
        // Row 0: two documents and two tokens of padding. Rows 1 and 2 by one piece with two ranges of keys each.
        let pieces = [
            [0, 0, 5, 0, 5, 0, 0],
            [0, 5, 3, 5, 3, 0, 0],
            [1, 0, 10, 0, 2, 6, 4],
            [2, 2, 4, 2, 4, 8, 2],
            [2, 6, 4, 0, 10, 0, 0],
        ];
        let mask = Tensor::zeros([3, 1, 10, 10], (Kind::Bool, Device::Cpu));
        for [row, query, queries, key, keys, more, mores] in pieces {
            for (key, keys) in [(key, keys), (more, mores)] {
                let _ = mask.get(row).narrow(1, query, queries).narrow(2, key, keys).fill_(1);
            }
        }
        let table = Tensor::from_slice(&pieces.concat()).view([5, 7]);
        for kind in [Kind::Float, Kind::BFloat16] {
            let [q, k, v] = heads(kind, 10);
            let found = attention(&q, &k, &v, Some(&table)).unwrap();
            // Rows without a key are no rows of a softmax.
            let seen = mask.any_dim(3, false).squeeze_dim(1).unsqueeze(2); // [batch, seq_len, 1]
            let expected = plain::attention(&q, &k, &v, Some(&mask))
                .unwrap()
                .where_self(&seen, &Tensor::zeros([1], (kind, Device::Cpu)));
            assert_eq!(found.get(0).narrow(0, 8, 2).abs().max().double_value(&[]), 0.0);
            let tolerance = if kind == Kind::Float { 1e-5 } else { 3e-2 };
            expect_equal(&[found], &[expected], &[&q, &k, &v], tolerance);
        }
    }
}
