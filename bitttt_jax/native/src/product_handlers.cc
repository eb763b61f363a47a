// What XLA calls for products of few rows: checks the shapes, and spreads the outputs over the
// threads.

#include "half.h"
#include "kernels.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace bitttt {
namespace {

constexpr int64_t kTaskValues = 32 * 1024;

// x is [M, K], w is [N, K] or, by columns, [K, N]; the result is [M, N].
ffi::Error few_rows_matmul(ffi::ThreadPool pool, bool by_columns, ffi::Buffer<ffi::BF16> x,
                           ffi::Buffer<ffi::BF16> w, ffi::Result<ffi::Buffer<ffi::F32>> y) {
  const auto of_x = x.dimensions(), of_w = w.dimensions(), of_y = y->dimensions();
  if (of_x.size() != 2 || of_w.size() != 2 || of_y.size() != 2 || of_w[!by_columns] != of_x[1] ||
      of_y[0] != of_x[0] || of_y[1] != of_w[by_columns]) {
    return ffi::Error::InvalidArgument("product: shapes don't fit");
  }
  const int64_t M = of_x[0], K = of_x[1], N = of_y[1];
  float* wide = scratch<float>(M * K);
  const auto* narrow = static_cast<const uint16_t*>(x.untyped_data());
  for (int64_t i = 0; i < M * K; ++i) wide[i] = widen(narrow[i]);
  const auto* data = static_cast<const uint16_t*>(w.untyped_data());
  const Product all = {M, K, N, 0, 0, wide, data, y->typed_data()};
  Reads reads;
  if (!by_columns) reads.add(data, N * K * sizeof *data);
  const int64_t rows = std::max<int64_t>(kTaskValues / std::max<int64_t>(K, 1) / 4 * 4, 4);
  const int64_t together = by_columns ? kProductColumns : rows;
  run_all(
      pool, (N + together - 1) / together,
      [&](int64_t i) {
        Product some = all;
        some.first = i * together;
        some.last = std::min((i + 1) * together, N);
        by_columns ? kernels().product.by_columns(some) : kernels().product.by_rows(some);
      },
      Wait::kActively, reads);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace bitttt

// clang-format off
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    few_rows_matmul, bitttt::few_rows_matmul,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<bool>("by_columns")
        .Arg<ffi::Buffer<ffi::BF16>>().Arg<ffi::Buffer<ffi::BF16>>()
        .Ret<ffi::Buffer<ffi::F32>>());
// clang-format on
