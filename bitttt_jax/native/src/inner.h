// What both inner models share: the loss behind the LayerNorm, and the dual form's overlaps.

#pragma once

#include "matrix.h"
#include "ttt.h"

namespace bitttt {
namespace {

constexpr float kEps = 1e-6f;  // ttt.inner.NORM_EPS

// Working memory, handed out piece by piece; `scratch_size` must have counted all of them.
struct Scratch {
  float* next;
  float* end;
  Scratch(const Shape& s, float* memory) : next(memory), end(memory + scratch_size(s)) {}
  float* take(int64_t n) {
    float* piece = next;
    next += n;
    if (next > end) __builtin_trap();
    return piece;
  }
};

// A layer of the inner model: its matrix [in, out], with the bias as last row.
struct Layer {
  int64_t in, out;
};

// y = x w + bias, of b tokens that lie `ldx` apart.
inline void apply(Layer l, int64_t b, const float* x, int64_t ldx, const float* w, float* y,
                  int64_t ldy) {
  for (int64_t i = 0; i < b; ++i) copy(l.out, w + l.in * l.out, y + i * ldy);
  multiply(b, l.in, l.out, {x, ldx, 1}, w, l.out, y, ldy, Update::kAdd);
}

// w (+-)= [x 1]^T y.
inline void accumulate(Layer l, int64_t b, const float* x, int64_t ldx, const float* y, int64_t ldy,
                       float* w, Update update) {
  multiply(l.in, b, l.out, {x, 1, ldx}, y, ldy, w, l.out, update);
  float* bias = w + l.in * l.out;
  const Vector sign = splat(update == Update::kSubtract ? -1.0f : 1.0f);
  for (int64_t i = 0; i < b; ++i) {
    for (int64_t k = 0; k < l.out; k += LANES) {
      store(bias + k, load(bias + k) + sign * load(y + i * ldy + k));
    }
  }
}

// The gradient of 0.5 |LN(z) - (value - key)|^2 with respect to z, and what its own backward pass
// wants: the standardised z, the residual, 1 / deviation, and the mean of residual * standard.
struct Loss {
  float *d, *standard, *residual;  // [b, K]
  float *inverse, *along;          // [b]
};

inline void loss_gradient(const Shape& s, const Tokens& t, int64_t first, const float* z,
                          Loss out) {
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

inline Loss take_loss(const Shape& s, Scratch& scratch) {
  const int64_t size = s.b * s.K;
  return {scratch.take(size), scratch.take(size), scratch.take(size), scratch.take(s.b),
          scratch.take(s.b)};
}

// From the gradient with respect to `d` to those with respect to z (over `grad_d`), value, key,
// and the norm's parameters (added).
inline void loss_gradient_backward(const Shape& s, const Tokens& t, int64_t first, const Loss& loss,
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
      const Vector grad_standard = gamma * gamma * grad_residual - h * along - residual * h_along;
      store(grad_value + k, -gamma * grad_residual);  // the target's gradient
      store(out.norm_bias + k, load(out.norm_bias + k) + gamma * grad_residual);
      store(out.norm_scale + k,
            load(out.norm_scale + k) + (2.0f * gamma * standard + beta - target) * grad_residual);
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

// Rows of `d` times learning rate and last token scale: what moves the weights.
inline void rated(const Shape& s, const Tokens& t, int64_t first, int64_t width, const float* d,
                  float* out) {
  for (int64_t j = 0; j < s.b; ++j) {
    const Vector rate = splat(t.scale[s.b - 1] * t.rate[(first + j) * s.rate_stride]);
    for (int64_t k = 0; k < width; k += LANES) {
      store(out + j * width + k, rate * load(d + j * width + k));
    }
  }
}

// step[i, j] = scale_i rate_j for j <= i, else 0: how much of token j's gradient token i sees.
inline void step_sizes(const Shape& s, const Tokens& t, int64_t first, float* step) {
  fill(s.b * columns_of(s), 0.0f, step);
  for (int64_t i = 0; i < s.b; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      step[i * columns_of(s) + j] = t.scale[i] * t.rate[(first + j) * s.rate_stride];
    }
  }
}

// to[i, j] = a_i . b_j, of [b, width] each.
inline void dot_products(const Shape& s, int64_t width, const float* a, int64_t lda, const float* b,
                         int64_t ldb, float* as_columns, float* to) {
  fill(width * columns_of(s), 0.0f, as_columns);
  transpose(s.b, width, b, ldb, as_columns, columns_of(s));
  multiply(s.b, width, columns_of(s), {a, lda, 1}, as_columns, columns_of(s), to, columns_of(s),
           Update::kSet);
}

// A layer's part in the dual form: token i sees the step that token j's gradient `d_j` makes, at an
// input that has the dot product `similarity` with that of token j,
//
//   y_i -= sum over j of step_ij (similarity_ij + 1) d_j,
//
// and after the mini-batch the weights take all steps at once.
inline void see_steps(const Shape& s, int64_t width, const float* step, const float* similarity,
                      const float* d, float* overlap, float* y, int64_t ldy) {
  for (int64_t i = 0; i < s.b * columns_of(s); ++i) overlap[i] = step[i] * (similarity[i] + 1.0f);
  multiply(s.b, s.b, width, {overlap, columns_of(s), 1}, d, width, y, ldy, Update::kSubtract);
}

// The backward pass of `see_steps`, and of the weights' own step: given the gradient of y, and what
// the layer with the *gradient of the weights* makes of its inputs (`seen`), sets the gradient of
// d, turns `pairs` (grad_y_i . d_j) into the gradient of the similarity, and adds to those of rates
// and scales.
inline void see_steps_backward(const Shape& s, const Tokens& t, int64_t first, int64_t width,
                               const float* step, const float* similarity, const float* d,
                               const float* grad_y, int64_t ldg, const float* seen, float* overlap,
                               float* pairs, float* grad_d, const Backward& out) {
  const int64_t C = columns_of(s);
  const float last_scale = t.scale[s.b - 1];
  for (int64_t j = 0; j < s.b; ++j) {
    const float rate = t.rate[(first + j) * s.rate_stride];
    Vector products = {};
    for (int64_t k = 0; k < width; k += LANES) {
      const Vector x = load(seen + j * width + k);
      products += x * load(d + j * width + k);
      store(grad_d + j * width + k, splat(-last_scale * rate) * x);
    }
    const float product = sum(products);
    float grad_rate = -last_scale * product;
    out.scale[s.b - 1] -= rate * product;
    for (int64_t i = j; i < s.b; ++i) {
      const float grad_step = -pairs[i * C + j] * (similarity[i * C + j] + 1.0f);
      out.scale[i] += grad_step * rate;
      grad_rate += grad_step * t.scale[i];
    }
    out.rate[(first + j) * s.rate_stride] += grad_rate;
  }
  for (int64_t i = 0; i < s.b * C; ++i) {
    overlap[i] = step[i] * (similarity[i] + 1.0f);
    pairs[i] *= -step[i];
  }
  multiply(s.b, s.b, width, transposed({overlap, C, 1}), grad_y, ldg, grad_d, width,
           Update::kSubtract);
}

// The target is value - key: moves the key's gradient by what the value's is.
inline void add_target_gradient(const Shape& s, const float* grad_value, float* grad_key) {
  for (int64_t i = 0; i < s.b; ++i) {
    for (int64_t k = 0; k < s.K; k += LANES) {
      float* p = grad_key + i * s.stride + k;
      store(p, load(p) - load(grad_value + i * s.stride + k));
    }
  }
}

// Walks the mini-batches from the last to the first. Their weights come group by group from those
// that were saved: `learn(first, w, after)` moves `after`, a copy of the weights `w`, by what the
// mini-batch from token `first` on teaches. Then `step(first, w, grad)` takes the gradient of the
// weights after the mini-batch to that of the weights before it, `w`.
template <typename Learn, typename Step>
inline void walk_back(const Shape& s, const Tokens& t, const Backward& out, float* group_weights,
                      const Learn& learn, const Step& step) {
  const int64_t count = s.T / s.b, size = weights_of(s);
  float* grad = out.initial;
  copy(size, out.grad_final, grad);
  fill(size, 0.0f, out.fresh);
  fill(s.b, 0.0f, out.scale);
  fill(s.K, 0.0f, out.norm_scale);
  fill(s.K, 0.0f, out.norm_bias);
  for (int64_t i = 0; i < s.T; ++i) out.rate[i * s.rate_stride] = 0.0f;
  for (int64_t g = (count + s.group - 1) / s.group - 1; g >= 0; --g) {
    const int64_t begin = g * s.group;
    const int64_t end = begin + s.group < count ? begin + s.group : count;
    copy(size, out.saved + g * size, group_weights);
    for (int64_t n = begin; n + 1 < end; ++n) {
      const float* w = group_weights + (n - begin) * size;
      float* after = group_weights + (n + 1 - begin) * size;
      copy(size, t.restart[n + 1] ? t.fresh : w, after);
      if (!t.restart[n + 1]) learn(n * s.b, w, after);
    }
    for (int64_t n = end - 1; n >= begin; --n) {
      step(n * s.b, group_weights + (n - begin) * size, grad);
      if (!t.restart[n]) continue;
      for (int64_t i = 0; i < size; ++i) out.fresh[i] += grad[i];
      fill(size, 0.0f, grad);
    }
  }
}

}  // namespace
}  // namespace bitttt
