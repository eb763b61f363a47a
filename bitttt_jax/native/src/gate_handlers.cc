// What XLA calls for gates: checks the shapes, and spreads the values over the threads.

#include <string_view>

#include "kernels.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace bitttt {
namespace {

constexpr int64_t kTaskValues = 8 * 1024;  // takes as long as handing it over

// The gate, what passes it, and the result are of one shape and type.
ffi::Error gate(ffi::ThreadPool pool, std::string_view activation, ffi::AnyBuffer gate,
                ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> y) {
  const auto wrong = [](const char* what) { return ffi::Error::InvalidArgument(what); };
  const int64_t count = x.element_count();
  if (count % 16 || static_cast<int64_t>(gate.element_count()) != count ||
      static_cast<int64_t>(y->element_count()) != count ||
      gate.element_type() != x.element_type() || y->element_type() != x.element_type()) {
    return wrong("gate: shapes don't fit");
  }
  const auto run = [&](auto type, auto silu, auto relu2, auto gelu) {
    using T = decltype(type);
    const Gate<T> apply = activation == "silu"    ? silu
                          : activation == "relu2" ? relu2
                          : activation == "gelu"  ? gelu
                                                  : nullptr;
    if (!apply) return wrong("gate: an unknown activation");
    const T* in = static_cast<const T*>(gate.untyped_data());
    const T* values = static_cast<const T*>(x.untyped_data());
    T* out = static_cast<T*>(y->untyped_data());
    run_all(
        pool, (count + kTaskValues - 1) / kTaskValues,
        [&](int64_t i) {
          const int64_t first = i * kTaskValues;
          apply(in + first, values + first, std::min(kTaskValues, count - first), out + first);
        },
        Wait::kActively);
    return ffi::Error::Success();
  };
  const GateTable& table = kernels().gate;
  if (x.element_type() == ffi::F32) return run(float{}, table.silu, table.relu2, table.gelu);
  if (x.element_type() == ffi::BF16) {
    return run(uint16_t{}, table.silu_bfloat16, table.relu2_bfloat16, table.gelu_bfloat16);
  }
  return wrong("gate: neither float32 nor bfloat16");
}

}  // namespace
}  // namespace bitttt

XLA_FFI_DEFINE_HANDLER_SYMBOL(gate, bitttt::gate,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<std::string_view>("activation")
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());
