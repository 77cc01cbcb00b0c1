//! Safe faces of the C++ additions.

use crate::error::{Result, TorchError};
use std::ffi::{CStr, c_char, c_int};
use tch::Tensor;
use torch_sys::C_tensor;

unsafe extern "C" {
    fn dlm_torch_error() -> *const c_char;
    fn dlm_torch_version() -> *const c_char;
    fn dlm_fused_adamw(
        params: *const *const C_tensor,
        grads: *const *const C_tensor,
        exp_avgs: *const *const C_tensor,
        exp_avg_sqs: *const *const C_tensor,
        steps: *const *const C_tensor,
        count: usize,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> c_int;
    fn dlm_keep_freed_memory();
    fn dlm_clear_gradients(params: *const *const C_tensor, count: usize) -> c_int;
    fn dlm_clip_grad_norm(grads: *const *const C_tensor, count: usize, max_norm: f64, norm: *mut f64) -> c_int;
    fn dlm_linear_cross_entropy(
        hidden: *const C_tensor,
        weight: *const C_tensor,
        copy: *const C_tensor,
        targets: *const C_tensor,
        weights: *const C_tensor,
        chunk_len: i64,
        smoothing: f64,
        z: f64,
        forbidden: i64,
        fused: bool,
        out: *mut *mut C_tensor,
    ) -> c_int;
}

/// The version of libtorch that this was built with, such as `2.13.0`.
#[must_use]
pub fn libtorch_version() -> &'static str {
    // SAFETY: a string literal of the C++ side.
    unsafe { CStr::from_ptr(dlm_torch_version()) }.to_str().unwrap_or("unknown")
}

/// What one step of AdamW does with the gradients ([arXiv:1711.05101](https://arxiv.org/abs/1711.05101)).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Share of a parameter that is subtracted per unit of learning rate.
    pub weight_decay: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

/// One AdamW step in place, in one pass over memory: parameters, moments and step counters change.
///
/// All lists run parallel. `steps` holds a scalar of `Float` per parameter, which counts up by one. Parameter, gradient and
/// moments of one entry share a kind and a device.
///
/// # Errors
/// [`TorchError::UnequalLists`], or [`TorchError::Libtorch`] when shapes or kinds do not fit.
pub fn fused_adamw(
    params: &[Tensor],
    grads: &[Tensor],
    exp_avgs: &[Tensor],
    exp_avg_sqs: &[Tensor],
    steps: &[Tensor],
    options: &AdamWStep,
) -> Result<()> {
    let others = [("grads", grads), ("exp_avgs", exp_avgs), ("exp_avg_sqs", exp_avg_sqs), ("steps", steps)];
    for (name, list) in others {
        if list.len() != params.len() {
            return Err(TorchError::UnequalLists { name, found: list.len(), expected: params.len() });
        }
    }
    if params.is_empty() {
        return Ok(());
    }
    let AdamWStep { lr, beta1, beta2, weight_decay, eps } = *options;
    let [params, grads, exp_avgs, exp_avg_sqs, steps] = [params, grads, exp_avgs, exp_avg_sqs, steps].map(pointers);
    // SAFETY: each list holds `params.len()` pointers to tensors that outlive the call.
    let code = unsafe {
        dlm_fused_adamw(
            params.as_ptr(),
            grads.as_ptr(),
            exp_avgs.as_ptr(),
            exp_avg_sqs.as_ptr(),
            steps.as_ptr(),
            params.len(),
            lr,
            beta1,
            beta2,
            weight_decay,
            eps,
        )
    };
    check(code, "fused_adamw")
}

/// Lets the process keep memory that it has freed for the next step instead of asking the kernel for it again: whole blocks of any
/// size, unless a [`checkpoint`](crate::checkpoint) follows, which goes easy on memory and gives those above 32 MB back.
///
/// Holds for the whole process and until its end. Where the C library is not glibc nothing changes.
pub fn keep_freed_memory() {
    // SAFETY: it sets two parameters of the allocator, which is allowed at any time.
    unsafe { dlm_keep_freed_memory() };
}

/// Forgets the gradients of parameters and frees their memory; the next backward pass makes new ones.
///
/// # Errors
/// [`TorchError::Libtorch`] for tensors that can have none.
pub fn clear_gradients(params: &[Tensor]) -> Result<()> {
    // SAFETY: the list holds `params.len()` pointers to tensors that outlive the call.
    check(unsafe { dlm_clear_gradients(pointers(params).as_ptr(), params.len()) }, "clear_gradients")
}

/// Scales gradients in place so that their joint 2-norm is at most `max_norm`, and gives the norm they had before.
///
/// A `max_norm` of 0 only measures. As `torch.nn.utils.clip_grad_norm_` computes it.
///
/// # Errors
/// [`TorchError::Libtorch`] when a gradient is undefined or they lie on different devices.
pub fn clip_grad_norm(grads: &[Tensor], max_norm: f64) -> Result<f64> {
    let mut norm = 0.0;
    // SAFETY: the list holds `grads.len()` pointers to tensors that outlive the call.
    let code = unsafe { dlm_clip_grad_norm(pointers(grads).as_ptr(), grads.len(), max_norm, &raw mut norm) };
    check(code, "clip_grad_norm")?;
    Ok(norm)
}

/// What is added to the cross-entropy of a token, and what may not be predicted.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CrossEntropyOptions {
    /// Share of the target's place that is given to all tokens alike, in `[0, 1]`.
    pub label_smoothing: f64,
    /// Factor of the squared logarithm of the softmax's denominator, at least 0.
    pub z_loss: f64,
    /// A token whose probability is 0 whatever its score.
    pub forbidden: Option<i64>,
}

/// Rows of scores that [`linear_cross_entropy`] best holds at a time, for `n` rows over a vocabulary.
///
/// A sixteenth of all rows, so that the scores in memory are a small part of what they would be; but at least 2^23 scores (32 MB in
/// float32) and 64 rows, below which the kernels idle and adding up the weight's gradient costs too much; and at most 2^27 scores.
///
/// ```
/// assert_eq!(dlm_torch::chunk_rows(8192, 151_936), 512);
/// assert_eq!(dlm_torch::chunk_rows(100, 500), 16_777);
/// ```
#[must_use]
pub fn chunk_rows(n: usize, vocab: usize) -> usize {
    let rows = |scores: usize| scores / vocab.max(1);
    n.div_ceil(16).clamp(rows(1 << 23), rows(1 << 27)).max(64)
}

/// What [`linear_cross_entropy`] computes.
#[derive(Debug)]
pub struct LinearCrossEntropy {
    /// `sum_i weights_i * loss_i`, a scalar of `Float` with gradients to `hidden` and `weight`.
    pub weighted_sum: Tensor,
    /// Negative log-likelihood of each target in nats, `[n]` of `Float`, without gradients.
    pub nll: Tensor,
    /// Most likely token at each position, `[n]` of `Int64`.
    pub argmax: Tensor,
}

/// Cross-entropy of a linear head, `chunk_len` states at a time, so that `[n, vocab]` never exists at once.
///
/// `loss_i` is `nll_i`, the negative log-likelihood of target `i`, unless the options add to it:
/// `(1 - label_smoothing) nll_i + label_smoothing mean_v(nll of v) + z_loss logsumexp_i^2`.
///
/// Gradients are computed along with the value, from the same logits; the backward pass only scales them. Softmax and loss
/// are in float32 whatever the kind of `hidden`.
///
/// 8192 positions over 151,936 tokens, 1024 wide, float32, two threads of an AMD EPYC (`make bench-loss`), with [`chunk_rows`] at a time:
///
/// | loss | seconds | peak MiB above inputs and gradients |
/// |---|---|---|
/// | all scores at once | 58.4 | 13,634 |
/// | in chunks | 48.2 | 318 |
///
/// A 43rd of the memory in 0.83 of the time; in another run, 1.06 of it.
///
/// # Shapes
/// - `hidden`: `[n, hidden]`, `weight`: `[vocab, hidden]`, of one kind; or else `copy` is the weight in the kind of `hidden`, and
///   the weight's gradient is of the weight's kind
/// - `targets`: `[n]` of `Int64`, each below `vocab`
/// - `weights`: `[n]` of `Float`, constants
///
/// # Errors
/// [`TorchError::Libtorch`] when shapes or kinds do not fit, a target is out of range, or memory runs out.
pub fn linear_cross_entropy(
    hidden: &Tensor,
    weight: &Tensor,
    copy: Option<&Tensor>,
    targets: &Tensor,
    weights: &Tensor,
    chunk_len: usize,
    options: &CrossEntropyOptions,
) -> Result<LinearCrossEntropy> {
    cross_entropy(hidden, weight, copy, targets, weights, chunk_len, options, true)
}

/// The same, on a CPU either in one loop over the scores or by plain operators, which other devices always take.
#[expect(clippy::too_many_arguments, reason = "those of the public function and one more")]
fn cross_entropy(
    hidden: &Tensor,
    weight: &Tensor,
    copy: Option<&Tensor>,
    targets: &Tensor,
    weights: &Tensor,
    chunk_len: usize,
    options: &CrossEntropyOptions,
    is_fused: bool,
) -> Result<LinearCrossEntropy> {
    let mut out = [std::ptr::null_mut(); 3];
    let chunk_len = i64::try_from(chunk_len.max(1)).unwrap_or(i64::MAX);
    // SAFETY: the tensors outlive the call; on success `out` holds three tensors that are ours.
    let code = unsafe {
        dlm_linear_cross_entropy(
            hidden.as_ptr(),
            weight.as_ptr(),
            copy.map_or(std::ptr::null(), Tensor::as_ptr),
            targets.as_ptr(),
            weights.as_ptr(),
            chunk_len,
            options.label_smoothing,
            options.z_loss,
            options.forbidden.unwrap_or(-1),
            is_fused,
            out.as_mut_ptr(),
        )
    };
    check(code, "linear_cross_entropy")?;
    // SAFETY: as above.
    let [weighted_sum, nll, argmax] = unsafe { out.map(|pointer| taken(pointer)) };
    Ok(LinearCrossEntropy { weighted_sum, nll, argmax })
}

pub(crate) fn pointers(tensors: &[Tensor]) -> Vec<*const C_tensor> {
    tensors.iter().map(Tensor::as_ptr).collect()
}

/// A tensor that the C++ side gave away.
///
/// # Safety
/// The pointer is to a tensor that nobody else owns.
pub(crate) unsafe fn taken(pointer: *mut C_tensor) -> Tensor {
    // SAFETY: the pointer is cloned into a tensor of tch's and freed once.
    unsafe {
        let tensor = Tensor::clone_from_ptr(pointer);
        torch_sys::at_free(pointer);
        tensor
    }
}

pub(crate) fn check(code: c_int, operation: &'static str) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: the C++ side sets its message, of this thread, whenever it returns anything but 0.
    let message = unsafe { CStr::from_ptr(dlm_torch_error()) }.to_string_lossy().into_owned();
    Err(TorchError::Libtorch { operation, message })
}

#[cfg(test)]
mod tests;
