// What the C++ files of this crate share.
#pragma once
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <atomic>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "parallel.hpp"

namespace dlm {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The message of this thread's last failure.
std::string& last_error();

// Whether the C library gets large blocks from the kernel and gives them back, as it does unless told otherwise.
std::atomic<bool>& maps_large_blocks();

template <typename Body>
int guarded(Body body) {
  try {
    body();
    return 0;
  } catch (const c10::Error& error) {
    last_error() = error.what_without_backtrace();
  } catch (const std::exception& error) {
    last_error() = error.what();
  }
  return 1;
}

inline std::vector<at::Tensor> list(const at::Tensor* const* tensors, size_t count) {
  std::vector<at::Tensor> result;
  result.reserve(count);
  for (size_t i = 0; i < count; ++i) result.push_back(*tensors[i]);
  return result;
}

inline std::optional<at::Tensor> optional(const at::Tensor* tensor) {
  return tensor ? std::optional<at::Tensor>(*tensor) : std::nullopt;
}

inline at::Tensor* owned(const at::Tensor& tensor) { return new at::Tensor(tensor); }

inline Kind kind_of(const at::Tensor& tensor) {
  const auto type = tensor.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16, "expected Float or BFloat16, not ", type);
  return type == at::kFloat ? kFloat32 : kBFloat16;
}

inline void expect_cpu(const at::Tensor& tensor) { TORCH_CHECK(tensor.is_cpu(), "fused loops run on a CPU alone"); }

}  // namespace dlm
