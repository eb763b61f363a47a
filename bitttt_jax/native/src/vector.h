// Vectors as wide as the instruction set has them.
//
// The sources that include this are compiled once for each instruction set: SET is its name, LANES
// the floats of a vector. What they define is in anonymous namespaces, but for a table of functions
// named TABLE(...): no code compiled for one instruction set may be linked into another's.

#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define JOIN_NAMES(a, b) a##_##b
#define JOIN(a, b) JOIN_NAMES(a, b)
#define TABLE(name) JOIN(name, SET)

namespace bitttt {
namespace {

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float Quad __attribute__((vector_size(16)));
typedef float UnalignedQuad __attribute__((vector_size(16), aligned(4), may_alias));

inline Vector load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
inline void store(float* p, Vector x) { *reinterpret_cast<Unaligned*>(p) = x; }
inline Vector splat(float x) { return x - Vector{}; }

// uint16_t stands for bfloat16.
typedef uint16_t Half __attribute__((vector_size(2 * LANES)));
typedef uint16_t UnalignedHalf __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint32_t Word __attribute__((vector_size(4 * LANES)));

inline Vector widen(Half half) {
#if LANES == 16  // GCC makes five instructions of the conversion
  const Word wide =
      reinterpret_cast<Word>(_mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(half)));
#else
  const Word wide = __builtin_convertvector(half, Word);
#endif
  return reinterpret_cast<Vector>(wide << 16);
}
inline Vector load(const uint16_t* p) { return widen(*reinterpret_cast<const UnalignedHalf*>(p)); }

inline Vector load(const int8_t* p) {
  typedef int8_t Codes __attribute__((vector_size(LANES), aligned(1), may_alias));
  typedef int32_t Integers __attribute__((vector_size(4 * LANES)));
  const Codes codes = *reinterpret_cast<const Codes*>(p);
#if LANES == 16  // GCC makes many instructions of the conversion
  const Integers wide =
      reinterpret_cast<Integers>(_mm512_cvtepi8_epi32(reinterpret_cast<__m128i>(codes)));
#else
  const Integers wide = __builtin_convertvector(codes, Integers);
#endif
  return __builtin_convertvector(wide, Vector);
}

// Rounds to nearest, ties to even.
inline void store(uint16_t* p, Vector x) {
  const Word bits = reinterpret_cast<Word>(x);
  const Word rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const Word not_a_number = reinterpret_cast<Word>(x != x);
  const Word result = (not_a_number & 0x7fc00000) | (~not_a_number & rounded);
  *reinterpret_cast<UnalignedHalf*>(p) = __builtin_convertvector(result >> 16, Half);
}

// Sums of every fourth element.
inline Quad quad_sums(Vector x) {
#if LANES == 16
  x += __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
#endif
#if LANES >= 8
  const Quad halves[2] = {__builtin_shufflevector(x, x, 0, 1, 2, 3),
                          __builtin_shufflevector(x, x, 4, 5, 6, 7)};
  return halves[0] + halves[1];
#else
  return x;
#endif
}

inline float sum(Vector x) {
  const Quad quad = quad_sums(x);
  const Quad pairs = quad + __builtin_shufflevector(quad, quad, 2, 3, 0, 1);
  return pairs[0] + pairs[1];
}

// The sums of four vectors.
inline Quad sums(Vector a, Vector b, Vector c, Vector d) {
  const auto pairs = [](Quad x, Quad y) {
    return __builtin_shufflevector(x, y, 0, 4, 1, 5) + __builtin_shufflevector(x, y, 2, 6, 3, 7);
  };
  const Quad ab = pairs(quad_sums(a), quad_sums(b)), cd = pairs(quad_sums(c), quad_sums(d));
  return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}

}  // namespace
}  // namespace bitttt
