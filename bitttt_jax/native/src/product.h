// Products of few rows with a matrix of bfloat16: ops/product.py.

#pragma once

#include <cstdint>

namespace bitttt {

// x is [rows, width], y is [rows, outputs], of which [first, last) are computed. By columns these
// are the sums over the inputs [first_input, last_input) only.
struct Product {
  int64_t rows, width, outputs, first, last, first_input, last_input;
  const float* x;
  const uint16_t* w;
  float* y;
};

struct ProductTable {
  void (*by_rows)(const Product&);     // w is [outputs, width]
  void (*by_columns)(const Product&);  // w is [width, outputs]
};

extern const ProductTable product_avx512, product_avx2, product_neon, product_baseline;

}  // namespace bitttt
