// How fast memory can be read here: the yardstick of what only reads weights.

#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace bitttt {
namespace {

constexpr int64_t kBytesAtOnce = 256 * 1024;
// How many bytes ahead of their use they are fetched into the nearest cache, and into the second.
constexpr int64_t kSoon = 1024, kLater = 4096;

typedef uint64_t Words __attribute__((vector_size(16)));

ffi::Error read_memory(ffi::ThreadPool pool, ffi::Buffer<ffi::U8> data,
                       ffi::Result<ffi::Buffer<ffi::U8>> sums) {
  const int64_t bytes = data.element_count() / kBytesAtOnce * kBytesAtOnce;
  const int64_t count = bytes / kBytesAtOnce;
  if (static_cast<int64_t>(sums->element_count()) != count) {
    return ffi::Error::InvalidArgument("memory: one sum for every 256 KiB");
  }
  run_all(pool, count, [&](int64_t i) {
    const uint8_t* p = data.typed_data() + i * kBytesAtOnce;
    const uint8_t* end = p + kBytesAtOnce;
    Words sum[4] = {};
    for (; p < end; p += sizeof sum) {
      __builtin_prefetch(p + kSoon, 0, 3);
      __builtin_prefetch(p + kLater, 0, 2);
      const Words* words = reinterpret_cast<const Words*>(p);
      for (int64_t k = 0; k < 4; ++k) sum[k] += words[k];
    }
    const Words all = sum[0] + sum[1] + sum[2] + sum[3];
    sums->typed_data()[i] = static_cast<uint8_t>(all[0] + all[1]);
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace bitttt

// clang-format off
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    read_memory, bitttt::read_memory,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
        .Arg<ffi::Buffer<ffi::U8>>().Ret<ffi::Buffer<ffi::U8>>());
// clang-format on
