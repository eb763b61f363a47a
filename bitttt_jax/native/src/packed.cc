#include "packed.h"

#include "bytes.h"
#include "quantize.h"
#include "vector.h"

namespace bitttt {
namespace {

constexpr int64_t kChunk = 32;  // consecutive activations that stay together
constexpr int64_t kGroup = 4;   // columns that are multiplied together
constexpr int64_t kRowsTogether = kWidth == 64 ? 4 : 2;
// How many bytes ahead of their use codes are fetched into the nearest cache, and into the second.
constexpr int64_t kSoon = 2 * 1024, kLater = 8 * 1024;

// --- activations ------------------------------------------------------------------------------

struct Rounding {
  float factor, scale;
};

template <typename T>
Rounding rounding_of(const T* x, int64_t width) {
  const float largest = largest_magnitude(x, width);
  return {kInt8Max / largest, largest * (1.0f / kInt8Max)};
}

// What is int8 already stays as it is.
inline Rounding rounding_of(const int8_t*, int64_t) { return {1.0f, 1.0f}; }

template <typename T>
void quantize(const T* x, const Activations& a, int64_t m) {
  const auto [factor, scale] = rounding_of(x, a.width);
  int8_t* row = a.row(m);
  int32_t sum = 0;
  for (int64_t chunk = 0; chunk < 2 * a.steps; ++chunk) {
    // Block after block, its chunks are met by the fields 3, 2, 1 and 0.
    const int64_t block = chunk / 4, step = block / 2 * 4 + 3 - chunk % 4;
    int8_t* codes = row + step * a.step_bytes() + block % 2 * kChunk;
    const int64_t left = a.width - chunk * kChunk, count = left < kChunk ? left : kChunk;
    if (count == kChunk) {
      sum += quantize_chunk(x + chunk * kChunk, kChunk, factor, codes);
    } else {
      std::memset(codes, 0, kChunk);
      if (count > 0) sum += quantize_chunk(x + chunk * kChunk, count, factor, codes);
    }
  }
  a.scale[m] = scale;
  a.sum[m] = sum;
}

// Some sums of row m, for the columns from n on, to where the product goes.
template <int kCount, typename T>
inline void put(Output<T> out, const Activations& a, int64_t m, const Columns& c, int64_t n,
                const Sums* sums) {
  T* y = out.y + m * out.stride + n;
  const float scale = a.scale[m] * c.scale;
  if constexpr (kCount == 4) {
    const Quad4 exact = totals(sums[0], sums[1], sums[2], sums[3]) - a.sum[m];
    const Quad values = __builtin_convertvector(exact, Quad) * scale;
    for (int r = 0; r < 4; ++r) narrow(values[r], y + r);
  } else {
    for (int r = 0; r < kCount; ++r) {
      narrow(static_cast<float>(total(sums[r]) - a.sum[m]) * scale, y + r);
    }
  }
}

// --- few rows ---------------------------------------------------------------------------------

constexpr int kFieldSums = kFieldsInPlace ? 4 : 1;

template <int kField>
inline void add_field(Sums* sums, Bytes codes, Bytes values) {
  Sums& sum = sums[kFieldsInPlace ? kField : 0];
  sum = dot(sum, field<kField>(codes), values);
}

inline Sums sum_of_fields(const Sums* sums) {
  if constexpr (kFieldsInPlace) {
    return add(add(sums[0], put_in_place<1>(sums[1])),
               add(put_in_place<2>(sums[2]), put_in_place<3>(sums[3])));
  } else {
    return sums[0];
  }
}

// The four fields of kWidth bytes of some rows of codes, x being what meets field 0.
template <int kCount, bool kHalf>
inline __attribute__((always_inline)) void add_codes(Sums (*sums)[kFieldSums], const uint8_t* codes,
                                                     int64_t row_bytes, const int8_t* x,
                                                     int64_t step_bytes) {
  const Bytes values[4] = {load_bytes(x), load_bytes(x + step_bytes),
                           load_bytes(x + 2 * step_bytes), load_bytes(x + 3 * step_bytes)};
  for (int r = 0; r < kCount; ++r) {
    const uint8_t* p = codes + r * row_bytes;
    const Bytes here = kHalf ? load_half(p) : load_bytes(p);
    add_field<0>(sums[r], here, values[0]);
    add_field<1>(sums[r], here, values[1]);
    add_field<2>(sums[r], here, values[2]);
    add_field<3>(sums[r], here, values[3]);
  }
}

// A row of activations times some rows of codes. With kFetch it fetches the codes that
// lie behind them, which are next.
template <int kCount, bool kFetch>
inline void dot_rows(const uint8_t* codes, int64_t row_bytes, const int8_t* x, int64_t step_bytes,
                     Sums* results) {
  Sums sums[kCount][kFieldSums];
#pragma GCC unroll 4
  for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 4
    for (int f = 0; f < kFieldSums; ++f) sums[r][f] = Sums{};
  }
  for (int64_t left = row_bytes; left > 0; left -= kStep) {
    if (kFetch) {
      for (int r = 0; r < kCount; ++r) {
        __builtin_prefetch(codes + r * row_bytes + kSoon, 0, 3);
        __builtin_prefetch(codes + r * row_bytes + kLater, 0, 2);
      }
    }
    if (left >= kStep) {
      for (int64_t part = 0; part < kStep; part += kWidth) {
        add_codes<kCount, false>(sums, codes + part, row_bytes, x + part, step_bytes);
      }
    } else if (kWidth > kBlockBytes) {
      add_codes<kCount, true>(sums, codes, row_bytes, x, step_bytes);
    } else {
      for (int64_t part = 0; part < kBlockBytes; part += kWidth) {
        add_codes<kCount, false>(sums, codes + part, row_bytes, x + part, step_bytes);
      }
    }
    codes += kStep;
    x += 4 * step_bytes;
  }
  for (int r = 0; r < kCount; ++r) results[r] = sum_of_fields(sums[r]);
}

template <int kCount, typename T>
inline void multiply_group(const Activations& a, const Columns& c, int64_t n, Output<T> out) {
  const uint8_t* codes = c.codes + n * c.row_bytes;
  __builtin_prefetch(out.y + n + 64, 1, 3);
  Sums sums[kCount];
  for (int64_t m = 0; m < a.rows; ++m) {
    // The first row of activations brings the codes into the cache, in their order in memory.
    if (m == 0) {
      for (int r = 0; r < kCount; ++r) {
        dot_rows<1, true>(codes + r * c.row_bytes, c.row_bytes, a.row(m), a.step_bytes(), sums + r);
      }
    } else {
      dot_rows<kCount, false>(codes, c.row_bytes, a.row(m), a.step_bytes(), sums);
    }
    put<kCount>(out, a, m, c, n, sums);
  }
}

template <typename T>
void multiply_few(const Activations& a, const Columns& c, Output<T> out) {
  int64_t n = c.first;
  for (; n + kGroup <= c.last; n += kGroup) multiply_group<kGroup>(a, c, n, out);
  for (; n < c.last; ++n) multiply_group<1>(a, c, n, out);
}

// --- many rows --------------------------------------------------------------------------------

template <int kField>
inline void unpack_field(Bytes codes, uint8_t* steps) {
  store_bytes(steps + kField * kStep, plain_field<kField>(codes));
}

// One row of codes as bytes, step after step.
inline void unpack_row(const uint8_t* codes, int64_t row_bytes, uint8_t* steps) {
  for (int64_t left = row_bytes; left > 0; left -= kStep) {
    for (int64_t part = 0; part < kStep; part += kWidth) {
      Bytes here = {};
      if (part + kWidth <= left) {
        here = load_bytes(codes + part);
      } else if (part < left) {
        here = load_half(codes + part);
      }
      unpack_field<0>(here, steps + part);
      unpack_field<1>(here, steps + part);
      unpack_field<2>(here, steps + part);
      unpack_field<3>(here, steps + part);
    }
    codes += kStep;
    steps += 4 * kStep;
  }
}

// Some rows of activations times some unpacked columns.
template <int kRows, int kCount>
inline void dot_block(const Activations& a, int64_t m, const uint8_t* columns, Sums* sums) {
  const int8_t* x = a.row(m);
  Sums local[kRows][kCount] = {};
  for (int64_t step = 0; step < a.steps; ++step) {
    for (int64_t part = 0; part < kStep; part += kWidth) {
      Bytes codes[kCount];
      for (int64_t r = 0; r < kCount; ++r) {
        codes[r] = load_bytes(columns + (r * a.steps + step) * kStep + part);
      }
      for (int64_t i = 0; i < kRows; ++i) {
        const Bytes values = load_bytes(x + step * a.step_bytes() + i * kStep + part);
        for (int64_t r = 0; r < kCount; ++r) local[i][r] = dot(local[i][r], codes[r], values);
      }
    }
  }
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t r = 0; r < kCount; ++r) sums[i * kCount + r] = local[i][r];
  }
}

template <int kRows, int kCount, typename T>
inline void multiply_block(const Activations& a, int64_t m, const Columns& c, int64_t n,
                           const uint8_t* columns, Output<T> out) {
  Sums sums[kRows * kCount];
  dot_block<kRows, kCount>(a, m, columns, sums);
  for (int64_t i = 0; i < kRows; ++i) put<kCount>(out, a, m + i, c, n, sums + i * kCount);
}

template <int kRows, typename T>
void multiply_rows(const Activations& a, int64_t m, const Columns& c, const uint8_t* columns,
                   Output<T> out) {
  const int64_t column_bytes = a.steps * kStep;
  int64_t n = c.first;
  for (; n + kGroup <= c.last; n += kGroup, columns += kGroup * column_bytes) {
    multiply_block<kRows, kGroup>(a, m, c, n, columns, out);
  }
  for (; n < c.last; ++n, columns += column_bytes) {
    multiply_block<kRows, 1>(a, m, c, n, columns, out);
  }
}

template <typename T>
void multiply_many(const Activations& a, const Columns& c, Output<T> out, uint8_t* scratch) {
  const int64_t count = c.last - c.first;
  for (int64_t r = 0; r < count; ++r) {
    unpack_row(c.codes + (c.first + r) * c.row_bytes, c.row_bytes, scratch + r * a.steps * kStep);
  }
  int64_t m = 0;
  for (; m + kRowsTogether <= a.rows; m += kRowsTogether) {
    multiply_rows<kRowsTogether>(a, m, c, scratch, out);
  }
  for (; m < a.rows; ++m) multiply_rows<1>(a, m, c, scratch, out);
}

}  // namespace

extern const PackedTable TABLE(packed) = {
    quantize<float>,        quantize<uint16_t>, quantize<int8_t>, multiply_few<float>,
    multiply_few<uint16_t>, kTileRows,          nullptr,          multiply_many<float>,
    multiply_many<uint16_t>};

}  // namespace bitttt
