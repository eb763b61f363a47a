// What XLA calls for attention to a cache: checks the shapes, spreads groups of heads and parts of
// the cache over the threads, and puts the parts together.

#include "kernels.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace bitttt {
namespace {

// Of a token's work; several tokens are divided into fewer parts each.
constexpr int64_t kLeastSlots = 64, kTasks = 16;

struct Sizes {
  int64_t B, T, H, K, S, G;
  int64_t parts() const {
    const int64_t most = std::clamp<int64_t>(kTasks / (B * T), 1, kMostParts);
    return std::min((S + kLeastSlots - 1) / kLeastSlots, most);
  }
  int64_t part_floats() const { return H * (K + 2); }
};

// What is cached: [B, S, G, K], and scales [B, S, G] where C is int8_t.
template <typename C>
struct Cached {
  const C *key, *value;
  const float *key_scale, *value_scale;
  const int32_t* position;
};

template <typename T, typename C>
ffi::Error attend_all(ffi::ThreadPool& pool, const Sizes& z, int32_t window, const T* query,
                      const int32_t* query_position, const Cached<C>& cached, float* workspace,
                      T* output, void (*attend)(const Attention<T, C>&),
                      void (*combine)(const float*, int64_t, int64_t, int64_t, T*)) {
  const int64_t parts = z.parts(), slots = (z.S + parts - 1) / parts;
  run_all(
      pool, z.B * z.T * parts,
      [&](int64_t i) {
        const int64_t token = i / parts, row = token / z.T;
        const int64_t first = std::min(i % parts * slots, z.S), last = std::min(first + slots, z.S);
        const int64_t slot = row * z.S + first, at = slot * z.G * z.K;
        const auto scale = [&](const float* all) { return all ? all + slot * z.G : nullptr; };
        float* results = workspace + i * z.part_floats();
        attend({z.G, z.H / z.G, z.K, last - first, query + token * z.H * z.K, cached.key + at,
                cached.value + at, scale(cached.key_scale), scale(cached.value_scale),
                cached.position + slot, query_position[token], window, results, results + z.H,
                results + 2 * z.H});
      },
      Wait::kActively);
  for (int64_t token = 0; token < z.B * z.T; ++token) {
    combine(workspace + token * parts * z.part_floats(), parts, z.H, z.K,
            output + token * z.H * z.K);
  }
  return ffi::Error::Success();
}

// The query is [B, T, H, K], keys and values (uint16 stands for bfloat16) [B, S, G, K], positions
// [B, T] and [B, S], and the scales of int8 keys and values [B, S, G]; the results are working
// memory and [B, T, H, K].
ffi::Error cached_attention(ffi::ThreadPool pool, int64_t window, ffi::AnyBuffer query,
                            ffi::AnyBuffer key, ffi::AnyBuffer value,
                            ffi::Buffer<ffi::S32> query_position,
                            ffi::Buffer<ffi::S32> key_position, ffi::RemainingArgs scales,
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
  const bool is_int8 = key.element_type() == ffi::S8;
  const float* scale[2] = {};
  for (size_t i = 0; i < 2 && is_int8; ++i) {
    const auto some = scales.get<ffi::Buffer<ffi::F32>>(i);
    if (some.has_error() || static_cast<int64_t>(some->element_count()) != z.B * z.S * z.G) {
      return wrong("attention: int8 without its scales");
    }
    scale[i] = some->typed_data();
  }
  const auto run = [&](auto type, auto cached_type, auto attend, auto combine) {
    using T = decltype(type);
    using C = decltype(cached_type);
    const Cached<C> cached = {static_cast<const C*>(key.untyped_data()),
                              static_cast<const C*>(value.untyped_data()), scale[0], scale[1],
                              key_position.typed_data()};
    return attend_all<T, C>(pool, z, static_cast<int32_t>(window),
                            static_cast<const T*>(query.untyped_data()),
                            query_position.typed_data(), cached, workspace->typed_data(),
                            static_cast<T*>(output->untyped_data()), attend, combine);
  };
  const AttentionTable& table = kernels().attention;
  const auto has_types = [&](ffi::DataType of_query, ffi::DataType of_cache) {
    return query.element_type() == of_query && key.element_type() == of_cache &&
           value.element_type() == of_cache;
  };
  if (has_types(ffi::F32, ffi::F32)) return run(float{}, float{}, table.attend, table.combine);
  if (has_types(ffi::BF16, ffi::BF16) || has_types(ffi::BF16, ffi::U16)) {
    return run(uint16_t{}, uint16_t{}, table.attend_bfloat16, table.combine_bfloat16);
  }
  if (has_types(ffi::F32, ffi::S8)) return run(float{}, int8_t{}, table.attend_int8, table.combine);
  if (has_types(ffi::BF16, ffi::S8))
    return run(uint16_t{}, int8_t{}, table.attend_bfloat16_int8, table.combine_bfloat16);
  return wrong("attention: types that the kernel doesn't take");
}

}  // namespace
}  // namespace bitttt

// clang-format off
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    cached_attention, bitttt::cached_attention,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<int64_t>("window")
        .Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>()  // query, key, value
        .Arg<ffi::Buffer<ffi::S32>>().Arg<ffi::Buffer<ffi::S32>>()          // their positions
        .RemainingArgs()                                                    // scales of int8
        .Ret<ffi::Buffer<ffi::F32>>().Ret<ffi::AnyBuffer>());               // working memory; output
// clang-format on
