// The tanh GELU of a vector, with its first two derivatives.

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

inline Vector tanh_of(Vector x) {
  const Vector zero = {};
  const Vector size = x > zero ? x : -x;
  const Vector e = exp_of_negative(splat(-2.0f) * size);
  const Vector y = (splat(1.0f) - e) / (splat(1.0f) + e);
  return x > zero ? y : -y;
}

struct Gelu {
  Vector value, slope, bend;
};

inline Gelu gelu(Vector x) {
  const Vector half = splat(0.5f), one = splat(1.0f);
  const Vector a = splat(0.79788456f), b = splat(0.79788456f * 0.044715f);
  const Vector t = tanh_of(x * (a + b * x * x));
  const Vector inner = a + splat(3.0f) * b * x * x;  // derivative of tanh's argument
  const Vector rise = one - t * t;
  const Vector bend = splat(6.0f) * b * x - splat(2.0f) * t * inner * inner;
  return {half * x * (one + t), half * (one + t) + half * x * rise * inner,
          rise * (inner + half * x * bend)};
}

}  // namespace
}  // namespace bitttt
