// Products of int8 activations and a table of 4-bit codes with a scale for every 32 of a row:
// ops/tables.py says how they lie.

#pragma once

#include <cstdint>

#include "inline.h"

namespace bitttt {

constexpr int64_t kGroupValues = 32, kBlockGroups = 8;
constexpr int64_t kBlockValues = kGroupValues * kBlockGroups, kBlockCodes = kBlockValues / 2;
constexpr int64_t kBlockSums = 16;  // sums of a block's activations: at most so many lanes

// Rows of activations, in the order in which the codes meet them.
struct GroupedInput {
  int64_t rows, width, blocks;
  float* scale;   // [rows]
  int32_t* sums;  // [rows, blocks, kBlockSums]: of the activations that a lane multiplies
  int8_t* codes;  // [rows, blocks * kBlockValues]

  ALWAYS_INLINE GroupedInput(int64_t rows, int64_t width, uint8_t* workspace)
      : rows(rows), width(width), blocks((width + kBlockValues - 1) / kBlockValues) {
    sums = reinterpret_cast<int32_t*>(workspace);
    codes = reinterpret_cast<int8_t*>(sums + rows * blocks * kBlockSums);
    scale = reinterpret_cast<float*>(codes + rows * blocks * kBlockValues);
  }
  // Row m alone.
  GroupedInput row(int64_t m) const {
    GroupedInput one = *this;
    one.rows = 1;
    one.scale += m;
    one.sums += m * blocks * kBlockSums;
    one.codes += m * blocks * kBlockValues;
    return one;
  }
  ALWAYS_INLINE int64_t workspace_bytes() const {
    return rows * (blocks * (kBlockValues + 4 * kBlockSums) + 4);
  }
};

// Entries [first, last) of a table; y is [rows, stride]. Scales are bfloat16.
struct GroupedRows {
  const uint8_t* codes;   // [entries, blocks * kBlockCodes]
  const uint16_t* scale;  // [entries, blocks * kBlockGroups]
  int64_t first, last;
  float* y;
  int64_t stride;
};

struct GroupedTable {
  // Fills row m of the input from `width` values.
  void (*quantize)(const float*, const GroupedInput&, int64_t m);
  void (*quantize_bfloat16)(const uint16_t*, const GroupedInput&, int64_t m);
  void (*multiply)(const GroupedInput&, const GroupedRows&);
};

extern const GroupedTable grouped_avx512vnni, grouped_avxvnni, grouped_avx2, grouped_neon,
    grouped_baseline;

}  // namespace bitttt
