#include "gate.h"

#include "gelu.h"

namespace bitttt {
namespace {

inline Vector silu(Vector x) {
  const Vector zero = {}, one = splat(1.0f);
  const Vector e = exp_of_negative(x > zero ? -x : x);
  return x * (x > zero ? one : e) / (one + e);
}

inline Vector relu2(Vector x) {
  const Vector zero = {};
  const Vector positive = x < zero ? zero : x;  // NaN stays
  return positive * positive;
}

inline Vector gelu_value(Vector x) { return gelu(x).value; }

template <Vector (*kActivation)(Vector), typename T>
void gate_all(const T* gate, const T* x, int64_t count, T* y) {
  for (int64_t i = 0; i < count; i += LANES)
    store(y + i, kActivation(load(gate + i)) * load(x + i));
}

}  // namespace

extern const GateTable TABLE(gate) = {gate_all<silu, float>,       gate_all<relu2, float>,
                                      gate_all<gelu_value, float>, gate_all<silu, uint16_t>,
                                      gate_all<relu2, uint16_t>,   gate_all<gelu_value, uint16_t>};

}  // namespace bitttt
