// Short causal depthwise convolution, as ops/convolution.py defines it: some channels of one row.

#pragma once

#include <cstdint>

namespace bitttt {

constexpr int64_t kMostTaps = 8;
constexpr int64_t kChannels = 64;  // that a call computes at most

// Pointers to the first of the channels; consecutive tokens and taps lie D floats apart. T is
// float or uint16_t, which stands for bfloat16.
template <typename T>
struct Convolution {
  int64_t length, D, taps, channels;
  const T* x;
  const float* kernel;
  const float* bias;
  const int32_t* position;  // of the row's tokens in their documents
  T* y;
};

template <typename T>
struct ConvolutionBackward {
  Convolution<T> forward;  // without y and bias
  const T* grad_y;
  T* grad_x;
  float* grad_kernel;
  float* grad_bias;
};

struct ConvolutionTable {
  void (*forward)(const Convolution<float>&);
  void (*backward)(const ConvolutionBackward<float>&);
  void (*forward_bfloat16)(const Convolution<uint16_t>&);
  void (*backward_bfloat16)(const ConvolutionBackward<uint16_t>&);
};

extern const ConvolutionTable convolution_avx512, convolution_avx2, convolution_neon,
    convolution_baseline;

}  // namespace bitttt
