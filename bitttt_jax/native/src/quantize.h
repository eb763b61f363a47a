// Activations as int8 at the scale of a row's largest magnitude: ops.quantize.int8_codes.

#pragma once

#include <cstdint>
#include <cstring>

#include "half.h"

namespace bitttt {
namespace {

constexpr float kScaleFloor = 1e-5f;  // ops.quantize.SCALE_FLOOR
constexpr float kInt8Max = 127.0f;    // ops.quantize.INT8_MAX

// The largest magnitude, by way of integers: their maximum is compiled to vectors, and keeps NaN.
template <typename T>
float largest_magnitude(const T* x, int64_t width) {
  uint32_t most = 0;
  for (int64_t i = 0; i < width; ++i) {
    const float value = widen(x[i]);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits &= 0x7fffffff;
    most = bits > most ? bits : most;
  }
  float largest;
  std::memcpy(&largest, &most, sizeof largest);
  return largest < kScaleFloor ? kScaleFloor : largest;
}

template <typename T>
int32_t quantize_chunk(const T* x, int64_t count, float factor, int8_t* codes) {
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    codes[i] = static_cast<int8_t>(static_cast<int32_t>(__builtin_rintf(widen(x[i]) * factor)));
    sum += codes[i];
  }
  return sum;
}

}  // namespace
}  // namespace bitttt
