#include "convolution.h"

#include "vector.h"

namespace bitttt {
namespace {

// Earlier tokens of its row that token t sees.
template <typename T>
inline int64_t reach(const Convolution<T>& c, int64_t t) {
  int64_t most = c.taps - 1;
  if (t < most) most = t;
  return c.position[t] < most ? c.position[t] : most;
}

template <typename T>
void forward(const Convolution<T>& c) {
  for (int64_t t = 0; t < c.length; ++t) {
    const int64_t back = reach(c, t);
    for (int64_t d = 0; d < c.channels; d += LANES) {
      Vector y = load(c.bias + d);
      for (int64_t i = 0; i <= back; ++i) {
        y += load(c.x + (t - i) * c.D + d) * load(c.kernel + (c.taps - 1 - i) * c.D + d);
      }
      store(c.y + t * c.D + d, y);
    }
  }
}

template <typename T>
void backward(const ConvolutionBackward<T>& b) {
  const Convolution<T>& c = b.forward;
  Vector grad_kernel[kMostTaps][kChannels / LANES] = {}, grad_bias[kChannels / LANES] = {};
  for (int64_t t = 0; t < c.length; ++t) {
    const int64_t back = reach(c, t);
    int64_t seers[kMostTaps], count = 0;  // how far ahead the later tokens are that see this one
    for (int64_t i = 1; i < c.taps && t + i < c.length; ++i) {
      if (reach(c, t + i) >= i) seers[count++] = i;
    }
    for (int64_t d = 0, v = 0; d < c.channels; d += LANES, ++v) {
      const Vector grad = load(b.grad_y + t * c.D + d);
      grad_bias[v] += grad;
      for (int64_t i = 0; i <= back; ++i) grad_kernel[i][v] += grad * load(c.x + (t - i) * c.D + d);
      Vector grad_x = grad * load(c.kernel + (c.taps - 1) * c.D + d);
      for (int64_t n = 0; n < count; ++n) {
        const int64_t i = seers[n];
        grad_x += load(b.grad_y + (t + i) * c.D + d) * load(c.kernel + (c.taps - 1 - i) * c.D + d);
      }
      store(b.grad_x + t * c.D + d, grad_x);
    }
  }
  for (int64_t d = 0, v = 0; d < c.channels; d += LANES, ++v) {
    store(b.grad_bias + d, grad_bias[v]);
    for (int64_t i = 0; i < c.taps; ++i) {
      store(b.grad_kernel + (c.taps - 1 - i) * c.D + d, grad_kernel[i][v]);
    }
  }
}

}  // namespace

extern const ConvolutionTable TABLE(convolution) = {forward<float>, backward<float>,
                                                    forward<uint16_t>, backward<uint16_t>};

}  // namespace bitttt
