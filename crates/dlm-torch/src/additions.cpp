// What dlm needs of libtorch that tch does not offer. Each entry says why it is here.
//
// Tensors cross as `at::Tensor*`, owned by the caller; new ones are given back through `out` slots and freed by tch. Every entry
// returns 0, or 1 with a message in `dlm_torch_error` (one per thread).

#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <torch/version.h>

#include <exception>
#include <limits>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "additions.hpp"

namespace dlm {

std::string& last_error() {
  thread_local std::string message;
  return message;
}

std::atomic<bool>& maps_large_blocks() {
  static std::atomic<bool> maps{true};
  return maps;
}

namespace {

// sum_i weights_i * loss_i over rows hidden_i @ weight^T, a chunk of rows at a time, where
// loss = (1 - smoothing) * nll(target) + smoothing * mean over tokens of nll + z * logsumexp^2.
//
// The gradients are made in the forward pass, from the same logits, so that neither pass holds [n, vocab] and the backward
// pass has no matrix product left. The idea is that of Cut Cross-Entropy (arXiv:2411.09009). The token `forbidden` (none below 0)
// has probability 0 whatever its score. `copy` is the weight in the kind of `hidden`, where that is another one.
//
// On a CPU the scores become their gradients in one loop (`fused`), elsewhere by plain operators: of a step of SmolLM2-135M in
// bfloat16 those took 5 %, the loop takes 1 %.
struct LinearCrossEntropy : torch::autograd::Function<LinearCrossEntropy> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& hidden, const at::Tensor& weight,
                               const std::optional<at::Tensor>& copy, const at::Tensor& targets, const at::Tensor& weights,
                               int64_t chunk_len, bool wants_hidden, bool wants_weight, double smoothing, double z,
                               int64_t forbidden, bool fused) {
    const auto matrix = copy ? *copy : weight;  // [vocab, hidden]
    TORCH_CHECK(hidden.dim() == 2 && weight.dim() == 2 && hidden.size(1) == weight.size(1) && matrix.sizes() == weight.sizes(),
                "states of ", hidden.sizes(), " for a weight of ", weight.sizes(), " and a copy of ", matrix.sizes());
    TORCH_CHECK(matrix.scalar_type() == hidden.scalar_type(), "states in ", hidden.scalar_type(), " for a weight in ",
                matrix.scalar_type());
    TORCH_CHECK(targets.dim() == 1 && targets.size(0) == hidden.size(0) && weights.sizes() == targets.sizes(), "targets of ",
                targets.sizes(), " and weights of ", weights.sizes(), " for ", hidden.size(0), " states");
    const int64_t n = hidden.size(0);
    const bool forbids = forbidden >= 0;
    const double allowed = static_cast<double>(weight.size(0) - (forbids ? 1 : 0));
    auto as_float = hidden.options().dtype(at::kFloat);
    auto nll = at::empty({n}, as_float);
    auto loss = fused || smoothing > 0 || z > 0 ? at::empty({n}, as_float) : nll;
    auto argmax = at::empty({n}, targets.options());
    at::Tensor grad_hidden, grad_weight;
    if (wants_hidden) grad_hidden = at::empty_like(hidden);
    if (wants_weight) grad_weight = n > 0 ? at::empty_like(weight, at::MemoryFormat::Contiguous) : at::zeros_like(weight);
    for (int64_t start = 0; start < n; start += chunk_len) {
      const int64_t len = std::min(chunk_len, n - start);
      auto h = fused ? padded(hidden.narrow(0, start, len), chunk_len) : hidden.narrow(0, start, len);
      auto target = targets.narrow(0, start, len).unsqueeze(1);
      auto scores = at::matmul(h, matrix.t());  // [len, vocab], the only large tensor, reused in place
      if (fused) {
        auto of = [&](const at::Tensor& x) { return x.narrow(0, start, len); };
        auto row_targets = of(targets).contiguous(), row_weights = of(weights).contiguous();
        TORCH_CHECK(row_targets.ge(0).logical_and(row_targets.lt(weight.size(0))).all().item<bool>(),
                    "a target lies outside the vocabulary of ", weight.size(0));
        const bool grads = wants_hidden || wants_weight;
        parallel(len, 1, [&](int64_t, int64_t begin, int64_t end) {
          kernels().cross_entropy(begin, end, weight.size(0), kind_of(scores), scores.data_ptr(),
                                  row_targets.const_data_ptr<int64_t>(), row_weights.const_data_ptr<float>(),
                                  static_cast<float>(smoothing), static_cast<float>(z), forbidden, grads,
                                  of(nll).data_ptr<float>(), of(loss).data_ptr<float>(), of(argmax).data_ptr<int64_t>());
        });
        if (wants_hidden) of(grad_hidden).copy_(at::matmul(scores, matrix).narrow(0, 0, len));
        if (wants_weight) add_product(grad_weight, scores.t(), h, start == 0);
        continue;
      }
      scores = scores.to(at::kFloat);
      at::Tensor mean;
      if (smoothing > 0) {
        mean = scores.sum(1, /*keepdim=*/true);
        if (forbids) mean.sub_(scores.narrow(1, forbidden, 1));
        mean.div_(allowed);
      }
      if (forbids) scores.select(1, forbidden).fill_(-std::numeric_limits<double>::infinity());
      auto [largest, choice] = scores.max(1, /*keepdim=*/true);
      scores.sub_(largest);
      auto target_score = scores.gather(1, target);
      scores.exp_();
      auto sum = scores.sum(1, /*keepdim=*/true);
      auto row_nll = sum.log() - target_score;
      nll.narrow(0, start, len).copy_(row_nll.squeeze(1));
      argmax.narrow(0, start, len).copy_(choice.squeeze(1));
      auto log_sum = sum.log() + largest;
      if (smoothing > 0 || z > 0) {
        auto row_loss = row_nll * (1 - smoothing) + log_sum.square() * z;
        if (smoothing > 0) row_loss = row_loss + (log_sum - mean) * smoothing;
        loss.narrow(0, start, len).copy_(row_loss.squeeze(1));
      }
      if (!wants_hidden && !wants_weight) continue;
      // d loss / d logits = (1 + 2 z logsumexp) softmax - (1 - smoothing) one_hot(target) - smoothing / allowed
      auto w = weights.narrow(0, start, len).unsqueeze(1);
      scores.mul_(z > 0 ? w * (1 + 2 * z * log_sum) / sum : w / sum);
      scores.scatter_add_(1, target, w * -(1 - smoothing));
      if (smoothing > 0) {
        scores.sub_(w * (smoothing / allowed));
        if (forbids) scores.select(1, forbidden).zero_();
      }
      auto grad_scores = scores.to(matrix.scalar_type());
      if (wants_hidden) grad_hidden.narrow(0, start, len).copy_(at::matmul(grad_scores, matrix));
      if (wants_weight) add_product(grad_weight, grad_scores.t(), h, start == 0);
    }
    ctx->saved_data["hidden"] = grad_hidden;
    ctx->saved_data["weight"] = grad_weight;
    ctx->mark_non_differentiable({nll, argmax});
    auto weighted_sum = (loss * weights).sum();
    return {weighted_sum, nll, argmax};
  }

  // States in half precision and rows of zeros that make them one of few lengths, a sixteenth longer at most beyond 1024. oneDNN compiles
  // kernels for each number of rows and keeps them, half a megabyte for each product, and masks leave another number at every step.
  // Rows of zeros have scores and gradients of zero.
  static at::Tensor padded(const at::Tensor& hidden, int64_t chunk_len) {
    const int64_t len = hidden.size(0);
    int64_t unit = 64;
    while (unit * 32 <= len) unit *= 2;
    const int64_t rows = std::min((len + unit - 1) / unit * unit, chunk_len);
    if (hidden.scalar_type() == at::kFloat || len >= rows) return hidden;
    auto result = at::zeros({rows, hidden.size(1)}, hidden.options());
    result.narrow(0, 0, len).copy_(hidden);
    return result;
  }

  // What the first product writes and the others add to. A product of another kind than the sum is made and added in slices: whole, it
  // and what it is converted to are each as large as the weight, and their pages came anew from the kernel for every chunk (in a step
  // of SmolLM2-135M in bfloat16 that was 0.7 GB).
  static void add_product(at::Tensor& sum, const at::Tensor& a, const at::Tensor& b, bool is_first) {
    if (sum.scalar_type() == a.scalar_type()) {
      if (is_first) {
        at::mm_out(sum, a, b);
      } else {
        sum.addmm_(a, b);
      }
      return;
    }
    // 2^22 numbers, 16 MB in float32; below 64 rows a product is slow. Slices of 2^18 to 2^24 took as long.
    const int64_t rows = sum.size(0), at_once = std::max<int64_t>(64, (1 << 22) / std::max<int64_t>(1, sum.size(1)));
    for (int64_t row = 0; row < rows; row += at_once) {
      const int64_t count = std::min(at_once, rows - row);
      auto part = at::mm(a.narrow(0, row, count), b);
      auto to = sum.narrow(0, row, count);
      if (is_first) {
        to.copy_(part);
      } else {
        to.add_(part);
      }
    }
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    auto scale = grad_outputs[0];
    // A loss is nearly always differentiated with 1: then the stored gradients are the answer, without a copy.
    const bool is_one = scale.is_cpu() && scale.item<double>() == 1.0;
    auto scaled = [&](const char* name) {
      auto grad = ctx->saved_data[name].toTensor();
      ctx->saved_data.erase(name);  // so that the parameter takes it over instead of copying it
      return !grad.defined() || is_one ? grad : grad * scale.to(grad.scalar_type());
    };
    variable_list grads(12);
    grads[0] = scaled("hidden");
    grads[1] = scaled("weight");
    return grads;
  }
};

}  // namespace
}  // namespace dlm

using namespace dlm;

extern "C" {

const char* dlm_torch_error() { return last_error().c_str(); }

void dlm_torch_set_error(const char* message) { last_error() = message; }

const char* dlm_torch_version() { return TORCH_VERSION; }

// One pass over parameters, gradients and moments; tch's AdamW makes several temporaries for each.
int dlm_fused_adamw(const at::Tensor* const* params, const at::Tensor* const* grads, const at::Tensor* const* exp_avgs,
                    const at::Tensor* const* exp_avg_sqs, const at::Tensor* const* steps, size_t count, double lr,
                    double beta1, double beta2, double weight_decay, double eps) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    auto step_list = list(steps, count);
    at::_foreach_add_(step_list, 1);
    at::_fused_adamw_(list(params, count), list(grads, count), list(exp_avgs, count), list(exp_avg_sqs, count), {},
                      step_list, lr, beta1, beta2, weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false);
    // The kernel does not count as a change in place, by which copies of the parameters know that they are old.
    for (auto& param : list(params, count)) param.unsafeGetTensorImpl()->bump_version();
  });
}

// tch's clip_grad_norm does not tell the norm, which is a metric.
int dlm_clip_grad_norm(const at::Tensor* const* grads, size_t count, double max_norm, double* norm) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    auto tensors = list(grads, count);
    *norm = tensors.empty() ? 0.0 : at::stack(at::_foreach_norm(tensors)).norm().item<double>();
    // As torch.nn.utils.clip_grad_norm_: float32 arithmetic, 1e-6 in the denominator.
    const float factor = static_cast<float>(max_norm) / (static_cast<float>(*norm) + 1e-6f);
    if (max_norm > 0 && factor < 1.0f) at::_foreach_mul_(tensors, static_cast<double>(factor));
  });
}

// A training step allocates and frees a gigabyte of activations and gradients. glibc gives freed memory back to the kernel, which hands
// it out again page by page: 12 % of a step of SmolLM2-135M in bfloat16. Kept, the next step finds it. Blocks above 32 MB, such as the
// gradient of an embedding, would go back whatever the thresholds, were they not put into the heap, too: 7 %.
void dlm_keep_freed_memory() {
#if defined(__GLIBC__)
  mallopt(M_MMAP_MAX, 0);
  maps_large_blocks() = false;
  mallopt(M_TRIM_THRESHOLD, -1);  // never
#endif
}

// tch can only fill gradients with zeros, which the next ones are then added to: in a step of SmolLM2-135M in float32 that is 2 GB to
// read and write and 0.5 GB held through the forward pass.
int dlm_clear_gradients(const at::Tensor* const* params, size_t count) {
  return guarded([&] {
    for (auto& param : list(params, count)) param.mutable_grad() = at::Tensor();
  });
}

int dlm_linear_cross_entropy(const at::Tensor* hidden, const at::Tensor* weight, const at::Tensor* copy,
                             const at::Tensor* targets, const at::Tensor* weights, int64_t chunk_len, double smoothing,
                             double z, int64_t forbidden, bool fused, at::Tensor** out) {
  return guarded([&] {
    TORCH_CHECK(forbidden < weight->size(0), "the forbidden token ", forbidden, " is beyond the vocabulary");
    const bool grad = at::GradMode::is_enabled();
    auto results = LinearCrossEntropy::apply(*hidden, *weight, optional(copy), *targets, *weights, chunk_len,
                                             grad && hidden->requires_grad(), grad && weight->requires_grad(),
                                             smoothing, z, forbidden, fused && hidden->is_cpu() && hidden->scalar_type() != at::kHalf);
    for (size_t i = 0; i < results.size(); ++i) out[i] = new at::Tensor(results[i]);
  });
}

}  // extern "C"
