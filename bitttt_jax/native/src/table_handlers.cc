// What XLA calls for products with a table: checks the shapes, and spreads the table's rows over
// the threads.

#include "kernels.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace bitttt {
namespace {

constexpr int64_t kTaskBytes = 64 * 1024;

ffi::Error wrong(const char* what) { return ffi::Error::InvalidArgument(what); }

// Rounds the activations x.
template <typename Input, typename Table>
bool quantize_all(const ffi::AnyBuffer& x, const Input& in, const Table& table) {
  for (int64_t m = 0; m < in.rows; ++m) {
    if (x.element_type() == ffi::F32) {
      table.quantize(static_cast<const float*>(x.untyped_data()) + m * in.width, in, m);
    } else if (x.element_type() == ffi::BF16) {
      table.quantize_bfloat16(static_cast<const uint16_t*>(x.untyped_data()) + m * in.width, in, m);
    } else {
      return false;
    }
  }
  return true;
}

// Multiplies rounded activations with all V entries of a table, some in each task.
template <typename Input, typename Rows>
ffi::Error multiply_all(ffi::ThreadPool& pool, const Input& in, int64_t V, int64_t together,
                        const Rows& rows, void (*multiply)(const Input&, const Rows&)) {
  run_all(
      pool, (V + together - 1) / together,
      [&](int64_t i) {
        Rows some = rows;
        some.first = i * together;
        some.last = std::min((i + 1) * together, V);
        multiply(in, some);
      },
      Wait::kActively);
  return ffi::Error::Success();
}

int64_t entries_of_task(int64_t entry_bytes) {
  return std::max<int64_t>(kTaskBytes / entry_bytes, 1);
}

// x is [M, D], the table has codes [V, D] and scales [V]; the results are working memory and
// [M, V].
ffi::Error table_matmul(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Buffer<ffi::S8> codes,
                        ffi::Buffer<ffi::F32> scale, ffi::Result<ffi::Buffer<ffi::U8>> workspace,
                        ffi::Result<ffi::Buffer<ffi::F32>> y) {
  const auto of_x = x.dimensions(), of_codes = codes.dimensions(), of_y = y->dimensions();
  if (of_x.size() != 2 || of_codes.size() != 2 || of_y.size() != 2 || of_x[1] != of_codes[1] ||
      of_x[1] % kTableWidth || of_y[0] != of_x[0] || of_y[1] != of_codes[0] ||
      static_cast<int64_t>(scale.element_count()) != of_codes[0]) {
    return wrong("table: shapes don't fit");
  }
  TableInput in(of_x[0], of_x[1], workspace->typed_data());
  if (static_cast<int64_t>(workspace->element_count()) < in.workspace_bytes()) {
    return wrong("table: too little working memory");
  }
  const TableRows rows = {codes.typed_data(), scale.typed_data(), 0, 0, y->typed_data(), of_y[1]};
  const TableTable& table = kernels().table;
  if (!quantize_all(x, in, table)) return wrong("table: neither float32 nor bfloat16");
  const int64_t V = of_y[1], together = entries_of_task(in.width);
  if (!table.arrange || in.rows < kLeastArranged || in.rows > kMostArranged) {
    return multiply_all(pool, in, V, together, rows, table.multiply);
  }
  in.arranged = scratch<int8_t>(arranged_bytes(in));
  table.arrange(in);
  const int64_t groups = (together + kArrangedGroup - 1) / kArrangedGroup;
  return multiply_all(pool, in, V, groups * kArrangedGroup, rows, table.multiply_arranged);
}

// As `table_matmul`, with codes [V, bytes of a row] and scales [V, groups of a row].
ffi::Error grouped_matmul(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Buffer<ffi::U8> codes,
                          ffi::Buffer<ffi::BF16> scale, ffi::Result<ffi::Buffer<ffi::U8>> workspace,
                          ffi::Result<ffi::Buffer<ffi::F32>> y) {
  const auto of_x = x.dimensions(), of_codes = codes.dimensions(), of_y = y->dimensions();
  if (of_x.size() != 2 || of_codes.size() != 2 || of_y.size() != 2 || of_y[0] != of_x[0] ||
      of_y[1] != of_codes[0]) {
    return wrong("grouped table: shapes don't fit");
  }
  const GroupedInput in(of_x[0], of_x[1], workspace->typed_data());
  if (of_codes[1] != in.blocks * kBlockCodes ||
      static_cast<int64_t>(scale.element_count()) != of_y[1] * in.blocks * kBlockGroups ||
      static_cast<int64_t>(workspace->element_count()) < in.workspace_bytes()) {
    return wrong("grouped table: sizes don't fit");
  }
  const GroupedRows rows = {codes.typed_data(),
                            reinterpret_cast<const uint16_t*>(scale.untyped_data()),
                            0,
                            0,
                            y->typed_data(),
                            of_y[1]};
  const GroupedTable& table = kernels().grouped;
  if (!quantize_all(x, in, table)) return wrong("grouped table: neither float32 nor bfloat16");
  return multiply_all(pool, in, of_y[1], entries_of_task(of_codes[1]), rows, table.multiply);
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

// clang-format off
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    grouped_matmul, bitttt::grouped_matmul,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
        .Arg<ffi::AnyBuffer>().Arg<ffi::Buffer<ffi::U8>>().Arg<ffi::Buffer<ffi::BF16>>()
        .Ret<ffi::Buffer<ffi::U8>>().Ret<ffi::Buffer<ffi::F32>>());  // working memory; product
// clang-format on
