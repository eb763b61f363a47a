#include "table.h"

#include "bytes.h"
#include "quantize.h"
#include "vector.h"

namespace bitttt {
namespace {

constexpr int64_t kGroup = 4;  // table rows that are multiplied together
constexpr int64_t kRowsTogether = kWidth == 64 ? 4 : 2;
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

// A row of activations times one of the table, in its order in memory: fetches what lies behind.
// Also what its product with any activations is too large by.
inline Sums dot_first(const int8_t* codes, int64_t width, const int8_t* x, Sums* offset) {
  Sums sums = {}, offsets = {};
  for (int64_t at = 0; at < width; at += kWidth) {
    const int8_t* p = codes + at;
    if (at % 64 == 0) {
      __builtin_prefetch(p + kSoon, 0, 3);
      __builtin_prefetch(p + kLater, 0, 2);
    }
    const Bytes row = load_bytes(p);
    sums = dot_signed(sums, load_bytes(x + at), row);
    if (kOffset) offsets = dot_signed(offsets, splat_offset(), row);
  }
  *offset = offsets;
  return sums;
}

// Some rows of activations times some of the table, which are in the cache.
template <int kRows, int kCount>
inline void dot_block(const int8_t* codes, int64_t width, const int8_t* x, Sums* results) {
  Sums sums[kRows][kCount] = {};
  for (int64_t at = 0; at < width; at += kWidth) {
    Bytes rows[kCount];
    for (int64_t r = 0; r < kCount; ++r) rows[r] = load_bytes(codes + r * width + at);
    for (int64_t i = 0; i < kRows; ++i) {
      const Bytes values = load_bytes(x + i * width + at);
      for (int64_t r = 0; r < kCount; ++r) sums[i][r] = dot_signed(sums[i][r], values, rows[r]);
    }
  }
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t r = 0; r < kCount; ++r) results[i * kCount + r] = sums[i][r];
  }
}

template <int kRows, int kCount>
inline void put(const TableInput& in, const TableRows& t, int64_t m, int64_t n, const Sums* sums,
                const Sums* offsets) {
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t r = 0; r < kCount; ++r) {
      const int32_t exact = total(subtract(sums[i * kCount + r], offsets[r]));
      t.y[(m + i) * t.stride + n + r] =
          static_cast<float>(exact) * (in.scale[m + i] * t.scale[n + r]);
    }
  }
}

template <int kRows, int kCount>
inline void multiply_block(const TableInput& in, const TableRows& t, int64_t m, int64_t n,
                           const Sums* offsets) {
  Sums sums[kRows * kCount];
  dot_block<kRows, kCount>(t.codes + n * in.width, in.width, in.codes + m * in.width, sums);
  put<kRows, kCount>(in, t, m, n, sums, offsets);
}

template <int kCount>
inline void multiply_group(const TableInput& in, const TableRows& t, int64_t n) {
  Sums sums[kCount], offsets[kCount];
  for (int64_t r = 0; r < kCount; ++r) {
    sums[r] = dot_first(t.codes + (n + r) * in.width, in.width, in.codes, offsets + r);
  }
  put<1, kCount>(in, t, 0, n, sums, offsets);
  int64_t m = 1;
  for (; m + kRowsTogether <= in.rows; m += kRowsTogether) {
    multiply_block<kRowsTogether, kCount>(in, t, m, n, offsets);
  }
  if (m + 2 <= in.rows) {
    multiply_block<2, kCount>(in, t, m, n, offsets);
    m += 2;
  }
  if (m < in.rows) multiply_block<1, kCount>(in, t, m, n, offsets);
}

void multiply(const TableInput& in, const TableRows& t) {
  int64_t n = t.first;
  for (; n + kGroup <= t.last; n += kGroup) {
    __builtin_prefetch(t.scale + n + 32, 0, 3);
    __builtin_prefetch(t.y + n + 32, 1, 3);
    multiply_group<kGroup>(in, t, n);
  }
  for (; n < t.last; ++n) multiply_group<1>(in, t, n);
}

}  // namespace

extern const TableTable TABLE(table) = {quantize<float>, quantize<uint16_t>, multiply, nullptr,
                                        nullptr};

}  // namespace bitttt
