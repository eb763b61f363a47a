#include "ttt_linear.h"

#include "vector.h"

namespace bitttt {
namespace {

constexpr float kEps = 1e-6f;  // ttt.inner.NORM_EPS
constexpr int kVectors = LANES == 16 ? 4 : 2;  // of a tile's columns, such that its sums stay in registers
constexpr int kRows = 4;

// A matrix whose element (i, j) is data[i * row + j * column].
struct Matrix {
  const float* data;
  int64_t row, column;
};

inline Matrix transposed(Matrix a) { return {a.data, a.column, a.row}; }

enum class Update { kSet, kAdd, kSubtract };

template <int R, int V>
inline void tile(int64_t depth, Matrix a, const float* b, int64_t ldb, float* c, int64_t ldc,
                 Update update) {
  Vector sums[R][V] = {};
  for (int64_t p = 0; p < depth; ++p) {
    Vector row[V];
    for (int v = 0; v < V; ++v) row[v] = load(b + p * ldb + v * LANES);
    for (int r = 0; r < R; ++r) {
      const Vector x = splat(a.data[r * a.row + p * a.column]);
      for (int v = 0; v < V; ++v) sums[r][v] += x * row[v];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      float* p = c + r * ldc + v * LANES;
      if (update == Update::kSet) store(p, sums[r][v]);
      if (update == Update::kAdd) store(p, load(p) + sums[r][v]);
      if (update == Update::kSubtract) store(p, load(p) - sums[r][v]);
    }
  }
}

template <int V>
inline void columns(int64_t rows, int64_t depth, Matrix a, const float* b, int64_t ldb, float* c,
                    int64_t ldc, Update update) {
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) {
    tile<kRows, V>(depth, {a.data + r * a.row, a.row, a.column}, b, ldb, c + r * ldc, ldc, update);
  }
  for (; r < rows; ++r) {
    tile<1, V>(depth, {a.data + r * a.row, a.row, a.column}, b, ldb, c + r * ldc, ldc, update);
  }
}

// c (+-)= a b, of [rows, depth] and [depth, width]; the width is a multiple of 16.
void multiply(int64_t rows, int64_t depth, int64_t width, Matrix a, const float* b, int64_t ldb,
              float* c, int64_t ldc, Update update) {
  int64_t v = 0;
  for (; v + kVectors * LANES <= width; v += kVectors * LANES) {
    columns<kVectors>(rows, depth, a, b + v, ldb, c + v, ldc, update);
  }
  for (; v < width; v += LANES) columns<1>(rows, depth, a, b + v, ldb, c + v, ldc, update);
}

// to[j, i] = from[i, j] of [rows, columns]; the number of columns is a multiple of 4, and what is
// missing of a multiple of 4 rows is taken as zeros.
void transpose(int64_t rows, int64_t columns, const float* from, int64_t ldf, float* to,
               int64_t ldt) {
  for (int64_t i = 0; i < rows; i += 4) {
    for (int64_t j = 0; j < columns; j += 4) {
      Quad x[4] = {};
      for (int64_t r = 0; r < 4 && i + r < rows; ++r) {
        x[r] = *reinterpret_cast<const UnalignedQuad*>(from + (i + r) * ldf + j);
      }
      const Quad a = __builtin_shufflevector(x[0], x[1], 0, 4, 1, 5);
      const Quad b = __builtin_shufflevector(x[2], x[3], 0, 4, 1, 5);
      const Quad c = __builtin_shufflevector(x[0], x[1], 2, 6, 3, 7);
      const Quad d = __builtin_shufflevector(x[2], x[3], 2, 6, 3, 7);
      const Quad y[4] = {
          __builtin_shufflevector(a, b, 0, 1, 4, 5), __builtin_shufflevector(a, b, 2, 3, 6, 7),
          __builtin_shufflevector(c, d, 0, 1, 4, 5), __builtin_shufflevector(c, d, 2, 3, 6, 7)};
      for (int r = 0; r < 4; ++r) {
        *reinterpret_cast<UnalignedQuad*>(to + (j + r) * ldt + i) = y[r];
      }
    }
  }
}

inline void copy(int64_t n, const float* from, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

inline void fill(int64_t n, float value, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = value;
}

inline void add(int64_t n, const float* from, float* to) {
  for (int64_t k = 0; k < n; k += LANES) store(to + k, load(to + k) + load(from + k));
}

// Working memory, handed out piece by piece.
struct Scratch {
  float* next;
  float* take(int64_t n) {
    float* piece = next;
    next += n;
    return piece;
  }
};

// y = x w + bias, of tokens [b, K] that lie `ldx` apart.
void apply(const Shape& s, const float* x, int64_t ldx, const float* w, float* y, int64_t ldy) {
  for (int64_t i = 0; i < s.b; ++i) copy(s.K, w + s.K * s.K, y + i * ldy);
  multiply(s.b, s.K, s.K, {x, ldx, 1}, w, s.K, y, ldy, Update::kAdd);
}

// The gradient of 0.5 |LN(z) - (value - key)|^2 with respect to z, and what its own backward pass
// wants: the standardised z, the residual, 1 / deviation, and the mean of residual * standard.
struct Loss {
  float *d, *standard, *residual;  // [b, K]
  float *inverse, *along;          // [b]
};

void loss_gradient(const Shape& s, const Tokens& t, int64_t first, const float* z, Loss out) {
  const float count = 1.0f / static_cast<float>(s.K);
  for (int64_t i = 0; i < s.b; ++i) {
    const float* value = t.value + (first + i) * s.stride;
    const float* key = t.key + (first + i) * s.stride;
    const int64_t row = i * s.K;
    Vector total = {}, squares = {};
    for (int64_t k = 0; k < s.K; k += LANES) total += load(z + row + k);
    const Vector mean = splat(sum(total) * count);
    for (int64_t k = 0; k < s.K; k += LANES) {
      const Vector c = load(z + row + k) - mean;
      squares += c * c;
    }
    const float inverse = 1.0f / __builtin_sqrtf(sum(squares) * count + kEps);
    Vector residuals = {}, products = {};
    for (int64_t k = 0; k < s.K; k += LANES) {
      const Vector gamma = load(t.norm_scale + k);
      const Vector standard = (load(z + row + k) - mean) * splat(inverse);
      const Vector target = load(value + k) - load(key + k);
      const Vector residual = gamma * (gamma * standard + load(t.norm_bias + k) - target);
      store(out.standard + row + k, standard);
      store(out.residual + row + k, residual);
      residuals += residual;
      products += residual * standard;
    }
    const float along = sum(products) * count;
    const Vector offset = splat(sum(residuals) * count);
    for (int64_t k = 0; k < s.K; k += LANES) {
      const Vector standard = load(out.standard + row + k);
      const Vector residual = load(out.residual + row + k);
      store(out.d + row + k, (residual - offset - standard * splat(along)) * splat(inverse));
    }
    out.inverse[i] = inverse;
    out.along[i] = along;
  }
}

// d times learning rate and last token scale, row by row: what moves the weights.
void rated(const Shape& s, const Tokens& t, int64_t first, const float* d, float* out) {
  for (int64_t j = 0; j < s.b; ++j) {
    const Vector rate = splat(t.scale[s.b - 1] * t.rate[(first + j) * s.rate_stride]);
    for (int64_t k = 0; k < s.K; k += LANES) {
      store(out + j * s.K + k, rate * load(d + j * s.K + k));
    }
  }
}

// w -= [x 1]^T moves.
void move(const Shape& s, const float* x, const float* moves, float* w) {
  multiply(s.K, s.b, s.K, {x, 1, s.stride}, moves, s.K, w, s.K, Update::kSubtract);
  float* bias = w + s.K * s.K;
  for (int64_t j = 0; j < s.b; ++j) {
    for (int64_t k = 0; k < s.K; k += LANES) {
      store(bias + k, load(bias + k) - load(moves + j * s.K + k));
    }
  }
}

Loss take_loss(const Shape& s, Scratch& scratch) {
  const int64_t size = s.b * s.K;
  return {scratch.take(size), scratch.take(size), scratch.take(size), scratch.take(s.b),
          scratch.take(s.b)};
}

// similarity[i, j] = query_i . key_j, and step[i, j] = scale_i rate_j for j <= i, else 0.
void overlap(const Shape& s, const Tokens& t, int64_t first, int64_t columns, float* keys_KC,
             float* similarity, float* step) {
  fill(s.K * columns, 0.0f, keys_KC);
  transpose(s.b, s.K, t.key + first * s.stride, s.stride, keys_KC, columns);
  multiply(s.b, s.K, columns, {t.query + first * s.stride, s.stride, 1}, keys_KC, columns,
           similarity, columns, Update::kSet);
  fill(s.b * columns, 0.0f, step);
  for (int64_t i = 0; i < s.b; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      step[i * columns + j] = t.scale[i] * t.rate[(first + j) * s.rate_stride];
    }
  }
}

void forward(const Shape& s, const Tokens& t, const Forward& out, float* memory) {
  const int64_t size = s.b * s.K, weights = (s.K + 1) * s.K, columns = (s.b + 15) / 16 * 16;
  Scratch scratch{memory};
  float* z = scratch.take(size);
  float* moves = scratch.take(size);
  float* keys_KC = scratch.take(s.K * columns);
  float* similarity = scratch.take(s.b * columns);
  float* step = scratch.take(s.b * columns);
  const Loss loss = take_loss(s, scratch);
  float* w = out.final;
  copy(weights, out.initial, w);
  for (int64_t n = 0; n < s.T / s.b; ++n) {
    const int64_t first = n * s.b;
    const float* key = t.key + first * s.stride;
    float* read = out.z + first * s.stride;
    if (t.restart[n]) copy(weights, t.fresh, w);
    if (n % s.group == 0) copy(weights, w, out.saved + n / s.group * weights);
    apply(s, key, s.stride, w, z, s.K);
    loss_gradient(s, t, first, z, loss);
    overlap(s, t, first, columns, keys_KC, similarity, step);
    for (int64_t i = 0; i < s.b * columns; ++i) step[i] *= similarity[i] + 1.0f;
    apply(s, t.query + first * s.stride, s.stride, w, read, s.stride);
    multiply(s.b, s.b, s.K, {step, columns, 1}, loss.d, s.K, read, s.stride, Update::kSubtract);
    rated(s, t, first, loss.d, moves);
    move(s, key, moves, w);
  }
}

// From the gradient with respect to `d` to those with respect to z (over `grad_d`), value, key,
// and the norm's parameters (added).
void loss_gradient_backward(const Shape& s, const Tokens& t, int64_t first, const Loss& loss,
                            float* grad_d, const Backward& out) {
  const float count = 1.0f / static_cast<float>(s.K);
  for (int64_t i = 0; i < s.b; ++i) {
    const float* value = t.value + (first + i) * s.stride;
    const float* key = t.key + (first + i) * s.stride;
    float* grad_value = out.value + (first + i) * s.stride;
    const int64_t row = i * s.K;
    const Vector inverse = splat(loss.inverse[i]), along = splat(loss.along[i]);
    Vector hs = {}, h_standard = {}, d_products = {};
    for (int64_t k = 0; k < s.K; k += LANES) {
      const Vector grad = load(grad_d + row + k), h = grad * inverse;
      hs += h;
      h_standard += h * load(loss.standard + row + k);
      d_products += grad * load(loss.d + row + k);
    }
    const Vector h_mean = splat(sum(hs) * count), h_along = splat(sum(h_standard) * count);
    Vector products = {}, total = {};
    for (int64_t k = 0; k < s.K; k += LANES) {
      const Vector standard = load(loss.standard + row + k);
      const Vector residual = load(loss.residual + row + k);
      const Vector gamma = load(t.norm_scale + k), beta = load(t.norm_bias + k);
      const Vector target = load(value + k) - load(key + k);
      const Vector h = load(grad_d + row + k) * inverse;
      const Vector grad_residual = h - h_mean - standard * h_along;
      const Vector grad_standard =
          gamma * gamma * grad_residual - h * along - residual * h_along;
      store(grad_value + k, -gamma * grad_residual);  // the target's gradient
      store(out.norm_bias + k, load(out.norm_bias + k) + gamma * grad_residual);
      store(out.norm_scale + k, load(out.norm_scale + k) +
                                    (2.0f * gamma * standard + beta - target) * grad_residual);
      store(grad_d + row + k, grad_standard);
      products += grad_standard * standard;
    }
    const Vector inner = splat((sum(products) + sum(d_products)) * count);
    for (int64_t k = 0; k < s.K; k += LANES) {
      const Vector grad =
          inverse * (load(grad_d + row + k) - load(loss.standard + row + k) * inner);
      store(grad_d + row + k, grad);
      total += grad;
    }
    const Vector mean = splat(sum(total) * count);
    for (int64_t k = 0; k < s.K; k += LANES) {
      store(grad_d + row + k, load(grad_d + row + k) - mean);
    }
  }
}

void backward(const Shape& s, const Tokens& t, const Backward& out, float* memory) {
  const int64_t size = s.b * s.K, weights = (s.K + 1) * s.K, columns = (s.b + 15) / 16 * 16;
  const int64_t count = s.T / s.b;
  const float last_scale = t.scale[s.b - 1];
  Scratch scratch{memory};
  float* group_weights = scratch.take(s.group * weights);
  float* w_transposed = scratch.take(s.K * s.K);
  float* grad_transposed = scratch.take(s.K * s.K);
  float* z = scratch.take(size);
  float* moves = scratch.take(size);
  float* seen = scratch.take(size);
  float* grad_d = scratch.take(size);
  float* keys_KC = scratch.take(s.K * columns);
  float* d_KC = scratch.take(s.K * columns);
  float* similarity = scratch.take(s.b * columns);
  float* step = scratch.take(s.b * columns);
  float* pairs = scratch.take(s.b * columns);
  const Loss loss = take_loss(s, scratch);

  float* grad = out.initial;  // with respect to the weights after the mini-batch
  copy(weights, out.grad_final, grad);
  fill(weights, 0.0f, out.fresh);
  fill(s.b, 0.0f, out.scale);
  fill(s.K, 0.0f, out.norm_scale);
  fill(s.K, 0.0f, out.norm_bias);

  for (int64_t g = (count + s.group - 1) / s.group - 1; g >= 0; --g) {
    const int64_t begin = g * s.group;
    const int64_t end = begin + s.group < count ? begin + s.group : count;
    copy(weights, out.saved + g * weights, group_weights);
    for (int64_t n = begin; n + 1 < end; ++n) {  // the weights inside the group once more
      const int64_t first = n * s.b;
      float* w = group_weights + (n - begin) * weights;
      float* after = w + weights;
      if (t.restart[n + 1]) {
        copy(weights, t.fresh, after);
        continue;
      }
      apply(s, t.key + first * s.stride, s.stride, w, z, s.K);
      loss_gradient(s, t, first, z, loss);
      rated(s, t, first, loss.d, moves);
      copy(weights, w, after);
      move(s, t.key + first * s.stride, moves, after);
    }
    for (int64_t n = end - 1; n >= begin; --n) {
      const int64_t first = n * s.b, at = first * s.stride;
      const float* w = group_weights + (n - begin) * weights;
      const float *query = t.query + at, *key = t.key + at, *grad_z = out.grad_z + at;
      float *grad_query = out.query + at, *grad_key = out.key + at, *grad_value = out.value + at;

      apply(s, key, s.stride, w, z, s.K);
      loss_gradient(s, t, first, z, loss);
      rated(s, t, first, loss.d, moves);
      overlap(s, t, first, columns, keys_KC, similarity, step);
      fill(s.K * columns, 0.0f, d_KC);
      transpose(s.b, s.K, loss.d, s.K, d_KC, columns);
      // pairs[i, j] = grad_z_i . d_j: minus the gradient of step * (similarity + 1)
      multiply(s.b, s.K, columns, {grad_z, s.stride, 1}, d_KC, columns, pairs, columns,
               Update::kSet);
      apply(s, key, s.stride, grad, seen, s.K);

      for (int64_t j = 0; j < s.b; ++j) {
        const float rate = t.rate[(first + j) * s.rate_stride];
        Vector products = {};
        for (int64_t k = 0; k < s.K; k += LANES) {
          const Vector x = load(seen + j * s.K + k);
          products += x * load(loss.d + j * s.K + k);
          store(grad_d + j * s.K + k, splat(-last_scale * rate) * x);
        }
        float grad_rate = -last_scale * sum(products);
        out.scale[s.b - 1] -= rate * sum(products);
        for (int64_t i = j; i < s.b; ++i) {
          const float grad_step =
              -pairs[i * columns + j] * (similarity[i * columns + j] + 1.0f);
          out.scale[i] += grad_step * rate;
          grad_rate += grad_step * t.scale[i];
        }
        out.rate[(first + j) * s.rate_stride] = grad_rate;
      }
      for (int64_t i = 0; i < s.b * columns; ++i) {
        pairs[i] *= -step[i];  // now the gradient of the similarity
        step[i] *= similarity[i] + 1.0f;
      }
      multiply(s.b, s.b, s.K, transposed({step, columns, 1}), grad_z, s.stride, grad_d, s.K,
               Update::kSubtract);
      loss_gradient_backward(s, t, first, loss, grad_d, out);

      transpose(s.K, s.K, w, s.K, w_transposed, s.K);
      transpose(s.K, s.K, grad, s.K, grad_transposed, s.K);
      multiply(s.b, s.K, s.K, {grad_z, s.stride, 1}, w_transposed, s.K, grad_query, s.stride,
               Update::kSet);
      multiply(s.b, s.b, s.K, {pairs, columns, 1}, key, s.stride, grad_query, s.stride,
               Update::kAdd);
      multiply(s.b, s.K, s.K, {grad_d, s.K, 1}, w_transposed, s.K, grad_key, s.stride,
               Update::kSet);
      multiply(s.b, s.K, s.K, {moves, s.K, 1}, grad_transposed, s.K, grad_key, s.stride,
               Update::kSubtract);
      multiply(s.b, s.b, s.K, transposed({pairs, columns, 1}), query, s.stride, grad_key, s.stride,
               Update::kAdd);
      multiply(s.K, s.b, s.K, {query, 1, s.stride}, grad_z, s.stride, grad, s.K, Update::kAdd);
      multiply(s.K, s.b, s.K, {key, 1, s.stride}, grad_d, s.K, grad, s.K, Update::kAdd);
      for (int64_t i = 0; i < s.b; ++i) {
        add(s.K, grad_z + i * s.stride, grad + s.K * s.K);
        add(s.K, grad_d + i * s.K, grad + s.K * s.K);
        for (int64_t k = 0; k < s.K; k += LANES) {  // the target is value - key
          const Vector target = load(grad_value + i * s.stride + k);
          store(grad_key + i * s.stride + k, load(grad_key + i * s.stride + k) - target);
        }
      }
      if (t.restart[n]) {
        add(weights, grad, out.fresh);
        fill(weights, 0.0f, grad);
      }
    }
  }
}

}  // namespace

extern const TttLinear TABLE(ttt_linear) = {forward, backward};

}  // namespace bitttt
