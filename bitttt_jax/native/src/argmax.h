// The largest of many values: ops.argmax.argmax.

#pragma once

#include <cstdint>
#include <cstring>

#include "inline.h"

namespace bitttt {

// An integer in the order of floats; that of a NaN without a sign is above all others.
static ALWAYS_INLINE int32_t ordered(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

struct ArgmaxTable {
  // The largest of `count` values, as such an integer.
  int32_t (*largest)(const float* x, int64_t count);
};

extern const ArgmaxTable argmax_avx512, argmax_avx2, argmax_neon, argmax_baseline;

}  // namespace bitttt
