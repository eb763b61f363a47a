// Several rows at once on the matrix registers of AMX: tiles of 16 rows of the table, as they lie
// in memory, times a tile of activations.

#include <cstring>

#include "amx.h"
#include "table.h"

namespace bitttt {
namespace {

constexpr int64_t kLine = 64;  // bytes

// 16 rows of the product, which is [table rows, activations]: the last column is what all others
// are too large by.
inline void put_tile(const TableInput& in, const TableRows& t, int64_t n, int32_t* sums) {
  __m512i lines[16];
  for (int64_t i = 0; i < 16; ++i) lines[i] = _mm512_load_si512(sums + 16 * i);
  transpose(lines);
  const __m512 scale = _mm512_loadu_ps(t.scale + n);
  for (int64_t m = 0; m < in.rows; ++m) {
    const __m512 exact = _mm512_cvtepi32_ps(_mm512_sub_epi32(lines[m], lines[in.rows]));
    const __m512 both = _mm512_mul_ps(_mm512_set1_ps(in.scale[m]), scale);
    _mm512_storeu_ps(t.y + m * t.stride + n, _mm512_mul_ps(exact, both));
  }
}

// Two tiles of the table; those behind them are next, and fetched meanwhile.
inline void multiply_tiles(const TableInput& in, const TableRows& t, int64_t n, int32_t* sums) {
  const int64_t stride = 4 * (in.rows + 1);
  const int8_t *codes = t.codes + n * in.width, *x = in.arranged;
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t at = 0; at < in.width; at += kLine, x += 16 * stride) {
    for (int64_t i = 0; i < kArrangedGroup; ++i) {
      __builtin_prefetch(codes + (kArrangedGroup + i) * in.width + at, 0, 2);
    }
    _tile_loadd(4, x, stride);
    _tile_loadd(6, codes + at, in.width);
    _tile_loadd(7, codes + 16 * in.width + at, in.width);
    _tile_dpbsud(0, 6, 4);
    _tile_dpbsud(1, 7, 4);
  }
  _tile_stored(0, sums, kLine);
  _tile_stored(1, sums + 256, kLine);
  put_tile(in, t, n, sums);
  put_tile(in, t, n + 16, sums + 256);
}

}  // namespace

// The activations have 128 added to them; a further one of 128s gives what that adds to a product.
void arrange_table_amx(const TableInput& in) {
  const int64_t stride = in.rows + 1;
  for (int64_t at = 0; at < in.width; at += kLine) {
    int8_t* tiles = in.arranged + at * stride;
    arrange_words(in.codes + at, in.width, in.rows, tiles, stride);
    for (int64_t i = 0; i < 16; ++i) std::memset(tiles + 4 * (i * stride + in.rows), 128, 4);
  }
}

void multiply_table_amx(const TableInput& in, const TableRows& t) {
  alignas(64) int32_t sums[512];
  TileConfig config;
  config.line_bytes[0] = config.line_bytes[1] = config.line_bytes[4] = 4 * (in.rows + 1);
  _tile_loadconfig(&config);
  int64_t n = t.first;
  for (; n + kArrangedGroup <= t.last; n += kArrangedGroup) multiply_tiles(in, t, n, sums);
  _tile_release();
  TableRows rest = t;
  rest.first = n;
  table_avx512vnni.multiply(in, rest);
}

}  // namespace bitttt
