// Root-mean-square normalisation of a few rows: ops.norm.rms_norm.

#pragma once

#include <cstdint>

namespace bitttt {

struct NormTable {
  // A row of `width` values, a multiple of 16; uint16_t stands for bfloat16.
  void (*rms_norm)(const float* x, const float* scale, int64_t width, float eps, float* y);
  void (*rms_norm_bfloat16)(const uint16_t* x, const float* scale, int64_t width, float eps,
                            uint16_t* y);
};

extern const NormTable norm_avx512, norm_avx2, norm_neon, norm_baseline;

}  // namespace bitttt
