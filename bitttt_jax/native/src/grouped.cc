#include "grouped.h"

#include "bytes.h"
#include "quantize.h"
#include "vector.h"

namespace bitttt {
namespace {

constexpr int64_t kLanes = kWidth / 4;  // sums of a vector
// Vectors of sums with other groups each; a wide vector has every group twice.
constexpr int64_t kSums = kLanes < kBlockGroups ? kBlockGroups / kLanes : 1;
constexpr int64_t kHalf = kBlockCodes / 2;
// How many bytes ahead of their use codes are fetched into the nearest cache, and into the second.
constexpr int64_t kSoon = 2 * 1024, kLater = 8 * 1024;

static_assert(kLanes == LANES, "vectors of sums and of floats are as long as each other");
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

template <typename T>
void quantize(const T* x, const GroupedInput& in, int64_t m) {
  const float largest = largest_magnitude(x, in.width);
  int8_t plain[kBlockValues];
  for (int64_t block = 0; block < in.blocks; ++block) {
    const int64_t left = in.width - block * kBlockValues;
    const int64_t count = left < kBlockValues ? left : kBlockValues;
    std::memset(plain, 0, sizeof plain);
    quantize_chunk(x + block * kBlockValues, count, kInt8Max / largest, plain);
    int8_t* codes = in.codes + (m * in.blocks + block) * kBlockValues;
    // Of each half first what meets the low bits, then what meets the high ones.
    for (int64_t group = 0; group < kBlockGroups; ++group) {
      for (int64_t step = 0; step < 8; ++step) {
        std::memcpy(codes + step * kHalf / 2 + 4 * group, plain + group * kGroupValues + 4 * step,
                    4);
      }
    }
    int32_t* sums = in.sums + (m * in.blocks + block) * kBlockSums;
    std::memset(sums, 0, kBlockSums * sizeof *sums);
    for (int64_t i = 0; i < kBlockValues; ++i) {
      sums[i / 4 % (kSums * kLanes)] += codes[i];
    }
  }
  in.scale[m] = largest * (1.0f / kInt8Max);
}

// The scales of the groups that vector s of sums belongs to.
inline Vector load_scales(const uint16_t* scale, int64_t s) {
#if LANES == 16
  typedef uint16_t Groups __attribute__((vector_size(2 * kBlockGroups), aligned(2), may_alias));
  const Groups g = reinterpret_cast<const Groups*>(scale)[s];
  return widen(__builtin_shufflevector(g, g, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7));
#else
  return load(scale + s * kLanes);
#endif
}

// A row of activations times one of the table. With kFetch it fetches the codes behind it.
template <bool kFetch>
inline float dot_row(const uint8_t* codes, const uint16_t* scale, int64_t blocks, const int8_t* x,
                     const int32_t* x_sums) {
  Bytes low;
  std::memset(&low, 15, sizeof low);
  Vector total[kSums] = {};
  for (int64_t block = 0; block < blocks; ++block) {
    Sums sums[kSums] = {};
    for (int64_t half = 0; half < kBlockCodes; half += kHalf) {
      if (kFetch) {
        __builtin_prefetch(codes + half + kSoon, 0, 3);
        __builtin_prefetch(codes + half + kLater, 0, 2);
      }
      for (int64_t at = 0; at < kHalf; at += kWidth) {
        const Bytes both = load_bytes(codes + half + at);
        Sums& here = sums[at / kWidth % kSums];
        here = dot(here, both & low, load_bytes(x + 2 * half + at));
        here = dot(here, (both >> 4) & low, load_bytes(x + 2 * half + kHalf + at));
      }
    }
    for (int64_t s = 0; s < kSums; ++s) {
      Integers offset;
      std::memcpy(&offset, x_sums + s * kLanes, sizeof offset);
      const Integers exact = reinterpret_cast<Integers>(sums[s]) - 8 * offset;
      total[s] += __builtin_convertvector(exact, Vector) * load_scales(scale, s);
    }
    codes += kBlockCodes;
    scale += kBlockGroups;
    x += kBlockValues;
    x_sums += kBlockSums;
  }
  float result = 0;
  for (int64_t s = 0; s < kSums; ++s) result += sum(total[s]);
  return result;
}

void multiply(const GroupedInput& in, const GroupedRows& t) {
  for (int64_t n = t.first; n < t.last; ++n) {
    const uint8_t* codes = t.codes + n * in.blocks * kBlockCodes;
    const uint16_t* scale = t.scale + n * in.blocks * kBlockGroups;
    for (int64_t m = 0; m < in.rows; ++m) {
      const int8_t* x = in.codes + m * in.blocks * kBlockValues;
      const int32_t* x_sums = in.sums + m * in.blocks * kBlockSums;
      // The first row of activations brings the codes into the cache.
      const float product = m == 0 ? dot_row<true>(codes, scale, in.blocks, x, x_sums)
                                   : dot_row<false>(codes, scale, in.blocks, x, x_sums);
      t.y[m * t.stride + n] = product * in.scale[m];
    }
  }
}

}  // namespace

extern const GroupedTable TABLE(grouped) = {quantize<float>, quantize<uint16_t>, multiply};

}  // namespace bitttt
