// What the kernels for AMX share.

#pragma once

#include <immintrin.h>

#include <cstdint>

namespace bitttt {
namespace {

constexpr int64_t kTileBytes = 1024;

// Eight tiles of 16 lines of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t line_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t lines[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Swaps rows and columns of a matrix of 16 x 16 words.
inline void transpose(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// Activations as tiles want them: of every 64 values of all rows, [rows, 16] words become
// [16, stride], every fourth value of all rows side by side.
inline void arrange_words(const int8_t* words, int64_t row_bytes, int64_t rows, int8_t* tiles,
                          int64_t stride) {
  const __mmask16 inside = rows == 16 ? 0xffff : (1u << rows) - 1;
  __m512i lines[16] = {};
  for (int64_t m = 0; m < rows; ++m) lines[m] = _mm512_loadu_si512(words + m * row_bytes);
  transpose(lines);
  for (int64_t i = 0; i < 16; ++i) {
    _mm512_mask_storeu_epi32(tiles + 4 * stride * i, inside, lines[i]);
  }
}

}  // namespace
}  // namespace bitttt
