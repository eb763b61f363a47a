#include "table.h"

#include "bytes.h"
#include "quantize.h"
#include "vector.h"

namespace bitttt {
namespace {

constexpr int64_t kGroup = 4;  // table rows that are multiplied together
// How many bytes ahead of their use codes are fetched into the nearest cache, and into the second.
constexpr int64_t kSoon = 2 * 1024, kLater = 8 * 1024;

template <typename T>
void quantize(const T* x, const TableInput& in, int64_t m) {
  const float largest = largest_magnitude(x, in.width);
  int8_t* codes = in.codes + m * in.width;
  quantize_chunk(x, in.width, kInt8Max / largest, codes);
  if (kOffset) {
    for (int64_t i = 0; i < in.width; ++i) codes[i] = static_cast<int8_t>(codes[i] ^ -128);
  }
  in.scale[m] = largest * (1.0f / kInt8Max);
}

// A row of activations times some table rows. With kFetch it fetches what lies behind them.
template <int kCount, bool kFetch>
inline void dot_rows(const int8_t* codes, int64_t width, const int8_t* x, Sums* results) {
  Sums sums[kCount] = {}, offsets[kCount] = {};
  for (int64_t at = 0; at < width; at += kWidth) {
    const Bytes values = load_bytes(x + at);
    for (int64_t r = 0; r < kCount; ++r) {
      const int8_t* p = codes + r * width + at;
      if (kFetch && at % 64 == 0) {
        __builtin_prefetch(p + kSoon, 0, 3);
        __builtin_prefetch(p + kLater, 0, 2);
      }
      const Bytes row = load_bytes(p);
      sums[r] = dot_signed(sums[r], values, row);
      if (kOffset) offsets[r] = dot_signed(offsets[r], splat_offset(), row);
    }
  }
  for (int64_t r = 0; r < kCount; ++r) results[r] = subtract(sums[r], offsets[r]);
}

template <int kCount>
inline void multiply_group(const TableInput& in, const TableRows& t, int64_t n) {
  const int8_t* codes = t.codes + n * in.width;
  for (int64_t m = 0; m < in.rows; ++m) {
    const int8_t* x = in.codes + m * in.width;
    Sums sums[kCount];
    // The first row of activations brings the codes into the cache, in their order in memory.
    if (m == 0) {
      for (int64_t r = 0; r < kCount; ++r) {
        dot_rows<1, true>(codes + r * in.width, in.width, x, sums + r);
      }
    } else {
      dot_rows<kCount, false>(codes, in.width, x, sums);
    }
    for (int64_t r = 0; r < kCount; ++r) {
      t.y[m * t.stride + n + r] =
          static_cast<float>(total(sums[r])) * (in.scale[m] * t.scale[n + r]);
    }
  }
}

void multiply(const TableInput& in, const TableRows& t) {
  int64_t n = t.first;
  for (; n + kGroup <= t.last; n += kGroup) multiply_group<kGroup>(in, t, n);
  for (; n < t.last; ++n) multiply_group<1>(in, t, n);
}

}  // namespace

extern const TableTable TABLE(table) = {quantize<float>, quantize<uint16_t>, multiply};

}  // namespace bitttt
