#include "product.h"

#include "half.h"
#include "vector.h"

namespace bitttt {
namespace {

constexpr int64_t kTogether = 4;  // outputs whose rows of w are gone through side by side
constexpr int64_t kVectors = 8;   // of sums in registers
constexpr int64_t kAhead = 2048;  // values of w that are fetched before their use
constexpr int64_t kRowsAhead = 8;
constexpr int64_t kLine = 32;  // values

// A row of x times some rows of w.
template <int kCount>
inline void dot_rows(const Product& p, const float* x, const uint16_t* w, float* y) {
  Vector sums[kCount] = {};
  int64_t k = 0;
  for (; k + kLine <= p.width; k += kLine) {
    for (int r = 0; r < kCount; ++r) {
      const uint16_t* here = w + r * p.width + k;
      __builtin_prefetch(here + kAhead, 0, 3);
      for (int64_t i = 0; i < kLine; i += LANES) sums[r] += load(x + k + i) * load(here + i);
    }
  }
  for (int r = 0; r < kCount; ++r) {
    float total = sum(sums[r]);
    for (int64_t i = k; i < p.width; ++i) total += x[i] * widen(w[r * p.width + i]);
    y[r] = total;
  }
}

void by_rows(const Product& p) {
  int64_t n = p.first;
  const auto all = [&](auto dot, int64_t count) {
    for (; n + count <= p.last; n += count) {
      for (int64_t m = 0; m < p.rows; ++m) {
        dot(p, p.x + m * p.width, p.w + n * p.width, p.y + m * p.outputs + n);
      }
    }
  };
  all(dot_rows<kTogether>, kTogether);
  all(dot_rows<1>, 1);
}

// A row of x times some vectors of columns.
template <int kCount>
inline void sum_columns(const Product& p, const float* x, int64_t n, float* y) {
  Vector sums[kCount] = {};
  for (int64_t k = 0; k < p.width; ++k) {
    const uint16_t* w = p.w + k * p.outputs + n;
    for (int64_t i = 0; i < kCount * LANES; i += kLine) {
      __builtin_prefetch(w + kRowsAhead * p.outputs + i, 0, 3);
    }
    const Vector value = splat(x[k]);
    for (int i = 0; i < kCount; ++i) sums[i] += value * load(w + i * LANES);
  }
  for (int i = 0; i < kCount; ++i) store(y + i * LANES, sums[i]);
}

void by_columns(const Product& p) {
  for (int64_t m = 0; m < p.rows; ++m) {
    const float* x = p.x + m * p.width;
    float* y = p.y + m * p.outputs;
    int64_t n = p.first;
    for (; n + kVectors * LANES <= p.last; n += kVectors * LANES) {
      sum_columns<kVectors>(p, x, n, y + n);
    }
    for (; n + LANES <= p.last; n += LANES) sum_columns<1>(p, x, n, y + n);
    for (; n < p.last; ++n) {
      float total = 0;
      for (int64_t k = 0; k < p.width; ++k) total += x[k] * widen(p.w[k * p.outputs + n]);
      y[n] = total;
    }
  }
}

}  // namespace

extern const ProductTable TABLE(product) = {by_rows, by_columns};

}  // namespace bitttt
