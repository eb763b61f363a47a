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
// By columns, most outputs of a task, whole pages of the matrix, and the parts of the inputs, each
// of a multiple of these. Not by the number of threads, or the sums would depend on it.
constexpr int64_t kColumns = 2048, kParts = 8, kMultiple = 8;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename W>
void by_rows(ffi::ThreadPool& pool, const Product<W>& all, void (*multiply)(const Product<W>&)) {
  Reads reads;
  reads.add(all.w, all.outputs * all.width * sizeof *all.w);
  const int64_t width = std::max<int64_t>(all.width, 1);
  const int64_t together = std::max<int64_t>(kTaskValues / width / 4 * 4, 4);
  run_all(
      pool, divide_up(all.outputs, together),
      [&](int64_t i) {
        Product<W> some = all;
        some.first = i * together;
        some.last = std::min((i + 1) * together, all.outputs);
        multiply(some);
      },
      Wait::kActively, reads);
}

// Tasks are parts of the inputs, so that each thread reads memory in its order. `sums` has room for
// those of each part.
void by_columns(ffi::ThreadPool& pool, const Product<uint16_t>& all, float* sums) {
  Reads reads;
  reads.add(all.w, all.outputs * all.width * sizeof *all.w);
  const int64_t inputs = std::max<int64_t>(all.width, 1);
  const int64_t together = divide_up(divide_up(inputs, kParts), kMultiple) * kMultiple;
  const int64_t parts = divide_up(all.width, together), size = all.rows * all.outputs;
  const int64_t columns = divide_up(all.outputs, kColumns);
  run_all(
      pool, parts * columns,
      [&](int64_t i) {
        Product<uint16_t> some = all;
        const int64_t part = i / columns, column = i % columns;
        some.first = column * kColumns;
        some.last = std::min((column + 1) * kColumns, all.outputs);
        some.first_input = part * together;
        some.last_input = std::min((part + 1) * together, all.width);
        some.y = sums + part * size;
        kernels().product.by_columns(some);
      },
      Wait::kActively, reads);
  std::fill_n(all.y, size, 0.0f);
  for (int64_t part = 0; part < parts; ++part) {
    for (int64_t i = 0; i < size; ++i) all.y[i] += sums[part * size + i];
  }
}

// x is [M, K], w is [N, K] or, by columns, [K, N]; the result is [M, N].
ffi::Error few_rows_matmul(ffi::ThreadPool pool, bool is_by_columns, ffi::Buffer<ffi::BF16> x,
                           ffi::Buffer<ffi::BF16> w, ffi::Result<ffi::Buffer<ffi::F32>> y) {
  const auto of_x = x.dimensions(), of_w = w.dimensions(), of_y = y->dimensions();
  if (of_x.size() != 2 || of_w.size() != 2 || of_y.size() != 2 || of_w[!is_by_columns] != of_x[1] ||
      of_y[0] != of_x[0] || of_y[1] != of_w[is_by_columns]) {
    return ffi::Error::InvalidArgument("product: shapes don't fit");
  }
  const int64_t M = of_x[0], K = of_x[1], N = of_y[1];
  float* wide = scratch<float>(M * K + (is_by_columns ? kParts * M * N : 0));
  const auto* narrow = static_cast<const uint16_t*>(x.untyped_data());
  for (int64_t i = 0; i < M * K; ++i) wide[i] = widen(narrow[i]);
  const auto* data = static_cast<const uint16_t*>(w.untyped_data());
  const Product<uint16_t> all = {M, K, N, 0, 0, 0, 0, wide, data, y->typed_data(), nullptr};
  if (is_by_columns) {
    by_columns(pool, all, wide + M * K);
  } else {
    by_rows(pool, all, kernels().product.by_rows);
  }
  return ffi::Error::Success();
}

// x is [M, K], the codes are [N, K] and the scale is [N]; the result is [M, N].
ffi::Error int8_rows_matmul(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Buffer<ffi::S8> codes,
                            ffi::Buffer<ffi::F32> scale, ffi::Result<ffi::Buffer<ffi::F32>> y) {
  const auto of_x = x.dimensions(), of_w = codes.dimensions(), of_y = y->dimensions();
  if (of_x.size() != 2 || of_w.size() != 2 || of_y.size() != 2 || of_w[1] != of_x[1] ||
      of_y[0] != of_x[0] || of_y[1] != of_w[0] ||
      static_cast<int64_t>(scale.element_count()) != of_w[0]) {
    return ffi::Error::InvalidArgument("product: shapes don't fit");
  }
  const int64_t M = of_x[0], K = of_x[1], N = of_y[1];
  const float* wide = static_cast<const float*>(x.untyped_data());
  if (x.element_type() == ffi::BF16) {
    float* values = scratch<float>(M * K);
    const auto* narrow = static_cast<const uint16_t*>(x.untyped_data());
    for (int64_t i = 0; i < M * K; ++i) values[i] = widen(narrow[i]);
    wide = values;
  } else if (x.element_type() != ffi::F32) {
    return ffi::Error::InvalidArgument("product: neither float32 nor bfloat16");
  }
  const Product<int8_t> all = {
      M, K, N, 0, 0, 0, 0, wide, codes.typed_data(), y->typed_data(), scale.typed_data()};
  by_rows(pool, all, kernels().product.by_rows_int8);
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
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    int8_rows_matmul, bitttt::int8_rows_matmul,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
        .Arg<ffi::AnyBuffer>().Arg<ffi::Buffer<ffi::S8>>().Arg<ffi::Buffer<ffi::F32>>()
        .Ret<ffi::Buffer<ffi::F32>>());
// clang-format on
