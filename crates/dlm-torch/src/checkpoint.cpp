// Activation checkpointing, which libtorch has in Python alone: a function whose inner activations are forgotten and computed again.
#include <ATen/core/ivalue.h>

#include "additions.hpp"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace dlm {
namespace {

// A Rust closure: `call` fills `out` with `outputs` new tensors and returns 0, or another number when it failed.
struct Closure : torch::CustomClassHolder {
  using Call = int (*)(void* data, const at::Tensor* const* inputs, size_t count, at::Tensor** out);
  Call call;
  void (*drop)(void* data);
  void* data;
  int64_t outputs;

  Closure(Call call, void (*drop)(void*), void* data, int64_t outputs)
      : call(call), drop(drop), data(data), outputs(outputs) {}
  ~Closure() override { drop(data); }

  variable_list operator()(const variable_list& inputs) const {
    std::vector<const at::Tensor*> pointers;
    for (const auto& input : inputs) pointers.push_back(&input);
    std::vector<at::Tensor*> out(outputs, nullptr);
    const int code = call(data, pointers.data(), pointers.size(), out.data());
    variable_list results;
    for (auto* tensor : out) {
      if (tensor) results.push_back(*tensor);
      delete tensor;
    }
    TORCH_CHECK(code == 0, last_error());
    return results;
  }
};

// Who computes activations twice to save memory does not want holes of 100 MB in the heap: 3 % of the memory of SmolLM2-135M.
void map_large_blocks() {
#if defined(__GLIBC__)
  if (maps_large_blocks().exchange(true)) return;
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the largest that it takes
  mallopt(M_MMAP_MAX, 1 << 16);
#endif
}

// Gives free memory back to the kernel at every fifth call: a tenth less memory for SmolLM2-135M, at no cost that could be measured;
// at every call a step takes a sixth longer.
void release_freed_memory() {
#if defined(__GLIBC__)
  thread_local int calls = 0;
  if (++calls % 5 == 0) malloc_trim(0);
#endif
}

struct Checkpoint : torch::autograd::Function<Checkpoint> {
  // `tie` requires a gradient, so that there is a backward pass even where only parameters inside the closure need one.
  static variable_list forward(AutogradContext* ctx, const at::Tensor& first, const std::optional<at::Tensor>& second,
                               const at::Tensor& tie, const c10::intrusive_ptr<Closure>& closure) {
    map_large_blocks();
    variable_list inputs{first};
    if (second) inputs.push_back(*second);
    ctx->save_for_backward(inputs);
    ctx->saved_data["closure"] = c10::IValue::make_capsule(closure);
    ctx->set_materialize_grads(false);
    at::AutoGradMode no_grad(false);
    return (*closure)(inputs);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    at::AutoGradMode with_grad(true);
    auto closure = c10::static_intrusive_pointer_cast<Closure>(ctx->saved_data["closure"].toCapsule());
    auto saved = ctx->get_saved_variables();
    variable_list inputs;
    for (const auto& input : saved) inputs.push_back(input.detach().requires_grad_(true));
    auto outputs = (*closure)(inputs);
    variable_list roots, of_roots;
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (!grads[i].defined() || !outputs[i].requires_grad()) continue;
      roots.push_back(outputs[i]);
      of_roots.push_back(grads[i]);
    }
    if (!roots.empty()) torch::autograd::backward(roots, of_roots);
    variable_list result(4);
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (ctx->needs_input_grad(i)) result[i] = inputs[i].grad();
    }
    // What was computed again is free now, in holes between the gradients of parameters, where the next of its like do not always fit.
    outputs.clear();
    roots.clear();
    release_freed_memory();
    return result;
  }
};

}  // namespace
}  // namespace dlm

extern "C" {

// The closure is dropped when the graph is, or at once where nothing needs a gradient.
int dlm_checkpoint(const at::Tensor* const* inputs, size_t count, dlm::Closure::Call call, void (*drop)(void*), void* data,
                   size_t outputs, at::Tensor** out) {
  auto closure = c10::make_intrusive<dlm::Closure>(call, drop, data, static_cast<int64_t>(outputs));
  return dlm::guarded([&] {
    TORCH_CHECK(count == 1 || count == 2, "one or two inputs, not ", count);
    auto tie = at::zeros({0}, inputs[0]->options().dtype(at::kFloat)).requires_grad_(true);
    auto second = count == 2 ? dlm::optional(inputs[1]) : std::nullopt;
    auto results = dlm::Checkpoint::apply(*inputs[0], second, tie, closure);
    for (size_t i = 0; i < results.size(); ++i) out[i] = dlm::owned(results[i]);
  });
}

}  // extern "C"
