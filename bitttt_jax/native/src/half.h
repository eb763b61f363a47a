// bfloat16 values, as uint16_t.

#pragma once

#include <cstdint>
#include <cstring>

namespace bitttt {
namespace {

inline float widen(float x) { return x; }
inline float widen(int8_t x) { return x; }
inline float widen(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Rounds to nearest, ties to even.
inline void narrow(float x, float* y) { *y = x; }
inline void narrow(float x, uint16_t* y) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const bool is_number = x == x;
  *y = is_number ? static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) : 0x7fc0;
}

}  // namespace
}  // namespace bitttt
