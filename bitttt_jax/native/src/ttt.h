// TTT in the dual form, one head of one sequence: what the kernels compute.
//
// Suffixes as in ttt/dual.py: T tokens, N mini-batches of b tokens, K features, F hidden features
// of the inner MLP. Everything is float32 and row-major; consecutive tokens of one head lie
// `stride` floats apart. The weights of a head are one array, each matrix with its bias as last
// row:
// `[K + 1, K]` of the linear model, `[K + 1, F]` and then `[F + 1, K]` of the MLP.

#pragma once

#include <cstdint>

namespace bitttt {

struct Shape {
  int64_t T, b, K;
  int64_t F;            // 0 for the linear model
  int64_t stride;       // floats from a token's features to the next token's
  int64_t rate_stride;  // floats from a token's learning rate to the next token's
  int64_t group;        // mini-batches between two saved weights
};

// Static, since each instruction set needs its own.
static inline int64_t weights_of(const Shape& s) {
  return s.F ? (s.K + 1) * s.F + (s.F + 1) * s.K : (s.K + 1) * s.K;
}

// Of a [b, b] matrix, padded.
static inline int64_t columns_of(const Shape& s) { return (s.b + 15) / 16 * 16; }

// Floats of working memory that any of the passes needs.
static inline int64_t scratch_size(const Shape& s) {
  const int64_t widest = s.F > s.K ? s.F : s.K;
  return (s.group + 3) * weights_of(s) + 16 * s.b * (s.K + widest) + 4 * widest * columns_of(s) +
         6 * s.b * columns_of(s) + 8 * s.b;
}

struct Tokens {
  const float* query;
  const float* key;
  const float* value;
  const float* rate;        // one a token, 0 for padding
  const float* scale;       // token scales, [b]
  const float* norm_scale;  // [K]
  const float* norm_bias;   // [K]
  const float* fresh;       // weights where a document starts
  const bool* restart;      // whether a mini-batch starts a document, [N]
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

struct TttTable {
  void (*forward)(const Shape&, const Tokens&, const Forward&, float* scratch);
  void (*backward)(const Shape&, const Tokens&, const Backward&, float* scratch);
};

extern const TttTable ttt_linear_avx512, ttt_linear_avx2, ttt_linear_neon, ttt_linear_baseline;
extern const TttTable ttt_mlp_avx512, ttt_mlp_avx2, ttt_mlp_neon, ttt_mlp_baseline;

}  // namespace bitttt
