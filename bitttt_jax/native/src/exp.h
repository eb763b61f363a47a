// The exponential of a vector.

#pragma once

#include "vector.h"

namespace bitttt {
namespace {

typedef int32_t Integer __attribute__((vector_size(4 * LANES)));

// exp(x) for x <= 0, to about two units in the last place; what is below e^-80 is flushed to that.
inline Vector exp_of_negative(Vector x) {
  const Vector least = splat(-80.0f);
  x = x > least ? x : least;
  const Vector shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vector count = x * splat(1.44269504f) + shift;
  const Vector n = count - shift;
  const Vector r = (x - n * splat(0.693359375f)) + n * splat(2.12194440e-4f);
  Vector y = splat(1.0f / 5040);
  y = y * r + splat(1.0f / 720);
  y = y * r + splat(1.0f / 120);
  y = y * r + splat(1.0f / 24);
  y = y * r + splat(1.0f / 6);
  y = y * r + splat(0.5f);
  y = y * r + splat(1.0f);
  y = y * r + splat(1.0f);
  const Integer exponent = (reinterpret_cast<Integer>(count) - 0x4b400000) << 23;
  return reinterpret_cast<Vector>(reinterpret_cast<Integer>(y) + exponent);
}

}  // namespace
}  // namespace bitttt
