#include "argmax.h"

#include "vector.h"

namespace bitttt {
namespace {

int32_t largest(const float* x, int64_t count) {
  typedef int32_t Integer __attribute__((vector_size(4 * LANES)));
  int32_t most = INT32_MIN;
  int64_t i = 0;
  if (count >= LANES) {
    Integer all = Integer{} + INT32_MIN;
    for (; i + LANES <= count; i += LANES) {
      const Integer bits = reinterpret_cast<Integer>(load(x + i));
      const Integer order = bits ^ ((bits >> 31) & 0x7fffffff);
      all = order > all ? order : all;
    }
    for (int k = 0; k < LANES; ++k) most = all[k] > most ? all[k] : most;
  }
  for (; i < count; ++i) most = ordered(x[i]) > most ? ordered(x[i]) : most;
  return most;
}

}  // namespace

extern const ArgmaxTable TABLE(argmax) = {largest};

}  // namespace bitttt
