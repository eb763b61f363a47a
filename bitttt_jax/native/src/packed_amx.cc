// Several rows at once on the matrix registers of AMX: tiles of 16 rows of activations times 16
// columns of codes.

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "amx.h"
#include "half.h"
#include "packed.h"

namespace bitttt {
namespace {

constexpr int64_t kTile = kTileBytes;

template <int kField>
inline void store_field(const __m512i words[16], uint8_t* tile) {
  for (int i = 0; i < 16; ++i) {
    const __m512i codes = _mm512_srli_epi16(words[i], 2 * kField);
    _mm512_storeu_si512(tile + 64 * i, _mm512_and_si512(codes, _mm512_set1_epi8(3)));
  }
}

// 64 bytes of 16 columns as four tiles, field after field: line i has the codes 4 i to 4 i + 3 of
// all columns. What lies behind the task's columns is next, and fetched meanwhile.
inline void unpack_tiles(const Columns& c, int64_t first, int64_t at, uint8_t* tiles) {
  __m512i words[16];
  const __mmask64 inside = at + kStep <= c.row_bytes ? ~0ull : 0xffffffffull;
  for (int64_t i = 0; i < 16; ++i) {
    const int64_t n = first + i < c.last ? first + i : c.last - 1;
    const uint8_t* codes = c.codes + n * c.row_bytes + at;
    words[i] = _mm512_maskz_loadu_epi8(inside, codes);
    __builtin_prefetch(codes + kManyColumns * c.row_bytes, 0, 2);
  }
  transpose(words);
  store_field<0>(words, tiles);
  store_field<1>(words, tiles + kTile);
  store_field<2>(words, tiles + 2 * kTile);
  store_field<3>(words, tiles + 3 * kTile);
}

inline void write(float* y, __mmask16 inside, __m512 values) {
  _mm512_mask_storeu_ps(y, inside, values);
}
inline void write(uint16_t* y, __mmask16 inside, __m512 values) {
  const __m512i bits = _mm512_castps_si512(values);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
  const __m512i rounded = _mm512_mask_mov_epi32(up, is_nan, _mm512_set1_epi32(0x7fc00000));
  const __m256i half = _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
  _mm256_mask_storeu_epi16(y, inside, half);
}

// A tile of sums to the product's rows m and on, columns n and on.
template <typename T>
void put_tile(const int32_t* sums, const Activations& a, int64_t m, const Columns& c, int64_t n,
              Output<T> out) {
  if (n >= c.last) return;
  const int64_t columns = c.last - n;
  const __mmask16 inside = columns >= 16 ? 0xffff : (1u << columns) - 1;
  for (int64_t i = 0; i < 16 && m + i < a.rows; ++i) {
    const __m512i exact =
        _mm512_sub_epi32(_mm512_loadu_si512(sums + 16 * i), _mm512_set1_epi32(a.sum[m + i]));
    const __m512 scale = _mm512_set1_ps(a.scale[m + i] * c.scale);
    write(out.y + (m + i) * out.stride + n, inside,
          _mm512_mul_ps(_mm512_cvtepi32_ps(exact), scale));
  }
}

// Two tiles of rows (the second may be missing) times two tiles of columns.
template <bool kTwo>
inline void dot_tiles(const int8_t* x0, const int8_t* x1, const uint8_t* w0, const uint8_t* w1,
                      int64_t steps, int32_t* sums) {
  _tile_zero(0);
  _tile_zero(1);
  if (kTwo) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t step = 0; step < steps; ++step) {
    _tile_loadd(4, x0 + step * kTile, 64);
    _tile_loadd(6, w0 + step * kTile, 64);
    _tile_loadd(7, w1 + step * kTile, 64);
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 7);
    if (kTwo) {
      _tile_loadd(5, x1 + step * kTile, 64);
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    }
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
  if (kTwo) {
    _tile_stored(2, sums + 512, 64);
    _tile_stored(3, sums + 768, 64);
  }
}

// --- up to a tile of rows ----------------------------------------------------------------------

// 64 bytes of 16 columns, field after field: line n has the codes of column n.
inline void unpack_lines(const Columns& c, int64_t first, int64_t at, uint8_t* tiles) {
  const __mmask64 inside = at + kStep <= c.row_bytes ? ~0ull : 0xffffffffull;
  for (int64_t i = 0; i < 16; ++i) {
    const int64_t n = first + i < c.last ? first + i : c.last - 1;
    const uint8_t* codes = c.codes + n * c.row_bytes + at;
    const __m512i word = _mm512_maskz_loadu_epi8(inside, codes);
    __builtin_prefetch(codes + kManyColumns * c.row_bytes, 0, 2);
    const __m512i mask = _mm512_set1_epi8(3);
    uint8_t* line = tiles + i * kStep;
    _mm512_store_si512(line, _mm512_and_si512(word, mask));
    _mm512_store_si512(line + kTile, _mm512_and_si512(_mm512_srli_epi16(word, 2), mask));
    _mm512_store_si512(line + 2 * kTile, _mm512_and_si512(_mm512_srli_epi16(word, 4), mask));
    _mm512_store_si512(line + 3 * kTile, _mm512_and_si512(_mm512_srli_epi16(word, 6), mask));
  }
}

// Two tiles of columns times the only tile of rows, which lies as `arrange` has put it. Codes are
// unpacked a step before their use, when they have reached the cache.
template <typename T>
void multiply_tile(const Activations& a, const Columns& c, Output<T> out, int32_t* sums,
                   uint8_t* w) {
  _tile_zero(0);
  _tile_zero(1);
  const int8_t* x = a.codes;
  unpack_lines(c, c.first, 0, w);
  unpack_lines(c, c.first + 16, 0, w + 4 * kTile);
  for (int64_t at = 0; at < c.row_bytes; at += kStep) {
    const uint8_t* here = w + at / kStep % 2 * 8 * kTile;
    if (at + kStep < c.row_bytes) {
      uint8_t* next = w + (at / kStep + 1) % 2 * 8 * kTile;
      unpack_lines(c, c.first, at + kStep, next);
      unpack_lines(c, c.first + 16, at + kStep, next + 4 * kTile);
    }
    for (int64_t f = 0; f < 4; ++f, x += a.step_bytes()) {
      _tile_loadd(4, x, 4 * a.rows);
      _tile_loadd(6, here + f * kTile, 64);
      _tile_loadd(7, here + (4 + f) * kTile, 64);
      _tile_dpbusd(0, 6, 4);
      _tile_dpbusd(1, 7, 4);
    }
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
  for (int64_t half = 0; half < 2; ++half, sums += 256) {
    __m512i lines[16];
    for (int64_t i = 0; i < 16; ++i) lines[i] = _mm512_load_si512(sums + 16 * i);
    transpose(lines);
    for (int64_t i = 0; i < 16; ++i) _mm512_store_si512(sums + 16 * i, lines[i]);
    put_tile(sums, a, 0, c, c.first + 16 * half, out);
  }
}

// --- many rows ---------------------------------------------------------------------------------

template <typename T>
void multiply_tiles(const Activations& a, const Columns& c, Output<T> out, int32_t* sums,
                    uint8_t* w0) {
  uint8_t* w1 = w0 + a.steps * kTile;
  for (int64_t at = 0; at < a.steps * kStep / 4; at += kStep) {
    unpack_tiles(c, c.first, at, w0 + at / kStep * 4 * kTile);
    unpack_tiles(c, c.first + 16, at, w1 + at / kStep * 4 * kTile);
  }
  for (int64_t m = 0; m < a.rows; m += 32) {
    const bool two = m + 16 < a.rows;
    if (two) {
      dot_tiles<true>(a.row(m), a.row(m + 16), w0, w1, a.steps, sums);
    } else {
      dot_tiles<false>(a.row(m), nullptr, w0, w1, a.steps, sums);
    }
    put_tile(sums, a, m, c, c.first, out);
    put_tile(sums + 256, a, m, c, c.first + 16, out);
    if (!two) break;
    put_tile(sums + 512, a, m + 16, c, c.first, out);
    put_tile(sums + 768, a, m + 16, c, c.first + 16, out);
  }
}

template <typename T>
void multiply_many(const Activations& a, const Columns& c, Output<T> out, uint8_t* scratch) {
  scratch += -reinterpret_cast<uintptr_t>(scratch) % 64;
  int32_t* sums = reinterpret_cast<int32_t*>(scratch);
  TileConfig config;
  if (a.rows <= kTileRows) {
    config.line_bytes[0] = config.line_bytes[1] = config.line_bytes[4] = 4 * a.rows;
    _tile_loadconfig(&config);
    multiply_tile(a, c, out, sums, scratch + 4 * kTile);
  } else {
    _tile_loadconfig(&config);
    multiply_tiles(a, c, out, sums, scratch + 4 * kTile);
  }
  _tile_release();
}

}  // namespace

bool may_use_amx() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

void arrange_amx(const Activations& a) {
  if (a.rows > kTileRows) return;
  for (int64_t step = 0; step < a.steps; ++step) {
    int8_t* words = a.codes + step * a.step_bytes();
    arrange_words(words, kStep, a.rows, words, a.rows);
  }
}

void multiply_many_amx(const Activations& a, const Columns& c, Output<float> out,
                       uint8_t* scratch) {
  multiply_many(a, c, out, scratch);
}
void multiply_many_amx(const Activations& a, const Columns& c, Output<uint16_t> out,
                       uint8_t* scratch) {
  multiply_many(a, c, out, scratch);
}

}  // namespace bitttt
