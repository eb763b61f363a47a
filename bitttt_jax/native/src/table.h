// Products of int8 activations and a table of int8 rows, each with a scale: ops/tables.py.

#pragma once

#include <cstdint>

#include "inline.h"

namespace bitttt {

constexpr int64_t kTableWidth = 64;  // the tables' widths are multiples of it

// Rows of activations, as the instruction set wants them.
struct TableInput {
  int64_t rows, width;
  int8_t* codes;  // [rows, width]
  float* scale;
  int8_t* arranged = nullptr;  // as `arrange` puts them

  ALWAYS_INLINE TableInput(int64_t rows, int64_t width, uint8_t* workspace)
      : rows(rows), width(width) {
    codes = reinterpret_cast<int8_t*>(workspace);
    scale = reinterpret_cast<float*>(codes + rows * width);
  }
  ALWAYS_INLINE int64_t workspace_bytes() const { return rows * (width + 4); }
};

// Entries [first, last) of a table; y is [rows, stride].
struct TableRows {
  const int8_t* codes;
  const float* scale;
  int64_t first, last;
  float* y;
  int64_t stride;
};

struct TableTable {
  // Fills row m of the input from `width` values.
  void (*quantize)(const float*, const TableInput&, int64_t m);
  void (*quantize_bfloat16)(const uint16_t*, const TableInput&, int64_t m);
  void (*multiply)(const TableInput&, const TableRows&);
  // From kLeastArranged to kMostArranged rows: first puts the activations in the order that the
  // second wants; null where that doesn't pay.
  void (*arrange)(const TableInput&);
  void (*multiply_arranged)(const TableInput&, const TableRows&);
};

constexpr int64_t kLeastArranged = 3, kMostArranged = 15;
constexpr int64_t kArrangedGroup = 32;  // entries that multiply_arranged takes together
static inline int64_t arranged_bytes(const TableInput& in) { return (in.rows + 1) * in.width; }

void arrange_table_amx(const TableInput&);
void multiply_table_amx(const TableInput&, const TableRows&);

extern const TableTable table_avx512vnni, table_avxvnni, table_avx2, table_neon, table_baseline;

}  // namespace bitttt
