// What XLA calls for the convolutions: checks the shapes, and spreads the channels over the
// threads.

#include "kernels.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace bitttt {
namespace {

using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<Array>;
using AnyArray = ffi::AnyBuffer;
using AnyResult = ffi::Result<ffi::AnyBuffer>;
using Positions = ffi::Buffer<ffi::S32>;

// x is [B, T, D], the kernel [W, D], the position [B, T].
bool convolution_fits(const AnyArray& x, const Array& kernel) {
  const auto shape = x.dimensions();
  const auto taps = kernel.dimensions();
  return shape.size() == 3 && taps.size() == 2 && taps[0] <= kMostTaps && taps[1] == shape[2] &&
         shape[2] % 16 == 0;
}

// Calls work(row, first channel, number of channels) for all of them.
void for_channels(ffi::ThreadPool& pool, const AnyArray& x,
                  const std::function<void(int64_t, int64_t, int64_t)>& work) {
  const int64_t D = x.dimensions()[2], blocks = (D + kChannels - 1) / kChannels;
  run_all(pool, x.dimensions()[0] * blocks, [&](int64_t i) {
    const int64_t channel = i % blocks * kChannels;
    work(i / blocks, channel, std::min(kChannels, D - channel));
  });
}

template <typename T>
Convolution<T> convolution_of(int64_t row, int64_t channel, int64_t channels, const AnyArray& x,
                              const Array& kernel, const Positions& position) {
  const int64_t length = x.dimensions()[1], D = x.dimensions()[2];
  return {length,
          D,
          kernel.dimensions()[0],
          channels,
          static_cast<const T*>(x.untyped_data()) + row * length * D + channel,
          kernel.typed_data() + channel,
          nullptr,
          position.typed_data() + row * length,
          nullptr};
}

template <typename T>
void convolve(ffi::ThreadPool& pool, void (*compute)(const Convolution<T>&), const AnyArray& x,
              const Array& kernel, const Array& bias, const Positions& position, AnyResult& y) {
  for_channels(pool, x, [&](int64_t row, int64_t channel, int64_t channels) {
    Convolution<T> c = convolution_of<T>(row, channel, channels, x, kernel, position);
    c.bias = bias.typed_data() + channel;
    c.y = static_cast<T*>(y->untyped_data()) + row * c.length * c.D + channel;
    compute(c);
  });
}

template <typename T>
void convolve_backward(ffi::ThreadPool& pool, void (*compute)(const ConvolutionBackward<T>&),
                       const AnyArray& x, const Array& kernel, const Positions& position,
                       const AnyArray& grad_y, AnyResult& grad_x, Result& grad_kernel,
                       Result& grad_bias) {
  for_channels(pool, x, [&](int64_t row, int64_t channel, int64_t channels) {
    const Convolution<T> c = convolution_of<T>(row, channel, channels, x, kernel, position);
    const int64_t at = row * c.length * c.D + channel;
    compute({c, static_cast<const T*>(grad_y.untyped_data()) + at,
             static_cast<T*>(grad_x->untyped_data()) + at,
             grad_kernel->typed_data() + row * c.taps * c.D + channel,
             grad_bias->typed_data() + row * c.D + channel});
  });
}

ffi::Error convolution_forward(ffi::ThreadPool pool, AnyArray x, Array kernel, Array bias,
                               Positions position, AnyResult y) {
  if (!convolution_fits(x, kernel)) {
    return ffi::Error::InvalidArgument("convolution: shapes don't fit");
  }
  const ConvolutionTable& table = kernels().convolution;
  if (x.element_type() == ffi::F32) {
    convolve<float>(pool, table.forward, x, kernel, bias, position, y);
  } else if (x.element_type() == ffi::BF16) {
    convolve<uint16_t>(pool, table.forward_bfloat16, x, kernel, bias, position, y);
  } else {
    return ffi::Error::InvalidArgument("convolution: neither float32 nor bfloat16");
  }
  return ffi::Error::Success();
}

ffi::Error convolution_backward(ffi::ThreadPool pool, AnyArray x, Array kernel, Positions position,
                                AnyArray grad_y, AnyResult grad_x, Result grad_kernel,
                                Result grad_bias) {
  if (!convolution_fits(x, kernel)) {
    return ffi::Error::InvalidArgument("convolution: shapes don't fit");
  }
  const ConvolutionTable& table = kernels().convolution;
  if (x.element_type() == ffi::F32) {
    convolve_backward<float>(pool, table.backward, x, kernel, position, grad_y, grad_x, grad_kernel,
                             grad_bias);
  } else if (x.element_type() == ffi::BF16) {
    convolve_backward<uint16_t>(pool, table.backward_bfloat16, x, kernel, position, grad_y, grad_x,
                                grad_kernel, grad_bias);
  } else {
    return ffi::Error::InvalidArgument("convolution: neither float32 nor bfloat16");
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace bitttt

using bitttt::AnyArray;
using bitttt::Array;
using bitttt::Positions;

// clang-format off
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    convolution_forward, bitttt::convolution_forward,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
        .Arg<AnyArray>().Arg<Array>().Arg<Array>().Arg<Positions>()  // x, kernel, bias, position
        .Ret<AnyArray>());                                           // y

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    convolution_backward, bitttt::convolution_backward,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
        .Arg<AnyArray>().Arg<Array>().Arg<Positions>().Arg<AnyArray>()  // x, kernel, position, grad
        .Ret<AnyArray>().Ret<Array>().Ret<Array>());                    // of x, kernel, bias
// clang-format on
