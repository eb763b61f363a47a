// What XLA calls for packed products: checks the shapes, and spreads rows and columns over the
// threads.

#include <vector>

#include "kernels.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace bitttt {
namespace {

ffi::Error wrong(const char* what) { return ffi::Error::InvalidArgument(what); }

// Codes of a task for few rows: small beside what a thread reads, and large beside a line of
// memory.
constexpr int64_t kFewBytes = 32 * 1024;

// The columns of all weights, one weight's after the other's.
template <typename T>
struct Weight {
  Columns columns;
  int64_t before;  // columns of the weights before it
  Output<T> output;
};

template <typename T>
using Few = void (*)(const Activations&, const Columns&, Output<T>);
template <typename T>
using Many = void (*)(const Activations&, const Columns&, Output<T>, uint8_t*);
template <typename X>
using Quantize = void (*)(const X*, const Activations&, int64_t);

template <typename X, typename T>
void multiply_all(ffi::ThreadPool& pool, const X* x, const Activations& a,
                  const std::vector<Weight<T>>& weights, Quantize<X> quantize, Few<T> few,
                  Many<T> many) {
  const PackedTable& table = kernels().packed;
  const bool is_few = a.rows < table.many_rows;
  const Wait wait = a.rows <= kTileRows ? Wait::kActively : Wait::kAsleep;
  if (is_few) {
    for (int64_t m = 0; m < a.rows; ++m) quantize(x + m * a.width, a, m);
  } else {
    const int64_t some = a.rows <= kTileRows ? 1 : kTileRows;
    run_all(
        pool, (a.rows + some - 1) / some,
        [&](int64_t i) {
          const int64_t last = std::min((i + 1) * some, a.rows);
          for (int64_t m = i * some; m < last; ++m) quantize(x + m * a.width, a, m);
        },
        wait);
    if (table.arrange) table.arrange(a);
  }
  const int64_t total = weights.back().before + weights.back().columns.last;
  const int64_t few_columns = kFewBytes / weights.back().columns.row_bytes / 4 * 4;
  const int64_t together = is_few ? std::max<int64_t>(few_columns, 4) : kManyColumns;
  run_all(
      pool, (total + together - 1) / together,
      [&](int64_t i) {
        for (const Weight<T>& weight : weights) {
          Columns columns = weight.columns;
          columns.first = std::max<int64_t>(i * together - weight.before, 0);
          columns.last = std::min((i + 1) * together - weight.before, columns.last);
          if (columns.first >= columns.last) continue;
          if (is_few) {
            few(a, columns, weight.output);
          } else {
            many(a, columns, weight.output, scratch<uint8_t>(many_scratch_bytes(a.steps)));
          }
        }
      },
      wait);
}

template <typename X, typename T>
ffi::Error packed_matmul_of(ffi::ThreadPool& pool, const ffi::AnyBuffer& x, const Activations& a,
                            const ffi::RemainingArgs& args, ffi::RemainingRets& results,
                            Quantize<X> quantize, Few<T> few, Many<T> many) {
  const ffi::DataType type = sizeof(T) == sizeof(float) ? ffi::F32 : ffi::BF16;
  const int64_t row_bytes = (a.width + kBlock - 1) / kBlock * kBlockBytes;
  std::vector<Weight<T>> weights;
  int64_t before = 0;
  for (size_t i = 0; i < results.size(); ++i) {
    const auto codes = args.get<ffi::Buffer<ffi::U8>>(2 * i);
    const auto scale = args.get<ffi::Buffer<ffi::F32>>(2 * i + 1);
    auto y = results.get<ffi::AnyBuffer>(i);
    if (codes.has_error() || scale.has_error() || y.has_error()) {
      return wrong("packed: codes that aren't uint8, or a scale that isn't float32");
    }
    const auto of_codes = codes->dimensions(), of_y = (*y)->dimensions();
    if (of_codes.size() != 2 || of_codes[1] != row_bytes || scale->element_count() != 1 ||
        of_y.size() != 2 || of_y[0] != a.rows || of_y[1] != of_codes[0] ||
        (*y)->element_type() != type) {
      return wrong("packed: shapes don't fit");
    }
    const int64_t N = of_codes[0];
    weights.push_back({{codes->typed_data(), row_bytes, 0, N, scale->typed_data()[0]},
                       before,
                       {static_cast<T*>((*y)->untyped_data()), N}});
    before += N;
  }
  multiply_all(pool, static_cast<const X*>(x.untyped_data()), a, weights, quantize, few, many);
  return ffi::Error::Success();
}

// x is [M, K]; each weight has codes [N, bytes of a row] and a scale; the first result is working
// memory, the others are the products [M, N] in the type of x, or float32 if that is int8.
ffi::Error packed_matmul(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::RemainingArgs weights,
                         ffi::Result<ffi::Buffer<ffi::U8>> workspace, ffi::RemainingRets results) {
  const auto shape = x.dimensions();
  if (shape.size() != 2) return wrong("packed: x isn't a matrix");
  const Activations a(shape[0], shape[1], workspace->typed_data());
  if (static_cast<int64_t>(workspace->element_count()) < a.workspace_bytes()) {
    return wrong("packed: too little working memory");
  }
  if (results.size() == 0 || weights.size() != 2 * results.size()) {
    return wrong("packed: wrong number of weights");
  }
  const PackedTable& table = kernels().packed;
  if (x.element_type() == ffi::F32) {
    return packed_matmul_of(pool, x, a, weights, results, table.quantize, table.multiply_few,
                            table.multiply_many);
  }
  if (x.element_type() == ffi::BF16) {
    return packed_matmul_of(pool, x, a, weights, results, table.quantize_bfloat16,
                            table.multiply_few_bfloat16, table.multiply_many_bfloat16);
  }
  if (x.element_type() == ffi::S8) {
    return packed_matmul_of(pool, x, a, weights, results, table.quantize_int8, table.multiply_few,
                            table.multiply_many);
  }
  return wrong("packed: neither float32 nor bfloat16 nor int8");
}

}  // namespace
}  // namespace bitttt

// clang-format off
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    packed_matmul, bitttt::packed_matmul,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
        .Arg<ffi::AnyBuffer>().RemainingArgs()                    // x; codes and scale of each weight
        .Ret<ffi::Buffer<ffi::U8>>().RemainingRets());            // working memory; products
// clang-format on
