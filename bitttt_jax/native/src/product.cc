#include "product.h"

#include "half.h"
#include "vector.h"

namespace bitttt {
namespace {

constexpr int64_t kTogether = 4;  // outputs whose rows of w are gone through side by side
constexpr int64_t kInputs = 8;    // whose products are added up before they are written
constexpr int64_t kAhead = 4096;  // bytes of w that are fetched before their use
constexpr int64_t kLineBytes = 64;

// A row of x times some rows of w.
template <int kCount, typename W>
inline void dot_rows(const Product<W>& p, const float* x, const W* w, float* y) {
  constexpr int64_t kStep = kLineBytes / sizeof(W);
  Vector sums[kCount] = {};
  int64_t k = 0;
  for (; k + kStep <= p.width; k += kStep) {
    for (int r = 0; r < kCount; ++r) {
      const W* here = w + r * p.width + k;
      __builtin_prefetch(here + kAhead / sizeof(W), 0, 3);
      for (int64_t i = 0; i < kStep; i += LANES) sums[r] += load(x + k + i) * load(here + i);
    }
  }
  for (int r = 0; r < kCount; ++r) {
    float total = sum(sums[r]);
    for (int64_t i = k; i < p.width; ++i) total += x[i] * widen(w[r * p.width + i]);
    y[r] = total;
  }
}

template <typename W>
void by_rows(const Product<W>& p) {
  int64_t n = p.first;
  const auto all = [&](auto dot, int64_t count) {
    for (; n + count <= p.last; n += count) {
      for (int64_t m = 0; m < p.rows; ++m) {
        float* y = p.y + m * p.outputs + n;
        dot(p, p.x + m * p.width, p.w + n * p.width, y);
        for (int64_t r = 0; p.scale && r < count; ++r) y[r] *= p.scale[n + r];
      }
    }
  };
  all(dot_rows<kTogether, W>, kTogether);
  all(dot_rows<1, W>, 1);
}

// Adds the products with some rows of w to y, or begins with them.
template <int kCount>
inline void add_inputs(const Product<uint16_t>& p, int64_t k, bool begin) {
  const uint16_t* w = p.w + k * p.outputs;
  int64_t n = p.first;
  for (; n + LANES <= p.last; n += LANES) {
    Vector values[kCount];
    for (int r = 0; r < kCount; ++r) {
      const uint16_t* here = w + r * p.outputs + n;
      if (n % (kLineBytes / 2) == 0) __builtin_prefetch(here + kInputs * p.outputs, 0, 2);
      values[r] = load(here);
    }
    for (int64_t m = 0; m < p.rows; ++m) {
      const float* x = p.x + m * p.width + k;
      float* y = p.y + m * p.outputs + n;
      Vector total = begin ? Vector{} : load(y);
      for (int r = 0; r < kCount; ++r) total += splat(x[r]) * values[r];
      store(y, total);
    }
  }
  for (; n < p.last; ++n) {
    for (int64_t m = 0; m < p.rows; ++m) {
      const float* x = p.x + m * p.width + k;
      float& y = p.y[m * p.outputs + n];
      float total = begin ? 0 : y;
      for (int r = 0; r < kCount; ++r) total += x[r] * widen(w[r * p.outputs + n]);
      y = total;
    }
  }
}

// Goes through memory in its order: the sums, of which there are few, are what is written again.
void by_columns(const Product<uint16_t>& p) {
  int64_t k = p.first_input;
  for (; k + kInputs <= p.last_input; k += kInputs) add_inputs<kInputs>(p, k, k == p.first_input);
  for (; k < p.last_input; ++k) add_inputs<1>(p, k, k == p.first_input);
}

}  // namespace

extern const ProductTable TABLE(product) = {by_rows<uint16_t>, by_columns, by_rows<int8_t>};

}  // namespace bitttt
