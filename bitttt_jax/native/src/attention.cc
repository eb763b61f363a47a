#include "attention.h"

#include "exp.h"
#include "half.h"

namespace bitttt {
namespace {

constexpr int64_t kSlots = 64;      // that are looked at together: their values stay in the cache
constexpr int64_t kSlotsAhead = 4;  // of their use, keys are fetched from memory
constexpr float kNothing = -3e38f;  // below every score

struct Seen {
  int64_t count = 0;
  int32_t slot[kSlots];
};

template <typename T>
Seen seen_slots(const Attention<T>& a, int64_t first) {
  Seen seen;
  for (int64_t s = first; s < first + kSlots && s < a.slots; ++s) {
    const int32_t age = a.query_position - a.key_position[s];
    const bool inside = a.key_position[s] >= 0 && age >= 0 && (a.window == 0 || age < a.window);
    seen.slot[seen.count] = static_cast<int32_t>(s);
    seen.count += inside;
  }
  return seen;
}

template <typename T>
inline void fetch(const T* p, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(p + i, 0, 3);
}

// Scores of some queries of a group with one key.
template <int kCount, typename T>
inline void score(const T* key, int64_t width, const float* query, float* scores) {
  Vector products[kCount] = {};
  for (int64_t d = 0; d < width; d += LANES) {
    const Vector values = load(key + d);
    for (int r = 0; r < kCount; ++r) products[r] += load(query + r * width + d) * values;
  }
  for (int r = 0; r < kCount; ++r) scores[r * kSlots] = sum(products[r]);
}

// The scores of all heads with the keys that are seen, [heads, kSlots], slot by slot as they lie.
template <typename T>
void score_all(const Attention<T>& a, const Seen& seen, const float* query, float* scores) {
  const int64_t stride = a.groups * a.width;
  for (int64_t i = 0; i < seen.count; ++i) {
    const int64_t ahead = i + kSlotsAhead < seen.count ? i + kSlotsAhead : i;
    fetch(a.key + seen.slot[ahead] * stride, stride);
    fetch(a.value + seen.slot[i] * stride, stride);
    for (int64_t g = 0; g < a.groups; ++g) {
      const T* key = a.key + seen.slot[i] * stride + g * a.width;
      int64_t r = g * a.queries;
      const int64_t end = r + a.queries;
      for (; r + 4 <= end; r += 4) {
        score<4>(key, a.width, query + r * a.width, scores + r * kSlots + i);
      }
      for (; r < end; ++r) score<1>(key, a.width, query + r * a.width, scores + r * kSlots + i);
    }
  }
}

// Turns a head's scores into exp(score - most), and scales what was summed with a smaller `most`.
void exponentials(float* scores, int64_t count, int64_t width, float* most, float* total,
                  float* sums) {
  for (int64_t i = count; i % LANES; ++i) scores[i] = kNothing;
  Vector largest = splat(*most);
  for (int64_t i = 0; i < count; i += LANES) {
    const Vector s = load(scores + i);
    largest = s > largest ? s : largest;
  }
  const float before = *most;
  for (int i = 0; i < LANES; ++i) *most = largest[i] > *most ? largest[i] : *most;
  if (*most > before) {
    const Vector factor = exp_of_negative(splat(before) - splat(*most));
    *total *= factor[0];
    for (int64_t d = 0; d < width; d += LANES) store(sums + d, load(sums + d) * factor);
  }
  Vector added = {};
  for (int64_t i = 0; i < count; i += LANES) {
    const Vector s = load(scores + i);
    const Vector e = s > splat(kNothing) ? exp_of_negative(s - splat(*most)) : Vector{};
    store(scores + i, e);
    added += e;
  }
  *total += sum(added);
}

// Adds the values of a group times the weights of some of its heads, kParts vectors of the width.
template <int kCount, int kParts, typename T>
inline void add_values(const Attention<T>& a, const Seen& seen, const T* value,
                       const float* weights, float* sums) {
  Vector local[kCount][kParts];
  for (int r = 0; r < kCount; ++r) {
    for (int p = 0; p < kParts; ++p) local[r][p] = load(sums + r * a.width + p * LANES);
  }
  for (int64_t i = 0; i < seen.count; ++i) {
    const T* row = value + seen.slot[i] * a.groups * a.width;
    Vector values[kParts];
    for (int p = 0; p < kParts; ++p) values[p] = load(row + p * LANES);
    for (int r = 0; r < kCount; ++r) {
      const Vector weight = splat(weights[r * kSlots + i]);
      for (int p = 0; p < kParts; ++p) local[r][p] += weight * values[p];
    }
  }
  for (int r = 0; r < kCount; ++r) {
    for (int p = 0; p < kParts; ++p) store(sums + r * a.width + p * LANES, local[r][p]);
  }
}

template <int kCount, typename T>
void add_all_values(const Attention<T>& a, const Seen& seen, int64_t group, int64_t head,
                    const float* scores) {
  const T* value = a.value + group * a.width;
  const float* weights = scores + head * kSlots;
  float* sums = a.sum + head * a.width;
  int64_t d = 0;
  for (; d + 4 * LANES <= a.width; d += 4 * LANES) {
    add_values<kCount, 4>(a, seen, value + d, weights, sums + d);
  }
  for (; d < a.width; d += LANES) add_values<kCount, 1>(a, seen, value + d, weights, sums + d);
}

template <typename T>
void attend(const Attention<T>& a) {
  static thread_local float query[kMostHeads * kMostWidth], scores[kMostHeads * kSlots];
  const int64_t heads = a.groups * a.queries;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(a.width));
  for (int64_t i = 0; i < heads * a.width; ++i) {
    query[i] = widen(a.query[i]) * scale;
    a.sum[i] = 0;
  }
  for (int64_t h = 0; h < heads; ++h) {
    a.most[h] = kNothing;
    a.total[h] = 0;
  }
  for (int64_t first = 0; first < a.slots; first += kSlots) {
    const Seen seen = seen_slots(a, first);
    if (seen.count == 0) continue;
    score_all(a, seen, query, scores);
    for (int64_t h = 0; h < heads; ++h) {
      exponentials(scores + h * kSlots, seen.count, a.width, a.most + h, a.total + h,
                   a.sum + h * a.width);
    }
    for (int64_t g = 0; g < a.groups; ++g) {
      int64_t h = g * a.queries;
      const int64_t end = h + a.queries;
      for (; h + 4 <= end; h += 4) add_all_values<4>(a, seen, g, h, scores);
      for (; h < end; ++h) add_all_values<1>(a, seen, g, h, scores);
    }
  }
}

}  // namespace

extern const AttentionTable TABLE(attention) = {attend<float>, attend<uint16_t>};

}  // namespace bitttt
