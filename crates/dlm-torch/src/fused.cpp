// Parts of a transformer's block as single operators with a backward pass of their own, each in one pass over memory where libtorch
// takes a chain of passes. `fused.rs` says what each is and what it gains, and has it as a chain beside, which tests compare.
#include "additions.hpp"

namespace dlm {
namespace {

// Rows of that width that a thread takes at least: fewer are done before another thread has been woken.
int64_t grain(int64_t width) { return std::max<int64_t>(16, (1 << 14) / std::max<int64_t>(1, width)); }

struct Norm : torch::autograd::Function<Norm> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x, const std::optional<at::Tensor>& delta,
                               const at::Tensor& weight, double eps, bool half) {
    expect_cpu(x);
    const int64_t width = x.size(-1), rows = width ? x.numel() / width : 0;
    TORCH_CHECK(weight.dim() == 1 && weight.size(0) == width, "a norm of ", weight.size(0), " numbers for rows of ", width);
    auto from = x.contiguous(), w = weight.contiguous();
    auto y = at::empty(x.sizes(), x.options().dtype(half ? at::kBFloat16 : at::kFloat));
    auto rstd = at::empty({rows}, x.options().dtype(at::kFloat));
    at::Tensor sum = from, added;
    if (delta) {
      TORCH_CHECK(delta->sizes() == x.sizes() && delta->scalar_type() == y.scalar_type(), "what is added does not fit");
      added = delta->contiguous();
      sum = at::empty_like(from);
    }
    const Kind kinds[] = {kind_of(from), kind_of(y), kind_of(w)};
    TORCH_CHECK(!(kinds[0] == kFloat32 && kinds[2] != kFloat32) && !(kinds[0] == kBFloat16 && kinds[1] == kFloat32),
                "a norm from ", x.scalar_type(), " with a weight of ", weight.scalar_type(), " to ", y.scalar_type());
    parallel(rows, grain(width), [&](int64_t, int64_t begin, int64_t end) {
      kernels().norm(begin, end, width, kinds[0], kinds[1], kinds[2], from.const_data_ptr(),
                     delta ? added.const_data_ptr() : nullptr, delta ? sum.data_ptr() : nullptr, w.const_data_ptr(),
                     static_cast<float>(eps), y.data_ptr(), rstd.data_ptr<float>());
    });
    ctx->saved_data["rstd"] = rstd;
    ctx->saved_data["has_delta"] = delta.has_value();
    ctx->set_materialize_grads(false);
    // A sum that is an output is saved as one.
    ctx->save_for_backward({sum, w});
    if (delta) return {sum, y};
    return {y};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const bool has_delta = ctx->saved_data["has_delta"].toBool();
    auto saved = ctx->get_saved_variables();
    auto sum = saved[0], w = saved[1], rstd = ctx->saved_data["rstd"].toTensor();
    auto grad_sum = has_delta ? grads[0] : at::Tensor();
    auto grad_y = has_delta ? grads[1] : grads[0];
    if (!grad_y.defined()) return {grad_sum, grad_sum, at::Tensor(), at::Tensor(), at::Tensor()};
    grad_y = grad_y.contiguous();
    if (grad_sum.defined()) grad_sum = grad_sum.contiguous();
    const int64_t width = sum.size(-1), rows = rstd.numel();
    auto grad_x = at::empty_like(sum);
    at::Tensor partial;
    if (ctx->needs_input_grad(has_delta ? 2 : 1)) partial = at::zeros({parts(rows, grain(width)), width}, rstd.options());
    parallel(rows, grain(width), [&](int64_t part, int64_t begin, int64_t end) {
      kernels().norm_backward(begin, end, width, kind_of(sum), kind_of(grad_y), kind_of(w), sum.const_data_ptr(),
                              w.const_data_ptr(), rstd.const_data_ptr<float>(), grad_y.const_data_ptr(),
                              grad_sum.defined() ? grad_sum.const_data_ptr() : nullptr, grad_x.data_ptr(),
                              partial.defined() ? partial.data_ptr<float>() + part * width : nullptr);
    });
    auto grad_w = partial.defined() ? partial.sum(0).to(w.scalar_type()) : at::Tensor();
    auto grad_delta = has_delta ? grad_x.to(grad_y.scalar_type()) : at::Tensor();
    return {grad_x, grad_delta, grad_w, at::Tensor(), at::Tensor()};
  }
};

struct SwiGlu : torch::autograd::Function<SwiGlu> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gate_up) {
    expect_cpu(gate_up);
    TORCH_CHECK(gate_up.dim() == 2 && gate_up.size(1) % 2 == 0, "expected rows of gate and up, not ", gate_up.sizes());
    auto from = gate_up.contiguous();
    const int64_t rows = from.size(0), width = from.size(1) / 2;
    auto y = at::empty({rows, width}, from.options());
    parallel(rows, grain(2 * width), [&](int64_t, int64_t begin, int64_t end) {
      kernels().swiglu(begin, end, width, kind_of(from), from.const_data_ptr(), y.data_ptr());
    });
    ctx->save_for_backward({from});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    auto from = ctx->get_saved_variables()[0], grad_y = grads[0].contiguous();
    auto grad = at::empty_like(from);
    parallel(from.size(0), grain(from.size(1)), [&](int64_t, int64_t begin, int64_t end) {
      kernels().swiglu_backward(begin, end, from.size(1) / 2, kind_of(from), from.const_data_ptr(), grad_y.const_data_ptr(),
                                grad.data_ptr());
    });
    return {grad};
  }
};

struct Rotate : torch::autograd::Function<Rotate> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& tokens, const at::Tensor& cos, const at::Tensor& sin,
                               int64_t batch, int64_t heads, int64_t kv_heads) {
    expect_cpu(tokens);
    TORCH_CHECK(tokens.dim() == 2 && batch >= 0 && heads > 0 && kv_heads > 0 && tokens.size(1) % (heads + 2 * kv_heads) == 0,
                tokens.sizes(), " are no ", batch, " rows of tokens with ", heads, " heads over ", kv_heads);
    const int64_t n = tokens.size(0), seq_len = batch ? n / batch : 0, dim = tokens.size(1) / (heads + 2 * kv_heads);
    TORCH_CHECK(n == batch * seq_len, n, " tokens are no ", batch, " equally long rows");
    TORCH_CHECK(cos.dim() == 2 && cos.sizes() == sin.sizes() && cos.size(1) * 2 == dim && cos.scalar_type() == at::kFloat &&
                    (n == 0 || (cos.size(0) > 0 && n % cos.size(0) == 0)),
                "angles of ", cos.sizes(), " for ", n, " tokens of heads of ", dim);
    auto from = tokens.contiguous(), c = cos.contiguous(), s = sin.contiguous();
    auto q = at::empty({batch, heads, seq_len, dim}, from.options());
    auto k = at::empty({batch, kv_heads, seq_len, dim}, from.options()), v = at::empty_like(k);
    parallel(n, grain(from.size(1)), [&](int64_t, int64_t begin, int64_t end) {
      kernels().rotate(begin, end, seq_len, heads, kv_heads, dim, c.size(0), kind_of(from), c.const_data_ptr<float>(),
                       s.const_data_ptr<float>(), false, from.data_ptr(), q.data_ptr(), k.data_ptr(), v.data_ptr());
    });
    ctx->saved_data["cos"] = c;
    ctx->saved_data["sin"] = s;
    return {q, k, v};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    auto c = ctx->saved_data["cos"].toTensor(), s = ctx->saved_data["sin"].toTensor();
    auto q = grads[0].contiguous(), k = grads[1].contiguous(), v = grads[2].contiguous();
    const int64_t batch = q.size(0), heads = q.size(1), kv_heads = k.size(1), seq_len = q.size(2), dim = q.size(3);
    auto grad = at::empty({batch * seq_len, (heads + 2 * kv_heads) * dim}, q.options());
    parallel(batch * seq_len, grain(grad.size(1)), [&](int64_t, int64_t begin, int64_t end) {
      kernels().rotate(begin, end, seq_len, heads, kv_heads, dim, c.size(0), kind_of(q), c.const_data_ptr<float>(),
                       s.const_data_ptr<float>(), true, grad.data_ptr(), q.data_ptr(), k.data_ptr(), v.data_ptr());
    });
    variable_list result(6);
    result[0] = grad;
    return result;
  }
};

// The weights as one matrix without copying, where they lie behind each other; else undefined.
at::Tensor joined(const std::vector<at::Tensor>& weights) {
  int64_t rows = 0;
  const auto& first = weights[0];
  for (const auto& weight : weights) {
    const bool follows = weight.is_contiguous() && weight.size(1) == first.size(1) && weight.is_alias_of(first) &&
                         weight.storage_offset() == first.storage_offset() + rows * first.size(1);
    if (!follows) return at::Tensor();
    rows += weight.size(0);
  }
  return first.as_strided({rows, first.size(1)}, {first.size(1), 1});
}

struct Linears : torch::autograd::Function<Linears> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& first,
                            const std::optional<at::Tensor>& second, const std::optional<at::Tensor>& third,
                            const std::optional<at::Tensor>& copy) {
    std::vector<at::Tensor> weights{first};
    if (second) weights.push_back(*second);
    if (third) weights.push_back(*third);
    auto joint = copy ? *copy : joined(weights);
    int64_t rows = 0;
    for (const auto& weight : weights) rows += weight.size(0);
    TORCH_CHECK(!copy || (copy->dim() == 2 && copy->size(0) == rows), "a copy of ", copy->sizes(), " for ", rows, " rows");
    if (!joint.defined()) joint = at::cat(weights);
    variable_list saved{x};
    saved.insert(saved.end(), weights.begin(), weights.end());
    ctx->save_for_backward(saved);
    ctx->saved_data["joint"] = joint;
    return at::linear(x, joint);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    auto joint = ctx->saved_data["joint"].toTensor(), grad_y = grads[0].contiguous();
    const auto& x = saved[0];
    variable_list result(5);
    if (ctx->needs_input_grad(0)) result[0] = at::mm(grad_y, joint);
    bool any = false;
    for (size_t i = 1; i < saved.size(); ++i) any = any || ctx->needs_input_grad(i);
    if (any) {
      auto grad = at::mm(grad_y.t(), x).to(saved[1].scalar_type());
      int64_t row = 0;
      for (size_t i = 1; i < saved.size(); ++i) {
        const int64_t rows = saved[i].size(0);
        if (ctx->needs_input_grad(i)) result[i] = saved.size() == 2 ? grad : grad.narrow(0, row, rows);
        row += rows;
      }
    }
    return result;
  }
};

// A part of the tokens and those they attend to; row -1 is all rows alike.
struct Piece {
  int64_t row, query, queries, key, keys, more, mores;
};

std::vector<Piece> pieces_of(const at::Tensor& table, int64_t seq_len) {
  if (!table.defined()) return {{-1, 0, seq_len, 0, seq_len, 0, 0}};
  auto rows = table.to(at::kLong).contiguous();
  TORCH_CHECK(rows.dim() == 2 && rows.size(1) == 7, "pieces of attention have 7 numbers, not ", rows.sizes());
  std::vector<Piece> pieces(rows.size(0));
  std::memcpy(pieces.data(), rows.const_data_ptr<int64_t>(), sizeof(Piece) * pieces.size());
  return pieces;
}

// Scores held at a time: few enough to stay in a cache, enough to keep threads busy.
constexpr int64_t kScores = 1 << 22;

struct Attention : torch::autograd::Function<Attention> {
  // The part of [batch, heads, seq_len, dim] that a piece names, as [batch * kv_heads, heads / kv_heads * tokens, dim].
  static at::Tensor queries(const at::Tensor& x, const Piece& piece, int64_t kv_heads) {
    auto part = (piece.row < 0 ? x : x.narrow(0, piece.row, 1)).narrow(2, piece.query, piece.queries);
    return part.reshape({part.size(0) * kv_heads, part.size(1) / kv_heads * piece.queries, x.size(3)});
  }

  static at::Tensor keys(const at::Tensor& x, const Piece& piece) {
    auto rows = piece.row < 0 ? x : x.narrow(0, piece.row, 1);
    auto part = rows.narrow(2, piece.key, piece.keys);
    if (piece.mores > 0) part = at::cat({part, rows.narrow(2, piece.more, piece.mores)}, 2);
    return part.reshape({part.size(0) * x.size(1), part.size(2), x.size(3)});
  }

  // Rows of queries that are multiplied with all keys at once.
  static int64_t chunk_of(int64_t queries, int64_t keys) {
    return queries * keys <= kScores ? queries : std::min(queries, std::max<int64_t>(64, kScores / keys));
  }

  // body(rows of the batch, rows of queries) for chunks of few scores.
  template <typename Body>
  static void chunked(int64_t batch, int64_t queries, int64_t keys, Body body) {
    const int64_t each = queries * keys, of_queries = chunk_of(queries, keys);
    const int64_t of_batch = std::max<int64_t>(1, each > 0 ? kScores / each : batch);
    for (int64_t b = 0; b < batch; b += of_batch) {
      for (int64_t q = 0; q < queries; q += of_queries) {
        body(b, std::min(of_batch, batch - b), q, std::min(of_queries, queries - q));
      }
    }
  }

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const std::optional<at::Tensor>& given) {
    expect_cpu(q);
    TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && k.sizes() == v.sizes() && q.size(0) == k.size(0) && q.size(2) == k.size(2) &&
                    q.size(3) == k.size(3) && q.size(3) > 0 && k.size(1) > 0 && q.size(1) % k.size(1) == 0,
                "queries of ", q.sizes(), " for keys of ", k.sizes(), " and values of ", v.sizes());
    const auto table = given ? *given : at::Tensor();
    const int64_t batch = q.size(0), heads = q.size(1), seq_len = q.size(2), dim = q.size(3), kv_heads = k.size(1);
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    auto pieces = pieces_of(table, seq_len);
    auto out = table.defined() ? at::zeros({batch, seq_len, heads * dim}, q.options())
                               : at::empty({batch, seq_len, heads * dim}, q.options());
    auto by_head = out.view({batch, seq_len, heads, dim}).transpose(1, 2);  // [batch, heads, seq_len, dim]
    std::vector<at::Tensor> log_sums;
    for (const auto& piece : pieces) {
      auto query = queries(q, piece, kv_heads), key = keys(k, piece), value = keys(v, piece);
      const int64_t n = query.size(0), rows = query.size(1), width = key.size(1);
      auto lse = at::empty({n, rows}, q.options().dtype(at::kFloat));
      auto mixed = at::empty_like(query);
      chunked(n, rows, width, [&](int64_t b, int64_t len, int64_t first, int64_t count) {
        auto scores = at::bmm(query.narrow(0, b, len).narrow(1, first, count), key.narrow(0, b, len).transpose(1, 2));
        auto sums = lse.narrow(0, b, len).narrow(1, first, count);
        parallel(len * count, grain(width), [&](int64_t, int64_t begin, int64_t end) {
          kernels().softmax(begin, end, width, kind_of(scores), scale, scores.data_ptr(), sums.data_ptr<float>());
        });
        auto to = mixed.narrow(0, b, len).narrow(1, first, count);
        at::bmm_out(to, scores, value.narrow(0, b, len));
      });
      auto to = (piece.row < 0 ? by_head : by_head.narrow(0, piece.row, 1)).narrow(2, piece.query, piece.queries);
      to.copy_(mixed.view(to.sizes()));
      log_sums.push_back(lse);
    }
    ctx->save_for_backward({q, k, v});
    ctx->saved_data["table"] = table;
    ctx->saved_data["log_sums"] = log_sums;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    const auto &q = saved[0], &k = saved[1], &v = saved[2];
    const int64_t batch = q.size(0), heads = q.size(1), seq_len = q.size(2), dim = q.size(3), kv_heads = k.size(1);
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    auto table = ctx->saved_data["table"].toTensor();
    auto log_sums = ctx->saved_data["log_sums"].toTensorVector();
    auto pieces = pieces_of(table, seq_len);
    auto grad_out = grads[0].view({batch, seq_len, heads, dim}).transpose(1, 2);
    // Pieces may share keys, and so do chunks of a piece: what they add up to is added in float32.
    at::Tensor grad_q, grad_k, grad_v;
    if (table.defined()) {
      grad_q = at::zeros_like(q);
      grad_k = at::zeros(k.sizes(), k.options().dtype(at::kFloat));
      grad_v = at::zeros_like(grad_k);
    }
    for (size_t i = 0; i < pieces.size(); ++i) {
      const auto& piece = pieces[i];
      if (table.defined() && (piece.queries == 0 || piece.keys + piece.mores == 0)) continue;
      auto query = queries(q, piece, kv_heads), key = keys(k, piece), value = keys(v, piece);
      auto grad = queries(grad_out, piece, kv_heads).contiguous();
      const int64_t n = query.size(0), rows = query.size(1), width = key.size(1);
      const bool is_divided = chunk_of(rows, width) < rows;
      const auto of_sum = key.options().dtype(is_divided ? at::kFloat : key.scalar_type());
      auto of_query = at::empty_like(query), of_key = at::empty(key.sizes(), of_sum), of_value = at::empty(key.sizes(), of_sum);
      // What the first chunk writes and the others add to.
      auto add_product = [](const at::Tensor& sum, const at::Tensor& a, const at::Tensor& b, bool is_first) {
        if (is_first && sum.scalar_type() == a.scalar_type()) {
          at::bmm_out(const_cast<at::Tensor&>(sum), a, b);
        } else if (is_first) {
          sum.copy_(at::bmm(a, b));
        } else if (sum.scalar_type() == a.scalar_type()) {
          sum.baddbmm_(a, b);
        } else {
          sum.add_(at::bmm(a, b));
        }
      };
      chunked(n, rows, width, [&](int64_t b, int64_t len, int64_t first, int64_t count) {
        auto chunk = [&](const at::Tensor& x) { return x.narrow(0, b, len).narrow(1, first, count); };
        auto whole = [&](const at::Tensor& x) { return x.narrow(0, b, len); };
        auto scores = at::bmm(chunk(query), whole(key).transpose(1, 2));
        auto grad_p = at::bmm(chunk(grad), whole(value).transpose(1, 2));
        auto sums = chunk(log_sums[i]);
        parallel(len * count, grain(width), [&](int64_t, int64_t begin, int64_t end) {
          kernels().softmax_backward(begin, end, width, kind_of(scores), scale, scores.data_ptr(),
                                     sums.const_data_ptr<float>(), grad_p.data_ptr());
        });
        auto to_query = chunk(of_query);
        at::bmm_out(to_query, grad_p, whole(key));
        add_product(whole(of_key), grad_p.transpose(1, 2), chunk(query), first == 0);
        add_product(whole(of_value), scores.transpose(1, 2), chunk(grad), first == 0);
      });
      if (!table.defined()) {
        return {of_query.view_as(q), of_key.to(k.scalar_type()).view_as(k), of_value.to(v.scalar_type()).view_as(v), at::Tensor()};
      }
      auto row = [&](const at::Tensor& x) { return piece.row < 0 ? x : x.narrow(0, piece.row, 1); };
      auto to = row(grad_q).narrow(2, piece.query, piece.queries);
      to.copy_(of_query.view(to.sizes()));
      auto add = [&](const at::Tensor& sum, const at::Tensor& part) {
        auto four = part.view({piece.row < 0 ? batch : 1, kv_heads, width, dim});
        row(sum).narrow(2, piece.key, piece.keys).add_(four.narrow(2, 0, piece.keys));
        if (piece.mores > 0) row(sum).narrow(2, piece.more, piece.mores).add_(four.narrow(2, piece.keys, piece.mores));
      };
      add(grad_k, of_key);
      add(grad_v, of_value);
    }
    return {grad_q, grad_k.to(k.scalar_type()), grad_v.to(v.scalar_type()), at::Tensor()};
  }
};

}  // namespace
}  // namespace dlm

using namespace dlm;

extern "C" {

// out: [sum, y] with a delta, [y, null] without.
int dlm_norm(const at::Tensor* x, const at::Tensor* delta, const at::Tensor* weight, double eps, bool half, at::Tensor** out) {
  return guarded([&] {
    auto results = Norm::apply(*x, optional(delta), *weight, eps, half);
    for (size_t i = 0; i < results.size(); ++i) out[i] = owned(results[i]);
  });
}

int dlm_swiglu(const at::Tensor* gate_up, at::Tensor** out) {
  return guarded([&] { *out = owned(SwiGlu::apply(*gate_up)); });
}

int dlm_rotate(const at::Tensor* tokens, const at::Tensor* cos, const at::Tensor* sin, int64_t batch, int64_t heads,
               int64_t kv_heads, at::Tensor** out) {
  return guarded([&] {
    auto results = Rotate::apply(*tokens, *cos, *sin, batch, heads, kv_heads);
    for (size_t i = 0; i < results.size(); ++i) out[i] = owned(results[i]);
  });
}

int dlm_linears(const at::Tensor* x, const at::Tensor* const* weights, size_t count, const at::Tensor* copy, at::Tensor** out) {
  return guarded([&] {
    TORCH_CHECK(count >= 1 && count <= 3, "one to three linear maps, not ", count);
    auto weight = [&](size_t i) { return i < count ? optional(weights[i]) : std::nullopt; };
    *out = owned(Linears::apply(*x, *weights[0], weight(1), weight(2), optional(copy)));
  });
}

// 1 where the weights lie behind each other in memory, else 0; -1 on failure.
int dlm_lie_joined(const at::Tensor* const* weights, size_t count) {
  int found = 0;
  return guarded([&] {
           TORCH_CHECK(count > 0, "no matrices");
           found = joined(list(weights, count)).defined();
         }) ? -1 : found;
}

int dlm_attention(const at::Tensor* q, const at::Tensor* k, const at::Tensor* v, const at::Tensor* pieces, at::Tensor** out) {
  return guarded([&] { *out = owned(Attention::apply(*q, *k, *v, optional(pieces))); });
}

}  // extern "C"
