// The loops of `kernels.hpp`, written so that a compiler vectorises them; DLM_LEVEL names the namespace of an instruction set.
//
// No header with inline functions is included: the linker keeps one copy of those, perhaps that of a level the processor lacks.
#include "kernels.hpp"

// The loop that follows adds up `sum` in any order. Nothing else may be taken in another order (`-fassociative-math` would).
#define DLM_PRAGMA(text) _Pragma(#text)
#define DLM_SUM(sum) DLM_PRAGMA(omp simd reduction(+ : sum))
// The loop that follows reads nothing that it has written, which a compiler does not find out where many arrays are involved.
#define DLM_EACH DLM_PRAGMA(omp simd)

namespace dlm {
namespace DLM_LEVEL {
namespace {

struct bf16 {
  uint16_t bits;
};

inline float load(const float* p, int64_t i) { return p[i]; }

inline float load(const bf16* p, int64_t i) {
  const uint32_t bits = static_cast<uint32_t>(p[i].bits) << 16;
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

inline void store(float* p, int64_t i, float x) { p[i] = x; }

// To the nearest, ties to even; NaN stays NaN.
inline void store(bf16* p, int64_t i, float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  p[i].bits = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

// e^x to 2e-7 of itself: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] whose greatest error there, 4e-9, is the least for its degree.
// ln 2 comes in two parts, of which the first times n is exact: that has to stay a sum of three in this order.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float n = __builtin_rintf(x * 1.44269504f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.38145988e-3f;
  p = p * r + 8.36871658e-3f;
  p = p * r + 4.16683890e-2f;
  p = p * r + 1.66665211e-1f;
  p = p * r + 4.99999940e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  __builtin_memcpy(&power, &bits, 4);
  return p * power;
}

// Zero where e^-x would no longer grow; NaN stays NaN.
inline float sigmoid(float x) { return x < -87.0f ? 0.0f : 1.0f / (1.0f + exponential(-x)); }

template <typename S, typename C, typename W>
void norm_of(int64_t begin, int64_t end, int64_t width, const void* x, const void* delta, void* sum, const void* weight,
             float eps, void* y, float* rstd) {
  const W* w = static_cast<const W*>(weight);
  for (int64_t row = begin; row < end; ++row) {
    const S* from = static_cast<const S*>(x) + row * width;
    float squares = 0;
    if (delta) {
      const C* d = static_cast<const C*>(delta) + row * width;
      S* to = static_cast<S*>(sum) + row * width;
      DLM_SUM(squares)
      for (int64_t i = 0; i < width; ++i) {
        store(to, i, load(from, i) + load(d, i));
        const float s = load(to, i);
        squares += s * s;
      }
      from = to;
    } else {
      DLM_SUM(squares)
      for (int64_t i = 0; i < width; ++i) squares += load(from, i) * load(from, i);
    }
    const float r = 1.0f / __builtin_sqrtf(squares / static_cast<float>(width) + eps);
    C* to = static_cast<C*>(y) + row * width;
    for (int64_t i = 0; i < width; ++i) store(to, i, load(from, i) * r * load(w, i));
    rstd[row] = r;
  }
}

template <typename S, typename C, typename W>
void norm_backward_of(int64_t begin, int64_t end, int64_t width, const void* sum, const void* weight, const float* rstd,
                      const void* grad_y, const void* grad_sum, void* grad_x, float* grad_weight) {
  const W* w = static_cast<const W*>(weight);
  for (int64_t row = begin; row < end; ++row) {
    const S* x = static_cast<const S*>(sum) + row * width;
    const C* gy = static_cast<const C*>(grad_y) + row * width;
    S* gx = static_cast<S*>(grad_x) + row * width;
    const float r = rstd[row];
    float dot = 0;
    DLM_SUM(dot)
    for (int64_t i = 0; i < width; ++i) dot += load(gy, i) * load(w, i) * load(x, i);
    const float back = r * r * r * dot / static_cast<float>(width);
    if (grad_sum) {
      const S* gs = static_cast<const S*>(grad_sum) + row * width;
      for (int64_t i = 0; i < width; ++i) {
        store(gx, i, load(gs, i) + r * load(gy, i) * load(w, i) - back * load(x, i));
      }
    } else {
      for (int64_t i = 0; i < width; ++i) store(gx, i, r * load(gy, i) * load(w, i) - back * load(x, i));
    }
    if (!grad_weight) continue;
    for (int64_t i = 0; i < width; ++i) grad_weight[i] += load(gy, i) * load(x, i) * r;
  }
}

// Calls F<S, C, W> for three kinds; the states are never less exact than what is added to them.
#define DLM_NORM(f, ...)                                                                    \
  if (sum_kind == kFloat32 && kind == kFloat32) return f<float, float, float>(__VA_ARGS__); \
  if (sum_kind == kFloat32) return f<float, bf16, float>(__VA_ARGS__);                      \
  if (weight_kind == kFloat32) return f<bf16, bf16, float>(__VA_ARGS__);                    \
  return f<bf16, bf16, bf16>(__VA_ARGS__)

void norm(int64_t begin, int64_t end, int64_t width, Kind sum_kind, Kind kind, Kind weight_kind, const void* x,
          const void* delta, void* sum, const void* weight, float eps, void* y, float* rstd) {
  DLM_NORM(norm_of, begin, end, width, x, delta, sum, weight, eps, y, rstd);
}

void norm_backward(int64_t begin, int64_t end, int64_t width, Kind sum_kind, Kind kind, Kind weight_kind, const void* sum,
                   const void* weight, const float* rstd, const void* grad_y, const void* grad_sum, void* grad_x,
                   float* grad_weight) {
  DLM_NORM(norm_backward_of, begin, end, width, sum, weight, rstd, grad_y, grad_sum, grad_x, grad_weight);
}

template <typename C>
void swiglu_of(int64_t begin, int64_t end, int64_t width, const void* gate_up, void* y) {
  for (int64_t row = begin; row < end; ++row) {
    const C* gate = static_cast<const C*>(gate_up) + row * 2 * width;
    const C* up = gate + width;
    C* to = static_cast<C*>(y) + row * width;
    for (int64_t i = 0; i < width; ++i) store(to, i, load(gate, i) * sigmoid(load(gate, i)) * load(up, i));
  }
}

template <typename C>
void swiglu_backward_of(int64_t begin, int64_t end, int64_t width, const void* gate_up, const void* grad_y,
                        void* grad_gate_up) {
  for (int64_t row = begin; row < end; ++row) {
    const C* gate = static_cast<const C*>(gate_up) + row * 2 * width;
    const C* up = gate + width;
    const C* gy = static_cast<const C*>(grad_y) + row * width;
    C* grad_gate = static_cast<C*>(grad_gate_up) + row * 2 * width;
    C* grad_up = grad_gate + width;
    DLM_EACH
    for (int64_t i = 0; i < width; ++i) {
      const float g = load(gate, i), s = sigmoid(g), grad = load(gy, i);
      store(grad_gate, i, grad * load(up, i) * s * (1.0f + g * (1.0f - s)));
      store(grad_up, i, grad * g * s);
    }
  }
}

void swiglu(int64_t begin, int64_t end, int64_t width, Kind kind, const void* gate_up, void* y) {
  kind == kFloat32 ? swiglu_of<float>(begin, end, width, gate_up, y) : swiglu_of<bf16>(begin, end, width, gate_up, y);
}

void swiglu_backward(int64_t begin, int64_t end, int64_t width, Kind kind, const void* gate_up, const void* grad_y,
                     void* grad_gate_up) {
  kind == kFloat32 ? swiglu_backward_of<float>(begin, end, width, gate_up, grad_y, grad_gate_up)
                   : swiglu_backward_of<bf16>(begin, end, width, gate_up, grad_y, grad_gate_up);
}

template <typename C>
void turn(const C* from, C* to, int64_t half, const float* cos, const float* sin, float sign) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = load(from, i), b = load(from, i + half), s = sign * sin[i];
    store(to, i, a * cos[i] - b * s);
    store(to, i + half, b * cos[i] + a * s);
  }
}

template <typename C>
void rotate_of(int64_t begin, int64_t end, int64_t seq_len, int64_t heads, int64_t kv_heads, int64_t dim, int64_t positions,
               const float* cos, const float* sin, bool backward, void* tokens, void* q, void* k, void* v) {
  const int64_t half = dim / 2, width = (heads + 2 * kv_heads) * dim;
  const float sign = backward ? -1.0f : 1.0f;
  for (int64_t token = begin; token < end; ++token) {
    const int64_t row = token / seq_len, place = token % seq_len;
    const float* c = cos + token % positions * half;
    const float* s = sin + token % positions * half;
    C* flat = static_cast<C*>(tokens) + token * width;
    for (int64_t head = 0; head < heads + kv_heads; ++head, flat += dim) {
      C* apart = head < heads ? static_cast<C*>(q) + ((row * heads + head) * seq_len + place) * dim
                              : static_cast<C*>(k) + ((row * kv_heads + head - heads) * seq_len + place) * dim;
      backward ? turn(apart, flat, half, c, s, sign) : turn(flat, apart, half, c, s, sign);
    }
    for (int64_t head = 0; head < kv_heads; ++head, flat += dim) {
      C* apart = static_cast<C*>(v) + ((row * kv_heads + head) * seq_len + place) * dim;
      for (int64_t i = 0; i < dim; ++i) (backward ? flat : apart)[i] = (backward ? apart : flat)[i];
    }
  }
}

void rotate(int64_t begin, int64_t end, int64_t seq_len, int64_t heads, int64_t kv_heads, int64_t dim, int64_t positions,
            Kind kind, const float* cos, const float* sin, bool backward, void* tokens, void* q, void* k, void* v) {
  kind == kFloat32
      ? rotate_of<float>(begin, end, seq_len, heads, kv_heads, dim, positions, cos, sin, backward, tokens, q, k, v)
      : rotate_of<bf16>(begin, end, seq_len, heads, kv_heads, dim, positions, cos, sin, backward, tokens, q, k, v);
}

// NaN may get lost here; the sum that follows has it.
template <typename C>
__attribute__((optimize("finite-math-only"))) float largest(const C* row, int64_t width) {
  float most = -__builtin_inff();
  for (int64_t i = 0; i < width; ++i) most = load(row, i) > most ? load(row, i) : most;
  return most;
}

template <typename C>
void softmax_of(int64_t begin, int64_t end, int64_t width, float scale, void* scores, float* lse) {
  for (int64_t row = begin; row < end; ++row) {
    C* s = static_cast<C*>(scores) + row * width;
    const float most = largest(s, width) * scale;
    float sum = 0;
    DLM_SUM(sum)
    for (int64_t i = 0; i < width; ++i) sum += exponential(load(s, i) * scale - most);
    const float log_sum = most + __builtin_logf(sum);
    for (int64_t i = 0; i < width; ++i) store(s, i, exponential(load(s, i) * scale - log_sum));
    lse[row] = log_sum;
  }
}

template <typename C>
void softmax_backward_of(int64_t begin, int64_t end, int64_t width, float scale, void* scores, const float* lse, void* grad_p) {
  for (int64_t row = begin; row < end; ++row) {
    C* s = static_cast<C*>(scores) + row * width;
    C* g = static_cast<C*>(grad_p) + row * width;
    const float log_sum = lse[row];
    float dot = 0;
    DLM_SUM(dot)
    for (int64_t i = 0; i < width; ++i) {
      const float p = exponential(load(s, i) * scale - log_sum);
      dot += p * load(g, i);
      store(s, i, p);
    }
    for (int64_t i = 0; i < width; ++i) store(g, i, load(s, i) * (load(g, i) - dot) * scale);
  }
}

void softmax(int64_t begin, int64_t end, int64_t width, Kind kind, float scale, void* scores, float* lse) {
  kind == kFloat32 ? softmax_of<float>(begin, end, width, scale, scores, lse)
                   : softmax_of<bf16>(begin, end, width, scale, scores, lse);
}

void softmax_backward(int64_t begin, int64_t end, int64_t width, Kind kind, float scale, void* scores, const float* lse,
                      void* grad_p) {
  kind == kFloat32 ? softmax_backward_of<float>(begin, end, width, scale, scores, lse, grad_p)
                   : softmax_backward_of<bf16>(begin, end, width, scale, scores, lse, grad_p);
}

// d loss / d score = (1 + 2 z logsumexp) softmax - (1 - smoothing) one_hot(target) - smoothing / allowed
template <typename C>
void cross_entropy_of(int64_t begin, int64_t end, int64_t vocab, void* scores, const int64_t* targets, const float* weights,
                      float smoothing, float z, int64_t forbidden, bool grads, float* nll, float* loss, int64_t* argmax) {
  const float allowed = static_cast<float>(vocab - (forbidden >= 0 ? 1 : 0));
  for (int64_t row = begin; row < end; ++row) {
    C* s = static_cast<C*>(scores) + row * vocab;
    float mean = 0;
    if (smoothing > 0) {
      DLM_SUM(mean)
      for (int64_t i = 0; i < vocab; ++i) mean += load(s, i);
      if (forbidden >= 0) mean -= load(s, forbidden);
      mean /= allowed;
    }
    if (forbidden >= 0) store(s, forbidden, -__builtin_inff());
    const float most = largest(s, vocab);
    int64_t choice = 0;
    while (choice + 1 < vocab && load(s, choice) != most) ++choice;
    float sum = 0;
    DLM_SUM(sum)
    for (int64_t i = 0; i < vocab; ++i) sum += exponential(load(s, i) - most);
    const float log_sum = most + __builtin_logf(sum);
    const float row_nll = log_sum - load(s, targets[row]);
    nll[row] = row_nll;
    loss[row] = row_nll * (1.0f - smoothing) + (log_sum - mean) * smoothing + log_sum * log_sum * z;
    argmax[row] = choice;
    if (!grads) continue;
    const float w = weights[row], factor = w * (1.0f + 2.0f * z * log_sum), flat = w * smoothing / allowed;
    const float of_target = factor * exponential(load(s, targets[row]) - log_sum) - flat - w * (1.0f - smoothing);
    for (int64_t i = 0; i < vocab; ++i) store(s, i, factor * exponential(load(s, i) - log_sum) - flat);
    store(s, targets[row], of_target);
    if (forbidden >= 0) store(s, forbidden, 0.0f);
  }
}

void cross_entropy(int64_t begin, int64_t end, int64_t vocab, Kind kind, void* scores, const int64_t* targets,
                   const float* weights, float smoothing, float z, int64_t forbidden, bool grads, float* nll, float* loss,
                   int64_t* argmax) {
  kind == kFloat32 ? cross_entropy_of<float>(begin, end, vocab, scores, targets, weights, smoothing, z, forbidden, grads, nll,
                                             loss, argmax)
                   : cross_entropy_of<bf16>(begin, end, vocab, scores, targets, weights, smoothing, z, forbidden, grads, nll,
                                            loss, argmax);
}

}  // namespace

extern const Kernels table;
const Kernels table = {norm,   norm_backward, swiglu,           swiglu_backward,
                       rotate, softmax,       softmax_backward, cross_entropy};

}  // namespace DLM_LEVEL
}  // namespace dlm
