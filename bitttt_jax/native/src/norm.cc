#include "norm.h"

#include "vector.h"

namespace bitttt {
namespace {

template <typename T>
void rms_norm(const T* x, const float* scale, int64_t width, float eps, T* y) {
  constexpr int64_t kTogether = 16 / LANES;  // independent sums, and what divides every width
  Vector squares[kTogether] = {};
  for (int64_t i = 0; i < width; i += kTogether * LANES) {
    for (int64_t k = 0; k < kTogether; ++k) {
      const Vector value = load(x + i + k * LANES);
      squares[k] += value * value;
    }
  }
  float total = 0;
  for (int64_t k = 0; k < kTogether; ++k) total += sum(squares[k]);
  const float inverse = 1 / __builtin_sqrtf(total / static_cast<float>(width) + eps);
  for (int64_t i = 0; i < width; i += LANES) {
    store(y + i, load(x + i) * splat(inverse) * load(scale + i));
  }
}

}  // namespace

extern const NormTable TABLE(norm) = {rms_norm<float>, rms_norm<uint16_t>};

}  // namespace bitttt
