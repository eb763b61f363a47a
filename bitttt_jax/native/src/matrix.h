// Products and transposes of small row-major matrices, float32.

#pragma once

#include "vector.h"

namespace bitttt {
namespace {

// Of a tile, such that its sums stay in registers.
constexpr int kVectors = LANES == 16 ? 4 : 2, kRows = 4;

// A matrix whose element (i, j) is data[i * row + j * column].
struct Matrix {
  const float* data;
  int64_t row, column;
};

inline Matrix transposed(Matrix a) { return {a.data, a.column, a.row}; }

enum class Update { kSet, kAdd, kSubtract };

template <int R, int V>
inline void tile(int64_t depth, Matrix a, const float* b, int64_t ldb, float* c, int64_t ldc,
                 Update update) {
  Vector sums[R][V] = {};
  for (int64_t p = 0; p < depth; ++p) {
    Vector row[V];
    for (int v = 0; v < V; ++v) row[v] = load(b + p * ldb + v * LANES);
    for (int r = 0; r < R; ++r) {
      const Vector x = splat(a.data[r * a.row + p * a.column]);
      for (int v = 0; v < V; ++v) sums[r][v] += x * row[v];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      float* p = c + r * ldc + v * LANES;
      if (update == Update::kSet) store(p, sums[r][v]);
      if (update == Update::kAdd) store(p, load(p) + sums[r][v]);
      if (update == Update::kSubtract) store(p, load(p) - sums[r][v]);
    }
  }
}

template <int V>
inline void columns(int64_t rows, int64_t depth, Matrix a, const float* b, int64_t ldb, float* c,
                    int64_t ldc, Update update) {
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) {
    tile<kRows, V>(depth, {a.data + r * a.row, a.row, a.column}, b, ldb, c + r * ldc, ldc, update);
  }
  for (; r < rows; ++r) {
    tile<1, V>(depth, {a.data + r * a.row, a.row, a.column}, b, ldb, c + r * ldc, ldc, update);
  }
}

// c (+-)= a b, of [rows, depth] and [depth, width]; the width is a multiple of 16.
inline void multiply(int64_t rows, int64_t depth, int64_t width, Matrix a, const float* b,
                     int64_t ldb, float* c, int64_t ldc, Update update) {
  int64_t v = 0;
  for (; v + kVectors * LANES <= width; v += kVectors * LANES) {
    columns<kVectors>(rows, depth, a, b + v, ldb, c + v, ldc, update);
  }
  for (; v < width; v += LANES) columns<1>(rows, depth, a, b + v, ldb, c + v, ldc, update);
}

// to[j, i] = from[i, j] of [rows, columns]; the number of columns is a multiple of 4, and what is
// missing of a multiple of 4 rows is taken as zeros.
inline void transpose(int64_t rows, int64_t columns, const float* from, int64_t ldf, float* to,
                      int64_t ldt) {
  for (int64_t i = 0; i < rows; i += 4) {
    for (int64_t j = 0; j < columns; j += 4) {
      Quad x[4] = {};
      for (int64_t r = 0; r < 4 && i + r < rows; ++r) {
        x[r] = *reinterpret_cast<const UnalignedQuad*>(from + (i + r) * ldf + j);
      }
      const Quad a = __builtin_shufflevector(x[0], x[1], 0, 4, 1, 5);
      const Quad b = __builtin_shufflevector(x[2], x[3], 0, 4, 1, 5);
      const Quad c = __builtin_shufflevector(x[0], x[1], 2, 6, 3, 7);
      const Quad d = __builtin_shufflevector(x[2], x[3], 2, 6, 3, 7);
      const Quad y[4] = {
          __builtin_shufflevector(a, b, 0, 1, 4, 5), __builtin_shufflevector(a, b, 2, 3, 6, 7),
          __builtin_shufflevector(c, d, 0, 1, 4, 5), __builtin_shufflevector(c, d, 2, 3, 6, 7)};
      for (int r = 0; r < 4; ++r) {
        *reinterpret_cast<UnalignedQuad*>(to + (j + r) * ldt + i) = y[r];
      }
    }
  }
}

inline void copy(int64_t n, const float* from, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

inline void fill(int64_t n, float value, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = value;
}

}  // namespace
}  // namespace bitttt
