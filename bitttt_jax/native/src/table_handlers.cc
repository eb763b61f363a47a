// What XLA calls for products with a table: checks the shapes, and spreads the table's rows over
// the threads.

#include "kernels.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace bitttt {
namespace {

constexpr int64_t kTaskBytes = 64 * 1024;

// x is [M, D], the table has codes [V, D] and scales [V]; the results are [M, V] and working
// memory.
ffi::Error table_matmul(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Buffer<ffi::S8> codes,
                        ffi::Buffer<ffi::F32> scale, ffi::Result<ffi::Buffer<ffi::U8>> workspace,
                        ffi::Result<ffi::Buffer<ffi::F32>> y) {
  const auto wrong = [](const char* what) { return ffi::Error::InvalidArgument(what); };
  const auto of_x = x.dimensions(), of_codes = codes.dimensions(), of_y = y->dimensions();
  if (of_x.size() != 2 || of_codes.size() != 2 || of_y.size() != 2 || of_x[1] != of_codes[1] ||
      of_x[1] % kTableWidth || of_y[0] != of_x[0] || of_y[1] != of_codes[0] ||
      static_cast<int64_t>(scale.element_count()) != of_codes[0]) {
    return wrong("table: shapes don't fit");
  }
  const TableInput in(of_x[0], of_x[1], workspace->typed_data());
  if (static_cast<int64_t>(workspace->element_count()) < in.workspace_bytes()) {
    return wrong("table: too little working memory");
  }
  const TableTable& table = kernels().table;
  const bool is_bfloat16 = x.element_type() == ffi::BF16;
  if (!is_bfloat16 && x.element_type() != ffi::F32) {
    return wrong("table: neither float32 nor bfloat16");
  }
  for (int64_t m = 0; m < in.rows; ++m) {
    if (is_bfloat16) {
      table.quantize_bfloat16(static_cast<const uint16_t*>(x.untyped_data()) + m * in.width, in, m);
    } else {
      table.quantize(static_cast<const float*>(x.untyped_data()) + m * in.width, in, m);
    }
  }
  const int64_t V = of_codes[0];
  const int64_t together = std::max<int64_t>(kTaskBytes / in.width, 1);
  run_all(
      pool, (V + together - 1) / together,
      [&](int64_t i) {
        table.multiply(in, {codes.typed_data(), scale.typed_data(), i * together,
                            std::min((i + 1) * together, V), y->typed_data(), V});
      },
      Wait::kActively);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace bitttt

// clang-format off
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    table_matmul, bitttt::table_matmul,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
        .Arg<ffi::AnyBuffer>().Arg<ffi::Buffer<ffi::S8>>().Arg<ffi::Buffer<ffi::F32>>()
        .Ret<ffi::Buffer<ffi::U8>>().Ret<ffi::Buffer<ffi::F32>>());  // working memory; product
// clang-format on
