// What XLA calls for products with a table: checks the shapes, and spreads the table's rows over
// the threads.

#include <functional>
#include <vector>

#include "kernels.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace bitttt {
namespace {

constexpr int64_t kTaskBytes = 64 * 1024;
// Of a table in two parts: how many fine steps make a coarse one, from how many rows on everything
// is refined, how many entries a task refines, and how many products are looked at to find the
// largest.
constexpr int64_t kFineSteps = 16, kManyRefined = 16, kRefinedTogether = 32, kSamples = 8192;

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
ffi::Error multiply_all(ffi::ThreadPool& pool, const Input& in, int64_t V, int64_t entry_bytes,
                        int64_t together, const Rows& rows,
                        void (*multiply)(const Input&, const Rows&)) {
  Reads reads;
  reads.add(rows.codes, V * entry_bytes);
  run_all(
      pool, (V + together - 1) / together,
      [&](int64_t i) {
        Rows some = rows;
        some.first = i * together;
        some.last = std::min((i + 1) * together, V);
        multiply(in, some);
      },
      Wait::kActively, reads);
  return ffi::Error::Success();
}

int64_t entries_of_task(int64_t entry_bytes) {
  return std::max<int64_t>(kTaskBytes / entry_bytes / 4 * 4, 1);
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
    return multiply_all(pool, in, V, in.width, together, rows, table.multiply);
  }
  in.arranged = scratch<int8_t>(arranged_bytes(in));
  table.arrange(in);
  const int64_t groups = (together + kArrangedGroup - 1) / kArrangedGroup;
  return multiply_all(pool, in, V, in.width, groups * kArrangedGroup, rows,
                      table.multiply_arranged);
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
  return multiply_all(pool, in, of_y[1], of_codes[1], entries_of_task(of_codes[1]), rows,
                      table.multiply);
}

// One of the largest values of a row, of which about `count` are at least as large.
float least_of_largest(const float* y, int64_t size, int64_t count) {
  const int64_t step = std::max<int64_t>(size / kSamples, 1);
  float* sample = scratch<float>(size / step + 1);
  int64_t n = 0;
  for (int64_t i = 0; i < size; i += step) {
    sample[n] = y[i];
    n += y[i] == y[i];  // what isn't a number has no order
  }
  if (n == 0) return 0;
  const int64_t place = std::min(std::max<int64_t>(count / step, 1), n) - 1;
  std::nth_element(sample, sample + place, sample + n, std::greater<float>());
  return sample[place];
}

// Adds the fine part to the largest products of a row of activations.
void refine_largest(ffi::ThreadPool& pool, const GroupedInput& in, int64_t m,
                    const GroupedRows& fine, int64_t count) {
  float* y = fine.y + m * fine.stride;
  const float least = least_of_largest(y, fine.stride, count);
  std::vector<int64_t> entries;
  for (int64_t n = 0; n < fine.stride; ++n) {
    if (y[n] >= least) entries.push_back(n);
  }
  const GroupedInput row = in.row(m);
  const int64_t size = entries.size();
  run_all(
      pool, (size + kRefinedTogether - 1) / kRefinedTogether,
      [&](int64_t i) {
        const int64_t last = std::min((i + 1) * kRefinedTogether, size);
        for (int64_t e = i * kRefinedTogether; e < last; ++e) {
          float value;
          GroupedRows one = fine;
          one.codes += entries[e] * in.blocks * kBlockCodes;
          one.scale += entries[e] * in.blocks * kBlockGroups;
          one.first = 0;
          one.last = 1;
          one.y = &value;
          kernels().grouped.multiply(row, one);
          y[entries[e]] += value / kFineSteps;
        }
      },
      Wait::kActively);
}

// Adds the fine part to all products.
void refine_all(ffi::ThreadPool& pool, const GroupedInput& in, const GroupedRows& fine) {
  const int64_t V = fine.stride, tasks = (V + kRefinedTogether - 1) / kRefinedTogether;
  run_all(pool, tasks, [&](int64_t i) {
    const int64_t first = i * kRefinedTogether, count = std::min(kRefinedTogether, V - first);
    float* values = scratch<float>(in.rows * kRefinedTogether);
    GroupedRows some = fine;
    some.codes += first * in.blocks * kBlockCodes;
    some.scale += first * in.blocks * kBlockGroups;
    some.first = 0;
    some.last = count;
    some.y = values;
    some.stride = kRefinedTogether;
    kernels().grouped.multiply(in, some);
    for (int64_t m = 0; m < in.rows; ++m) {
      for (int64_t n = 0; n < count; ++n) {
        fine.y[m * V + first + n] += values[m * kRefinedTogether + n] / kFineSteps;
      }
    }
  });
}

// As `grouped_matmul`, with codes of what its rounding left, in sixteenths of a step: for few rows
// they are added to about the `largest` products of each, for many to all.
ffi::Error refined_matmul(ffi::ThreadPool pool, int64_t largest, ffi::AnyBuffer x,
                          ffi::Buffer<ffi::U8> codes, ffi::Buffer<ffi::BF16> scale,
                          ffi::Buffer<ffi::U8> fine, ffi::Result<ffi::Buffer<ffi::U8>> workspace,
                          ffi::Result<ffi::Buffer<ffi::F32>> y) {
  if (fine.element_count() != codes.element_count()) return wrong("refined table: sizes don't fit");
  ffi::Error error = grouped_matmul(pool, x, codes, scale, workspace, y);
  if (error.failure()) return error;
  const auto of_x = x.dimensions(), of_y = y->dimensions();
  const GroupedInput in(of_x[0], of_x[1], workspace->typed_data());
  const GroupedRows rows = {fine.typed_data(),
                            reinterpret_cast<const uint16_t*>(scale.untyped_data()),
                            0,
                            0,
                            y->typed_data(),
                            of_y[1]};
  if (in.rows >= kManyRefined) {
    refine_all(pool, in, rows);
  } else {
    for (int64_t m = 0; m < in.rows; ++m) refine_largest(pool, in, m, rows, largest);
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace bitttt

// clang-format off
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    refined_matmul, bitttt::refined_matmul,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<int64_t>("largest")
        .Arg<ffi::AnyBuffer>().Arg<ffi::Buffer<ffi::U8>>().Arg<ffi::Buffer<ffi::BF16>>()
        .Arg<ffi::Buffer<ffi::U8>>()                                 // the fine codes
        .Ret<ffi::Buffer<ffi::U8>>().Ret<ffi::Buffer<ffi::F32>>());  // working memory; product
// clang-format on

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
