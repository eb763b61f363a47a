// The tanh GELU of a vector, with its first two derivatives.

#pragma once

#include "exp.h"

namespace bitttt {
namespace {

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
