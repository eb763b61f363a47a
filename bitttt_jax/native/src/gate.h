// Gates of gated linear units: ops.gate.gated.

#pragma once

#include <cstdint>

namespace bitttt {

// y = activation(gate) * x, of `count` values, a multiple of 16.
template <typename T>
using Gate = void (*)(const T* gate, const T* x, int64_t count, T* y);

struct GateTable {
  Gate<float> silu, relu2, gelu;
  Gate<uint16_t> silu_bfloat16, relu2_bfloat16, gelu_bfloat16;
};

extern const GateTable gate_avx512, gate_avx2, gate_neon, gate_baseline;

}  // namespace bitttt
