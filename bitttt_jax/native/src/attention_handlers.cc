// What XLA calls for attention to a cache: checks the shapes, spreads groups of heads and parts of
// the cache over the threads, and puts the parts together.

#include <cmath>

#include "half.h"
#include "kernels.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace bitttt {
namespace {

constexpr int64_t kLeastSlots = 64, kMostParts = 8;  // of a token's work

struct Sizes {
  int64_t B, T, H, K, S, G;
  int64_t parts() const { return std::min((S + kLeastSlots - 1) / kLeastSlots, kMostParts); }
  int64_t part_floats() const { return H * (K + 2); }
};

// Puts the parts of a token's head together.
template <typename T>
void combine(const Sizes& z, const float* results, int64_t head, T* output) {
  const int64_t size = z.part_floats();
  float most = results[head], total = 0, sums[kMostWidth] = {};
  for (int64_t p = 1; p < z.parts(); ++p) most = std::max(most, results[p * size + head]);
  for (int64_t p = 0; p < z.parts(); ++p) {
    const float* part = results + p * size;
    const float weight = std::exp(part[head] - most);
    total += weight * part[z.H + head];
    for (int64_t d = 0; d < z.K; ++d) sums[d] += weight * part[2 * z.H + head * z.K + d];
  }
  const float inverse = total > 0 ? 1 / total : 0;
  for (int64_t d = 0; d < z.K; ++d) narrow(sums[d] * inverse, output + d);
}

template <typename T>
ffi::Error attend_all(ffi::ThreadPool& pool, const Sizes& z, int64_t window, const T* query,
                      const T* key, const T* value, const int32_t* query_position,
                      const int32_t* key_position, float* workspace, T* output,
                      void (*attend)(const Attention<T>&)) {
  const int64_t parts = z.parts(), slots = (z.S + parts - 1) / parts;
  run_all(
      pool, z.B * z.T * parts,
      [&](int64_t i) {
        const int64_t token = i / parts, row = token / z.T;
        const int64_t first = std::min(i % parts * slots, z.S), last = std::min(first + slots, z.S);
        const int64_t at = (row * z.S + first) * z.G * z.K;
        float* results = workspace + i * z.part_floats();
        attend({z.G, z.H / z.G, z.K, last - first, query + token * z.H * z.K, key + at, value + at,
                key_position + row * z.S + first, query_position[token],
                static_cast<int32_t>(window), results, results + z.H, results + 2 * z.H});
      },
      Wait::kActively);
  for (int64_t token = 0; token < z.B * z.T; ++token) {
    const float* results = workspace + token * parts * z.part_floats();
    for (int64_t head = 0; head < z.H; ++head) {
      combine(z, results, head, output + (token * z.H + head) * z.K);
    }
  }
  return ffi::Error::Success();
}

// The query is [B, T, H, K], keys and values [B, S, G, K], positions [B, T] and [B, S]; the results
// are working memory and [B, T, H, K].
ffi::Error cached_attention(ffi::ThreadPool pool, int64_t window, ffi::AnyBuffer query,
                            ffi::AnyBuffer key, ffi::AnyBuffer value,
                            ffi::Buffer<ffi::S32> query_position,
                            ffi::Buffer<ffi::S32> key_position,
                            ffi::Result<ffi::Buffer<ffi::F32>> workspace,
                            ffi::Result<ffi::AnyBuffer> output) {
  const auto wrong = [](const char* what) { return ffi::Error::InvalidArgument(what); };
  const auto q = query.dimensions(), k = key.dimensions();
  if (q.size() != 4 || k.size() != 4 || q[0] != k[0] || q[3] != k[3] || k[2] < 1 || q[2] % k[2]) {
    return wrong("attention: shapes don't fit");
  }
  const Sizes z = {q[0], q[1], q[2], q[3], k[1], k[2]};
  if (z.K % 16 || z.K > kMostWidth || z.H > kMostHeads || z.S < 1 ||
      key.element_count() != value.element_count() ||
      static_cast<int64_t>(query_position.element_count()) != z.B * z.T ||
      static_cast<int64_t>(key_position.element_count()) != z.B * z.S ||
      static_cast<int64_t>(workspace->element_count()) != z.B * z.T * z.parts() * z.part_floats()) {
    return wrong("attention: sizes that the kernel doesn't take");
  }
  const auto run = [&](auto type, auto attend) {
    using T = decltype(type);
    const auto data = [](const ffi::AnyBuffer& x) {
      return static_cast<const T*>(x.untyped_data());
    };
    return attend_all<T>(pool, z, window, data(query), data(key), data(value),
                         query_position.typed_data(), key_position.typed_data(),
                         workspace->typed_data(), static_cast<T*>(output->untyped_data()), attend);
  };
  if (query.element_type() == ffi::F32 && key.element_type() == ffi::F32) {
    return run(float{}, kernels().attention.attend);
  }
  if (query.element_type() == ffi::BF16 && key.element_type() == ffi::BF16) {
    return run(uint16_t{}, kernels().attention.attend_bfloat16);
  }
  return wrong("attention: neither float32 nor bfloat16");
}

}  // namespace
}  // namespace bitttt

// clang-format off
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    cached_attention, bitttt::cached_attention,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<int64_t>("window")
        .Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>()  // query, key, value
        .Arg<ffi::Buffer<ffi::S32>>().Arg<ffi::Buffer<ffi::S32>>()          // their positions
        .Ret<ffi::Buffer<ffi::F32>>().Ret<ffi::AnyBuffer>());               // working memory; output
// clang-format on
