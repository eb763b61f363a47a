#include "attention.h"

#include "exp.h"
#include "half.h"

namespace bitttt {
namespace {

constexpr int64_t kSlots = 64;      // that are looked at together: their values stay in the cache
constexpr int64_t kSlotsAhead = 6;  // of their use, the first keys are fetched from memory
constexpr int64_t kSlotsNext = 2;   // ahead, keys are fetched into the nearest cache
constexpr float kNothing = -3e38f;  // below every score

struct Seen {
  int64_t count = 0;
  int32_t slot[kSlots];
};

template <typename T, typename C>
Seen seen_slots(const Attention<T, C>& a, int64_t first) {
  Seen seen;
  for (int64_t s = first; s < first + kSlots && s < a.slots; ++s) {
    const int32_t age = a.query_position - a.key_position[s];
    const bool inside = a.key_position[s] >= 0 && age >= 0 && (a.window == 0 || age < a.window);
    seen.slot[seen.count] = static_cast<int32_t>(s);
    seen.count += inside;
  }
  return seen;
}

// Fetches `count` values of memory, into the second cache.
template <typename T>
inline void fetch(const T* p, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(p + i, 0, 2);
}

// The keys of the next slots, which are fetched bit by bit while the values of these are used.
template <typename C>
struct Ahead {
  const C *next, *end;

  void fetch_some() {
    if (next >= end) return;
    fetch(next, 64);
    next += 64;
  }
};

// Heads of a slot's scores lie side by side: as many as fill vectors.
inline int64_t score_stride(int64_t heads) { return (heads + LANES - 1) / LANES * LANES; }

// Scores of some queries of a group with one key. Meanwhile a key that is in the second cache comes
// into the nearest, and the value of the same slot from memory: line by line, since many fetches
// at once would hold up the loads between them.
template <int kCount, typename C>
inline void score(const C* key, const C* next_key, const C* value, int64_t width,
                  const float* query, float* scores) {
  Vector products[kCount] = {};
  for (int64_t d = 0; d < width; d += LANES) {
    if (d * sizeof(C) % 64 == 0) {
      __builtin_prefetch(value + d, 0, 2);
      __builtin_prefetch(next_key + d, 0, 3);
    }
    const Vector values = load(key + d);
    for (int r = 0; r < kCount; ++r) products[r] += load(query + r * width + d) * values;
  }
  if constexpr (kCount == 4) {
    const Quad all = sums(products[0], products[1], products[2], products[3]);
    *reinterpret_cast<UnalignedQuad*>(scores) = all;
  } else {
    for (int r = 0; r < kCount; ++r) scores[r] = sum(products[r]);
  }
}

// The scores of all heads with the keys that are seen, slot by slot as they lie.
template <typename T, typename C>
void score_all(const Attention<T, C>& a, const Seen& seen, const float* query, float* scores) {
  const int64_t slot_size = a.groups * a.width, stride = score_stride(a.groups * a.queries);
  for (int64_t i = 0; i < seen.count; ++i) {
    const int64_t slot = seen.slot[i];
    if (slot < kSlots && i + kSlotsAhead < seen.count) {
      fetch(a.key + seen.slot[i + kSlotsAhead] * slot_size, slot_size);
    }
    for (int64_t g = 0; g < a.groups; ++g) {
      const int64_t at = slot * slot_size + g * a.width;
      const C *key = a.key + at, *next_key = key + kSlotsNext * slot_size, *value = a.value + at;
      int64_t r = g * a.queries;
      const int64_t end = r + a.queries;
      for (; r + 4 <= end; r += 4) {
        score<4>(key, next_key, value, a.width, query + r * a.width, scores + i * stride + r);
      }
      for (; r < end; ++r) {
        score<1>(key, next_key, value, a.width, query + r * a.width, scores + i * stride + r);
      }
      if constexpr (sizeof(C) == 1) {
        const float scale = a.key_scale[slot * a.groups + g];
        for (r = g * a.queries; r < end; ++r) scores[i * stride + r] *= scale;
      }
    }
  }
}

// Turns some heads' scores into exp(score - most), and scales what was summed with a smaller
// `most`.
template <typename T, typename C>
void exponentials(const Attention<T, C>& a, int64_t count, int64_t head, float* scores) {
  const int64_t heads = a.groups * a.queries, stride = score_stride(heads);
  const int64_t here = heads - head < LANES ? heads - head : LANES;
  float padded[LANES] = {};
  for (int64_t h = 0; h < here; ++h) padded[h] = a.most[head + h];
  const Vector before = load(padded);
  Vector most = before;
  for (int64_t i = 0; i < count; ++i) {
    const Vector s = load(scores + i * stride + head);
    most = s > most ? s : most;
  }
  Vector total = {};
  for (int64_t i = 0; i < count; ++i) {
    float* p = scores + i * stride + head;
    const Vector e = exp_of_negative(load(p) - most);
    store(p, e);
    total += e;
  }
  const Vector factor = exp_of_negative(before - most);
  for (int64_t h = 0; h < here; ++h) {
    a.total[head + h] = a.total[head + h] * factor[h] + total[h];
    if (most[h] == before[h]) continue;
    a.most[head + h] = most[h];
    float* sums = a.sum + (head + h) * a.width;
    for (int64_t d = 0; d < a.width; d += LANES) store(sums + d, load(sums + d) * factor[h]);
  }
}

// Adds the values of a group times the weights of some of its heads, kParts vectors of the width
// from `offset` on.
template <int kCount, int kParts, typename T, typename C>
inline void add_values(const Attention<T, C>& a, const Seen& seen, int64_t group, int64_t d,
                       const float* weights, float* sums, Ahead<C>& ahead) {
  const int64_t slot_size = a.groups * a.width, stride = score_stride(a.groups * a.queries);
  Vector local[kCount][kParts];
  for (int r = 0; r < kCount; ++r) {
    for (int p = 0; p < kParts; ++p) local[r][p] = load(sums + r * a.width + p * LANES);
  }
  for (int64_t i = 0; i < seen.count; ++i) {
    const int64_t at = seen.slot[i] * slot_size + group * a.width + d;
    ahead.fetch_some();
    Vector values[kParts];
    for (int p = 0; p < kParts; ++p) values[p] = load(a.value + at + p * LANES);
    if constexpr (sizeof(C) == 1) {
      const Vector scale = splat(a.value_scale[seen.slot[i] * a.groups + group]);
      for (int p = 0; p < kParts; ++p) values[p] *= scale;
    }
    for (int r = 0; r < kCount; ++r) {
      const Vector weight = splat(weights[i * stride + r]);
      for (int p = 0; p < kParts; ++p) local[r][p] += weight * values[p];
    }
  }
  for (int r = 0; r < kCount; ++r) {
    for (int p = 0; p < kParts; ++p) store(sums + r * a.width + p * LANES, local[r][p]);
  }
}

template <int kCount, typename T, typename C>
void add_all_values(const Attention<T, C>& a, const Seen& seen, int64_t group, int64_t head,
                    const float* scores, Ahead<C>& ahead) {
  float* sums = a.sum + head * a.width;
  int64_t d = 0;
  for (; d + 4 * LANES <= a.width; d += 4 * LANES) {
    add_values<kCount, 4>(a, seen, group, d, scores + head, sums + d, ahead);
  }
  for (; d < a.width; d += LANES) {
    add_values<kCount, 1>(a, seen, group, d, scores + head, sums + d, ahead);
  }
}

template <typename T, typename C>
void attend(const Attention<T, C>& a) {
  alignas(64) static thread_local float query[kMostHeads * kMostWidth], scores[kSlots * kMostHeads];
  const int64_t heads = a.groups * a.queries, slot_size = a.groups * a.width;
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
    for (int64_t h = 0; h < heads; h += LANES) exponentials(a, seen.count, h, scores);
    const auto at_most = [&](int64_t slot) { return slot < a.slots ? slot : a.slots; };
    Ahead<C> ahead = {a.key + at_most(first + kSlots) * slot_size,
                      a.key + at_most(first + 2 * kSlots) * slot_size};
    for (int64_t g = 0; g < a.groups; ++g) {
      int64_t h = g * a.queries;
      const int64_t end = h + a.queries;
      for (; h + 4 <= end; h += 4) add_all_values<4>(a, seen, g, h, scores, ahead);
      for (; h < end; ++h) add_all_values<1>(a, seen, g, h, scores, ahead);
    }
  }
}

template <typename T>
void combine(const float* results, int64_t parts, int64_t heads, int64_t width, T* output) {
  const int64_t size = heads * (width + 2);
  for (int64_t h = 0; h < heads; ++h, output += width) {
    float most = kNothing;
    for (int64_t p = 0; p < parts; ++p) {
      most = results[p * size + h] > most ? results[p * size + h] : most;
    }
    Vector weights[kMostParts], total = {};
    for (int64_t p = 0; p < parts; ++p) {
      weights[p] = exp_of_negative(splat(results[p * size + h] - most));
      total += weights[p] * results[p * size + heads + h];
    }
    const Vector inverse = total > Vector{} ? splat(1.0f) / total : Vector{};
    for (int64_t d = 0; d < width; d += LANES) {
      Vector sum = {};
      for (int64_t p = 0; p < parts; ++p) {
        sum += weights[p] * load(results + p * size + 2 * heads + h * width + d);
      }
      store(output + d, sum * inverse);
    }
  }
}

}  // namespace

extern const AttentionTable TABLE(attention) = {attend<float, float>,  attend<uint16_t, uint16_t>,
                                                attend<float, int8_t>, attend<uint16_t, int8_t>,
                                                combine<float>,        combine<uint16_t>};

}  // namespace bitttt
