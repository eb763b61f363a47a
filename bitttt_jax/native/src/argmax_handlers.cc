// What XLA calls for the index of the largest value: spreads the values over the threads.

#include <vector>

#include "kernels.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace bitttt {
namespace {

constexpr int64_t kTaskValues = 8 * 1024;

// x is [B, V], the result [B].
ffi::Error argmax(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x,
                  ffi::Result<ffi::Buffer<ffi::S32>> result) {
  const auto shape = x.dimensions();
  if (shape.size() != 2 || shape[1] < 1 ||
      static_cast<int64_t>(result->element_count()) != shape[0]) {
    return ffi::Error::InvalidArgument("argmax: shapes don't fit");
  }
  const int64_t B = shape[0], V = shape[1], parts = (V + kTaskValues - 1) / kTaskValues;
  std::vector<int32_t> most(B * parts);
  run_all(
      pool, B * parts,
      [&](int64_t i) {
        const int64_t first = i % parts * kTaskValues;
        const float* row = x.typed_data() + i / parts * V;
        most[i] = kernels().argmax.largest(row + first, std::min(kTaskValues, V - first));
      },
      Wait::kActively);
  for (int64_t b = 0; b < B; ++b) {
    const auto first = most.begin() + b * parts;
    const auto best = std::max_element(first, first + parts);
    const float* row = x.typed_data() + b * V;
    int64_t i = (best - first) * kTaskValues;
    while (ordered(row[i]) != *best) ++i;
    result->typed_data()[b] = static_cast<int32_t>(i);
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace bitttt

XLA_FFI_DEFINE_HANDLER_SYMBOL(argmax, bitttt::argmax,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>());
