// TTT-Linear in the dual form, one head of one sequence: what the kernels compute.
//
// Suffixes as in ttt/dual.py: T tokens, N mini-batches of b tokens, K features. Weights are packed:
// `[K + 1, K]`, the bias as last row. Everything is float32 and row-major; consecutive tokens of
// one head lie `stride` floats apart.

#pragma once

#include <cstdint>

namespace bitttt {

struct Shape {
  int64_t T, b, K;
  int64_t stride;       // floats from a token's features to the next token's
  int64_t rate_stride;  // floats from a token's learning rate to the next token's
  int64_t group;        // mini-batches between two saved weights
};

struct Tokens {
  const float* query;
  const float* key;
  const float* value;
  const float* rate;           // one a token, 0 for padding
  const float* scale;          // token scales, [b]
  const float* norm_scale;     // [K]
  const float* norm_bias;      // [K]
  const float* fresh;          // weights where a document starts
  const bool* restart;         // whether a mini-batch starts a document, [N]
};

struct Forward {
  const float* initial;  // weights before the first mini-batch
  float* z;              // inner outputs for the queries
  float* saved;          // weights before every group of mini-batches
  float* final;          // weights after the last one
};

struct Backward {
  const float* saved;
  const float* grad_z;
  const float* grad_final;
  float* query;  // gradients from here on, written over
  float* key;
  float* value;
  float* rate;
  float* scale;
  float* norm_scale;
  float* norm_bias;
  float* initial;
  float* fresh;
};

// Floats of working memory that either pass needs.
inline int64_t scratch_size(const Shape& s) {
  const int64_t columns = (s.b + 15) / 16 * 16;
  const int64_t weights = (s.K + 1) * s.K;
  return (s.group + 4) * weights + 8 * s.b * s.K + 2 * s.K * columns + 4 * s.b * columns + 8 * s.b;
}

struct TttLinear {
  void (*forward)(const Shape&, const Tokens&, const Forward&, float* scratch);
  void (*backward)(const Shape&, const Tokens&, const Backward&, float* scratch);
};

extern const TttLinear ttt_linear_avx512, ttt_linear_avx2, ttt_linear_baseline;

}  // namespace bitttt
