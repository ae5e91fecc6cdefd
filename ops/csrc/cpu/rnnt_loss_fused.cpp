// CPU threads over the rows of a tile; the arithmetic is in rnnt_loss_fused.h and activation.h.
#include "../rnnt_loss_fused.h"

#include <string>

#include "../activation.h"
#include "../check.h"
#include "../parallel.h"

namespace lattica {
namespace {

template <typename F>
void with_activation(const std::string& name, F f) {
  if (name == "tanh") f(Tanh{});
  else if (name == "swoosh_l") f(SwooshL{});
  else if (name == "swoosh_r") f(SwooshR{});
  else if (name == "identity") f(Identity{});
  else STD_TORCH_CHECK(false, "activation must be tanh, swoosh_l, swoosh_r or identity, got ", name);
}

template <typename T>
const T* data(const Tensor& x) { return static_cast<const T*>(x.const_data_ptr()); }

template <typename T>
T* mutable_data(Tensor& x) { return static_cast<T*>(x.mutable_data_ptr()); }

void check_matrix(const Tensor& x, const char* name, const Tensor& like, int64_t rows, int64_t columns) {
  STD_TORCH_CHECK(x.dim() == 2 && x.is_contiguous() && x.scalar_type() == like.scalar_type() && x.size(0) == rows &&
                      x.size(1) == columns,
                  name, " must be a contiguous matrix of ", rows, " x ", columns, " of the other arguments' dtype");
}

void check_vector(const Tensor& x, const char* name, ScalarType dtype, int64_t n) {
  STD_TORCH_CHECK(x.dim() == 1 && x.is_contiguous() && x.scalar_type() == dtype && x.size(0) == n, name,
                  " must be a contiguous vector of ", n, " of the right dtype");
}

void check_indexes(const Tensor& x, const char* name, int64_t n, int64_t end) {
  check_vector(x, name, ScalarType::Long, n);
  const int64_t* index = data<int64_t>(x);
  for (int64_t i = 0; i < n; ++i)
    STD_TORCH_CHECK(index[i] >= 0 && index[i] < end, name, "[", i, "] = ", index[i], " is outside [0, ", end, ")");
}

void check_joiner_inputs(const Tensor& am, const Tensor& lm, const Tensor& am_rows, const Tensor& lm_rows,
                         int64_t rows) {
  STD_TORCH_CHECK(am.dim() == 2 && lm.dim() == 2, "am and lm must be matrices");
  check_matrix(am, "am", am, am.size(0), am.size(1));
  check_matrix(lm, "lm", am, lm.size(0), am.size(1));
  check_indexes(am_rows, "am_rows", rows, am.size(0));
  check_indexes(lm_rows, "lm_rows", rows, lm.size(0));
}

void joiner_hidden(const Tensor& am, const Tensor& lm, const Tensor& am_rows, const Tensor& lm_rows,
                   std::string activation, Tensor hidden) {
  const int64_t rows = am_rows.size(0), D = am.size(1);
  check_joiner_inputs(am, lm, am_rows, lm_rows, rows);
  check_matrix(hidden, "hidden", am, rows, D);
  const int64_t *a = data<int64_t>(am_rows), *l = data<int64_t>(lm_rows);
  with_float_type(am, [&](auto zero) {
    using T = decltype(zero);
    const T *am_data = data<T>(am), *lm_data = data<T>(lm);
    T* hidden_data = mutable_data<T>(hidden);
    with_activation(activation, [&](auto f) {
      CpuBackend().for_each(rows, [&](int64_t i) {
        joiner_hidden_row<decltype(f)>(am_data + a[i] * D, lm_data + l[i] * D, hidden_data + i * D, D);
      });
    });
  });
}

void joiner_hidden_grad(const Tensor& am, const Tensor& lm, const Tensor& am_rows, const Tensor& lm_rows,
                        std::string activation, const Tensor& hidden, const Tensor& hidden_grad, Tensor am_grad,
                        Tensor lm_grad) {
  const int64_t rows = am_rows.size(0), D = am.size(1);
  check_joiner_inputs(am, lm, am_rows, lm_rows, rows);
  check_matrix(hidden, "hidden", am, rows, D);
  check_matrix(hidden_grad, "hidden_grad", am, rows, D);
  check_matrix(am_grad, "am_grad", am, am.size(0), D);
  check_matrix(lm_grad, "lm_grad", am, lm.size(0), D);
  const int64_t *a = data<int64_t>(am_rows), *l = data<int64_t>(lm_rows);
  // Rows share rows of am and lm, so threads take columns: no two write to one place, and the sums have one order.
  constexpr int64_t kLine = 16;
  const int64_t threads = std::max<int64_t>(1, torch::stable::get_num_threads());
  const int64_t width = ((D + threads - 1) / threads + kLine - 1) / kLine * kLine;
  const int64_t parts = D == 0 ? 0 : (D + width - 1) / width;
  with_float_type(am, [&](auto zero) {
    using T = decltype(zero);
    const T *am_data = data<T>(am), *lm_data = data<T>(lm);
    const T *hidden_data = data<T>(hidden), *grad_data = data<T>(hidden_grad);
    T *am_grad_data = mutable_data<T>(am_grad), *lm_grad_data = mutable_data<T>(lm_grad);
    with_activation(activation, [&](auto f) {
      CpuBackend().for_each(parts, [&](int64_t part) {
        const int64_t d = part * width, n = std::min(width, D - d);
        for (int64_t i = 0; i < rows; ++i)
          joiner_hidden_grad_row<decltype(f)>(am_data + a[i] * D + d, lm_data + l[i] * D + d,
                                              hidden_data + i * D + d, grad_data + i * D + d,
                                              am_grad_data + a[i] * D + d, lm_grad_data + l[i] * D + d, n);
      });
    });
  });
}

std::tuple<Tensor, Tensor, Tensor> joiner_log_probs(const Tensor& logits, const Tensor& symbols, int64_t blank,
                                                    bool hat) {
  STD_TORCH_CHECK(logits.dim() == 2 && logits.is_contiguous(), "logits must be a contiguous matrix");
  const int64_t rows = logits.size(0), V = logits.size(1);
  STD_TORCH_CHECK(blank >= 0 && blank < V, "blank = ", blank, " is outside [0, ", V, ")");
  check_indexes(symbols, "symbols", rows, V);
  Tensor normalizer = empty_like_shape(logits, {rows}), symbol = empty_like_shape(logits, {rows});
  Tensor blank_out = empty_like_shape(logits, {rows});
  const int64_t* y = data<int64_t>(symbols);
  with_float_type(logits, [&](auto zero) {
    using T = decltype(zero);
    const T* x = data<T>(logits);
    T *z = mutable_data<T>(normalizer), *s = mutable_data<T>(symbol);
    T* b = mutable_data<T>(blank_out);
    CpuBackend().for_each(rows, [&](int64_t i) {
      const T* row = x + i * V;
      z[i] = normalizer_of(row, V, blank, hat);
      s[i] = row[y[i]] - z[i] + (hat ? log_sigmoid(-row[blank]) : T(0));
      b[i] = hat ? log_sigmoid(row[blank]) : row[blank] - z[i];
    });
  });
  return {symbol, blank_out, normalizer};
}

void joiner_logits_grad(const Tensor& logits, std::optional<Tensor> logits_rows, const Tensor& normalizer,
                        const Tensor& symbols, int64_t blank, bool hat, const Tensor& symbol_grad,
                        const Tensor& blank_grad, Tensor grad) {
  STD_TORCH_CHECK(logits.dim() == 2, "logits must be a matrix");
  const int64_t rows = symbols.size(0), V = logits.size(1);
  check_matrix(logits, "logits", logits, logits_rows ? logits.size(0) : rows, V);
  check_matrix(grad, "grad", logits, rows, V);
  STD_TORCH_CHECK(blank >= 0 && blank < V, "blank = ", blank, " is outside [0, ", V, ")");
  check_indexes(symbols, "symbols", rows, V);
  if (logits_rows) check_indexes(*logits_rows, "logits_rows", rows, logits.size(0));
  check_vector(normalizer, "normalizer", logits.scalar_type(), rows);
  check_vector(symbol_grad, "symbol_grad", logits.scalar_type(), rows);
  check_vector(blank_grad, "blank_grad", logits.scalar_type(), rows);
  const int64_t *y = data<int64_t>(symbols), *source = logits_rows ? data<int64_t>(*logits_rows) : nullptr;
  with_float_type(logits, [&](auto zero) {
    using T = decltype(zero);
    const T *x = data<T>(logits), *z = data<T>(normalizer);
    const T *s = data<T>(symbol_grad), *b = data<T>(blank_grad);
    T* g = mutable_data<T>(grad);
    CpuBackend().for_each(rows, [&](int64_t i) {
      logits_grad_row(x + (source ? source[i] : i) * V, z[i], y[i], blank, s[i], b[i], hat, g + i * V, V);
    });
  });
}

STABLE_TORCH_LIBRARY_IMPL(lattica, CPU, m) {
  m.impl("joiner_hidden", TORCH_BOX(&joiner_hidden));
  m.impl("joiner_hidden_grad", TORCH_BOX(&joiner_hidden_grad));
  m.impl("joiner_log_probs", TORCH_BOX(&joiner_log_probs));
  m.impl("joiner_logits_grad", TORCH_BOX(&joiner_logits_grad));
}

}  // namespace
}  // namespace lattica
