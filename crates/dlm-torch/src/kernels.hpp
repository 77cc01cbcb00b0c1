// Loops over rows that libtorch has only as chains of operators, each of which reads and writes all of memory.
//
// `kernels.cpp` is compiled once for each level of the instruction set; `kernels()` gives the best one that the processor has.
// Numbers are float32 or bfloat16 (`Kind`), arithmetic is float32. Every function works on rows `begin..end`, so that threads divide them.
#pragma once
#include <cstdint>

namespace dlm {

enum Kind { kFloat32 = 0, kBFloat16 = 1 };

struct Kernels {
  // sum = x + delta (`delta` may be null: then sum is x and not written); y = sum * rsqrt(mean(sum^2) + eps) * weight
  void (*norm)(int64_t begin, int64_t end, int64_t width, Kind sum_kind, Kind kind, Kind weight_kind, const void* x,
               const void* delta, void* sum, const void* weight, float eps, void* y, float* rstd);
  // grad_x of the sum, to which grad_sum (may be null) is added; grad_weight (may be null), float32, grows by what the rows add
  void (*norm_backward)(int64_t begin, int64_t end, int64_t width, Kind sum_kind, Kind kind, Kind weight_kind, const void* sum,
                        const void* weight, const float* rstd, const void* grad_y, const void* grad_sum, void* grad_x,
                        float* grad_weight);
  // y = silu(gate) * up, where a row holds `width` numbers of gate and then as many of up
  void (*swiglu)(int64_t begin, int64_t end, int64_t width, Kind kind, const void* gate_up, void* y);
  void (*swiglu_backward)(int64_t begin, int64_t end, int64_t width, Kind kind, const void* gate_up, const void* grad_y,
                          void* grad_gate_up);
  // rows of tokens [queries, keys, values] to heads [batch, heads, seq_len, dim], queries and keys turned; backward: the reverse
  void (*rotate)(int64_t begin, int64_t end, int64_t seq_len, int64_t heads, int64_t kv_heads, int64_t dim, int64_t positions,
                 Kind kind, const float* cos, const float* sin, bool backward, void* tokens, void* q, void* k, void* v);
  // scores to probabilities in place: softmax(scale * scores); the logarithm of the denominator to lse
  void (*softmax)(int64_t begin, int64_t end, int64_t width, Kind kind, float scale, void* scores, float* lse);
  // scores to probabilities p again, and grad_p to the gradient of the scores, both in place
  void (*softmax_backward)(int64_t begin, int64_t end, int64_t width, Kind kind, float scale, void* scores, const float* lse,
                           void* grad_p);
  // rows of scores over a vocabulary: nll, loss and argmax of each row, and in place weight * d loss / d score if `grads`
  void (*cross_entropy)(int64_t begin, int64_t end, int64_t vocab, Kind kind, void* scores, const int64_t* targets,
                        const float* weights, float smoothing, float z, int64_t forbidden, bool grads, float* nll, float* loss,
                        int64_t* argmax);
};

const Kernels& kernels();

}  // namespace dlm
