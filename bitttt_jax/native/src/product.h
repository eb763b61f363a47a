// Products of few rows with a matrix of bfloat16 (ops/product.py), or of int8 rows with a scale
// each (ops/tables.py).

#pragma once

#include <cstdint>

namespace bitttt {

// x is [rows, width], y is [rows, outputs], of which [first, last) are computed. By columns these
// are the sums over the inputs [first_input, last_input) only. W is uint16_t, which stands for
// bfloat16, or int8_t.
template <typename W>
struct Product {
  int64_t rows, width, outputs, first, last, first_input, last_input;
  const float* x;
  const W* w;
  float* y;
  const float* scale;  // of each output, for int8_t
};

struct ProductTable {
  void (*by_rows)(const Product<uint16_t>&);     // w is [outputs, width]
  void (*by_columns)(const Product<uint16_t>&);  // w is [width, outputs]
  void (*by_rows_int8)(const Product<int8_t>&);
};

extern const ProductTable product_avx512, product_avx2, product_neon, product_baseline;

}  // namespace bitttt
