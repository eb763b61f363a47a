// Attention of a token to a cache: ops.attention.cached_attention.

#pragma once

#include <cstdint>

namespace bitttt {

constexpr int64_t kMostWidth = 256, kMostHeads = 128, kMostParts = 8;

// All heads over some slots; T is float or uint16_t, which stands for bfloat16. A slot has a key
// and a value for every group of heads, in type C: T, or int8_t times a scale for each of them.
template <typename T, typename C>
struct Attention {
  int64_t groups, queries, width, slots;  // queries: heads of a group
  const T* query;                         // [groups, queries, width]
  const C *key, *value;                   // [slots, groups, width]
  const float *key_scale, *value_scale;   // [slots, groups] where C is int8_t
  const int32_t* key_position;            // negative for an empty slot
  int32_t query_position, window;
  // Of each head: the largest score, the sum of exp(score - largest), and of the values times that.
  float *most, *total, *sum;  // [heads], [heads] and [heads, width]
};

struct AttentionTable {
  void (*attend)(const Attention<float, float>&);
  void (*attend_bfloat16)(const Attention<uint16_t, uint16_t>&);
  void (*attend_int8)(const Attention<float, int8_t>&);
  void (*attend_bfloat16_int8)(const Attention<uint16_t, int8_t>&);
  // Puts a token's parts together, each of them `most`, `total` and `sum` one after the other, to
  // [heads, width].
  void (*combine)(const float* results, int64_t parts, int64_t heads, int64_t width, float* output);
  void (*combine_bfloat16)(const float* results, int64_t parts, int64_t heads, int64_t width,
                           uint16_t* output);
};

extern const AttentionTable attention_avx512, attention_avx2, attention_neon, attention_baseline;

}  // namespace bitttt
