// Products of int8 activations and ternary weights packed at 2 bits, as ternary/packing.py lays
// them: rows of blocks of 128 codes (a weight plus one), byte j of a block's 32 holding the codes
// 96 + j, 64 + j, 32 + j and j, from its lowest bits up.
//
// All but the rounding of the last float product is exact: sums of integers in 32 bits.

#pragma once

#include <cstdint>

#include "inline.h"

namespace bitttt {

constexpr int64_t kBlock = 128, kBlockBytes = 32;
// A load of 64 bytes of codes holds, for each of the 4 fields of its bytes, 64 codes: a step.
constexpr int64_t kStep = 64;
constexpr int64_t kTileRows = 16;

// Activations as int8, in the order in which the codes meet them: tiles of up to 16 rows, in each
// tile step after step, in each step its rows, of each row the 64 values that meet a field.
struct Activations {
  int64_t rows, width, steps;
  int8_t* codes;
  float* scale;  // of each row
  int32_t* sum;  // of each row's codes

  ALWAYS_INLINE Activations(int64_t rows, int64_t width, uint8_t* workspace)
      : rows(rows), width(width), steps((width + 2 * kBlock - 1) / (2 * kBlock) * 4) {
    codes = reinterpret_cast<int8_t*>(workspace);
    scale = reinterpret_cast<float*>(codes + num_tiles() * steps * step_bytes());
    sum = reinterpret_cast<int32_t*>(scale + rows);
  }
  ALWAYS_INLINE int64_t workspace_bytes() const {
    return num_tiles() * steps * step_bytes() + 8 * rows;
  }
  ALWAYS_INLINE int64_t num_tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  ALWAYS_INLINE int64_t tile_rows() const { return rows < kTileRows ? rows : kTileRows; }
  ALWAYS_INLINE int64_t step_bytes() const { return tile_rows() * kStep; }
  ALWAYS_INLINE int8_t* row(int64_t m) const {
    return codes + m / kTileRows * steps * step_bytes() + m % kTileRows * kStep;
  }
};

// Columns of a product: rows [first, last) of one packed weight.
struct Columns {
  const uint8_t* codes;
  int64_t row_bytes, first, last;
  float scale;
};

// Where a product goes, row by row; T is float or uint16_t, which stands for bfloat16.
template <typename T>
struct Output {
  T* y;
  int64_t stride;
};

// Sizes of a thread's working memory for multiply_many, whose columns are at most kManyColumns.
constexpr int64_t kManyColumns = 32;
static inline int64_t many_scratch_bytes(int64_t steps) {
  return (steps + 9) * kManyColumns * kStep + 4 * 1024 + 64;
}

struct PackedTable {
  // Fills row m of the activations from `width` values.
  void (*quantize)(const float*, const Activations&, int64_t m);
  void (*quantize_bfloat16)(const uint16_t*, const Activations&, int64_t m);
  void (*quantize_int8)(const int8_t*, const Activations&, int64_t m);
  // For few rows: reads the codes once, from memory.
  void (*multiply_few)(const Activations&, const Columns&, Output<float>);
  void (*multiply_few_bfloat16)(const Activations&, const Columns&, Output<uint16_t>);
  // From so many rows on: unpacks the codes first, of activations that `arrange` has put in order
  // where there is one.
  int64_t many_rows;
  void (*arrange)(const Activations&);
  void (*multiply_many)(const Activations&, const Columns&, Output<float>, uint8_t* scratch);
  void (*multiply_many_bfloat16)(const Activations&, const Columns&, Output<uint16_t>,
                                 uint8_t* scratch);
};

extern const PackedTable packed_avx512vnni, packed_avxvnni, packed_avx2, packed_neon,
    packed_baseline;

// From so many rows on by the matrix registers of AMX; the system may not let a process use them.
constexpr int64_t kManyRowsOfAmx = 3;
bool may_use_amx();
void arrange_amx(const Activations&);
void multiply_many_amx(const Activations&, const Columns&, Output<float>, uint8_t* scratch);
void multiply_many_amx(const Activations&, const Columns&, Output<uint16_t>, uint8_t* scratch);

}  // namespace bitttt
