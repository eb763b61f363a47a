// Vectors of bytes, and their dot products: what the instruction set has of them.
//
// kFieldsInPlace: whether `field` leaves the two bits where they are in their byte, so that the
// codes of field f come out times 4^f. That spares a shift where there are registers for sums of
// their own for every field, of 32 bits.
//
// dot: adds u * s, four products that follow one another to each sum; u may not be beyond 127.
// dot_signed: adds x * w, both signed, neither -128. kOffset: x must have 128 added to it, and the
// result is too large by `dot_signed(.., splat_offset(), w)`.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace bitttt {
namespace {

typedef int32_t Quad4 __attribute__((vector_size(16)));

#if defined(__AVX512VNNI__)

constexpr int64_t kWidth = 64;
constexpr bool kFieldsInPlace = true;
constexpr bool kOffset = true;
typedef __m512i Bytes;
typedef __m512i Sums;
inline Bytes load_bytes(const void* p) { return _mm512_loadu_si512(p); }
inline Bytes load_half(const void* p) {
  return _mm512_zextsi256_si512(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
inline void store_bytes(void* p, Bytes x) { _mm512_storeu_si512(p, x); }
template <int kField>
inline Bytes field(Bytes codes) {
  return _mm512_and_si512(codes, _mm512_set1_epi8(static_cast<char>(3 << 2 * kField)));
}
template <int kField>
inline Bytes plain_field(Bytes codes) {
  return _mm512_and_si512(_mm512_srli_epi16(codes, 2 * kField), _mm512_set1_epi8(3));
}
inline Sums dot(Sums sums, Bytes u, Bytes s) { return _mm512_dpbusd_epi32(sums, u, s); }
inline Sums dot_signed(Sums sums, Bytes x, Bytes w) { return dot(sums, x, w); }
inline Bytes splat_offset() { return _mm512_set1_epi8(-128); }
inline Sums subtract(Sums a, Sums b) { return _mm512_sub_epi32(a, b); }
template <int kField>
inline Sums put_in_place(Sums sums) {
  return _mm512_srai_epi32(sums, 2 * kField);
}
inline Sums add(Sums a, Sums b) { return _mm512_add_epi32(a, b); }
inline int32_t total(Sums sums) { return _mm512_reduce_add_epi32(sums); }
inline Quad4 totals(Sums a, Sums b, Sums c, Sums d) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  const __m512i abcd =
      _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i half =
      _mm256_add_epi32(_mm512_castsi512_si256(abcd), _mm512_extracti64x4_epi64(abcd, 1));
  return reinterpret_cast<Quad4>(
      _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
}

#elif defined(__AVX2__)

constexpr int64_t kWidth = 32;
constexpr bool kFieldsInPlace = false;
typedef __m256i Bytes;
typedef __m256i Sums;
inline Bytes load_bytes(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
inline Bytes load_half(const void* p) { return load_bytes(p); }  // never wanted
inline void store_bytes(void* p, Bytes x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
template <int kField>
inline Bytes plain_field(Bytes codes) {
  return _mm256_and_si256(_mm256_srli_epi16(codes, 2 * kField), _mm256_set1_epi8(3));
}
template <int kField>
inline Bytes field(Bytes codes) {
  return plain_field<kField>(codes);
}
#if defined(__AVXVNNI__)
constexpr bool kOffset = true;
inline Sums dot(Sums sums, Bytes u, Bytes s) { return _mm256_dpbusd_avx_epi32(sums, u, s); }
inline Sums dot_signed(Sums sums, Bytes x, Bytes w) { return dot(sums, x, w); }
#else
constexpr bool kOffset = false;
inline Sums dot_signed(Sums sums, Bytes x, Bytes w) {
  const auto low = [](Bytes b) { return _mm256_cvtepi8_epi16(_mm256_castsi256_si128(b)); };
  const auto high = [](Bytes b) { return _mm256_cvtepi8_epi16(_mm256_extracti128_si256(b, 1)); };
  const __m256i pairs = _mm256_madd_epi16(low(x), low(w));
  return _mm256_add_epi32(sums, _mm256_add_epi32(pairs, _mm256_madd_epi16(high(x), high(w))));
}
inline Sums dot(Sums sums, Bytes u, Bytes s) {
  const __m256i pairs = _mm256_maddubs_epi16(u, s);
  return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif
template <int kField>
inline Sums put_in_place(Sums sums) {
  return _mm256_srai_epi32(sums, 2 * kField);
}
inline Sums add(Sums a, Sums b) { return _mm256_add_epi32(a, b); }
inline Sums subtract(Sums a, Sums b) { return _mm256_sub_epi32(a, b); }
inline Bytes splat_offset() { return _mm256_set1_epi8(-128); }
inline int32_t total(Sums sums) {
  const __m128i quad =
      _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  const __m128i pair = _mm_add_epi32(quad, _mm_shuffle_epi32(quad, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(pair, _mm_shuffle_epi32(pair, 0xb1)));
}

inline Quad4 totals(Sums a, Sums b, Sums c, Sums d) {
  const __m256i ab = _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
  const __m256i cd = _mm256_add_epi32(_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
  const __m256i abcd =
      _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
  return reinterpret_cast<Quad4>(
      _mm_add_epi32(_mm256_castsi256_si128(abcd), _mm256_extracti128_si256(abcd, 1)));
}

#else

constexpr int64_t kWidth = 16;
constexpr bool kFieldsInPlace = false;
typedef uint8_t Bytes __attribute__((vector_size(16)));
inline Bytes load_bytes(const void* p) {
  Bytes x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline Bytes load_half(const void* p) { return load_bytes(p); }  // never wanted
inline void store_bytes(void* p, Bytes x) { std::memcpy(p, &x, sizeof x); }
template <int kField>
inline Bytes plain_field(Bytes codes) {
  return (codes >> 2 * kField) & 3;
}
template <int kField>
inline Bytes field(Bytes codes) {
  return plain_field<kField>(codes);
}
typedef int32_t Sums __attribute__((vector_size(16)));
template <int kField>
inline Sums put_in_place(Sums sums) {
  return sums >> 2 * kField;
}
inline Sums add(Sums a, Sums b) { return a + b; }
inline int32_t total(Sums sums) { return sums[0] + sums[1] + sums[2] + sums[3]; }
inline Quad4 totals(Sums a, Sums b, Sums c, Sums d) {
  return Quad4{total(a), total(b), total(c), total(d)};
}
inline Sums subtract(Sums a, Sums b) { return a - b; }
constexpr bool kOffset = false;
inline Bytes splat_offset() { return Bytes{}; }
#if defined(__ARM_FEATURE_DOTPROD)
inline Sums dot_signed(Sums sums, Bytes x, Bytes w) {
  return (Sums)vdotq_s32((int32x4_t)sums, (int8x16_t)x, (int8x16_t)w);
}
#elif defined(__SSE2__)
inline Sums dot_signed(Sums sums, Bytes x, Bytes w) {
  const auto low = [](Bytes b) {
    return _mm_srai_epi16(_mm_unpacklo_epi8(__m128i{}, (__m128i)b), 8);
  };
  const auto high = [](Bytes b) {
    return _mm_srai_epi16(_mm_unpackhi_epi8(__m128i{}, (__m128i)b), 8);
  };
  const __m128 pairs[2] = {_mm_castsi128_ps(_mm_madd_epi16(low(x), low(w))),
                           _mm_castsi128_ps(_mm_madd_epi16(high(x), high(w)))};
  return sums + (Sums)_mm_shuffle_ps(pairs[0], pairs[1], 0x88) +
         (Sums)_mm_shuffle_ps(pairs[0], pairs[1], 0xdd);
}
#else
inline Sums dot_signed(Sums sums, Bytes x, Bytes w) {
  typedef int8_t Signed __attribute__((vector_size(16)));
  typedef int16_t Whole __attribute__((vector_size(32)));
  const Whole p =
      __builtin_convertvector((Signed)x, Whole) * __builtin_convertvector((Signed)w, Whole);
  for (int i = 0; i < 16; ++i) sums[i / 4] += p[i];
  return sums;
}
#endif
// Codes are below 128.
inline Sums dot(Sums sums, Bytes u, Bytes s) { return dot_signed(sums, u, s); }

#endif

}  // namespace
}  // namespace bitttt
