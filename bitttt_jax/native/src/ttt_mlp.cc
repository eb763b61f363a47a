// The inner MLP: y = gelu(x W1 + b1) W2 + b2.

#include <initializer_list>

#include "gelu.h"
#include "inner.h"

namespace bitttt {
namespace {

struct Layers {
  Layer first, second;
  int64_t second_at;  // where the second one's weights begin
};

Layers layers_of(const Shape& s) { return {{s.K, s.F}, {s.F, s.K}, (s.K + 1) * s.F}; }

// What reading a mini-batch's keys leaves: z1 = key W1 + b1, x2 = gelu(z1), the gradients d of the
// inner loss with respect to both layers' outputs, and what moves their weights.
struct Learned {
  float *z1, *x2, *slope, *d1, *moves1;  // [b, F]
  float *z2, *moves2;                    // [b, K]
  float* pulled;                         // d2 W2^T, [b, F]
  float* w2_transposed;                  // [K, F]
  Loss loss;                             // d of it is d2
};

Learned take_learned(const Shape& s, Scratch& scratch) {
  const int64_t wide = s.b * s.F, narrow = s.b * s.K;
  Learned l;
  for (float** piece : {&l.z1, &l.x2, &l.slope, &l.d1, &l.moves1, &l.pulled}) {
    *piece = scratch.take(wide);
  }
  l.z2 = scratch.take(narrow);
  l.moves2 = scratch.take(narrow);
  l.w2_transposed = scratch.take(s.K * s.F);
  l.loss = take_loss(s, scratch);
  return l;
}

void learn(const Shape& s, const Tokens& t, int64_t first, const float* w, const Learned& l) {
  const Layers layers = layers_of(s);
  const float* w2 = w + layers.second_at;
  apply(layers.first, s.b, t.key + first * s.stride, s.stride, w, l.z1, s.F);
  for (int64_t i = 0; i < s.b * s.F; i += LANES) {
    const Gelu y = gelu(load(l.z1 + i));
    store(l.x2 + i, y.value);
    store(l.slope + i, y.slope);
  }
  apply(layers.second, s.b, l.x2, s.F, w2, l.z2, s.K);
  loss_gradient(s, t, first, l.z2, l.loss);
  transpose(s.F, s.K, w2, s.K, l.w2_transposed, s.F);
  multiply(s.b, s.K, s.F, {l.loss.d, s.K, 1}, l.w2_transposed, s.F, l.pulled, s.F, Update::kSet);
  for (int64_t i = 0; i < s.b * s.F; i += LANES) {
    store(l.d1 + i, load(l.pulled + i) * load(l.slope + i));
  }
  rated(s, t, first, s.F, l.d1, l.moves1);
  rated(s, t, first, s.K, l.loss.d, l.moves2);
}

void move(const Shape& s, const Tokens& t, int64_t first, const Learned& l, float* w) {
  const Layers layers = layers_of(s);
  accumulate(layers.first, s.b, t.key + first * s.stride, s.stride, l.moves1, s.F, w,
             Update::kSubtract);
  accumulate(layers.second, s.b, l.x2, s.F, l.moves2, s.K, w + layers.second_at, Update::kSubtract);
}

// What reading the queries leaves.
struct Read {
  float *z1, *x2;                           // [b, F]
  float *step, *similarity1, *similarity2;  // [b, b]
  float *overlap1, *overlap2;               // [b, b]
  float* as_columns;                        // [F or K, columns]
};

Read take_read(const Shape& s, Scratch& scratch) {
  Read r;
  r.z1 = scratch.take(s.b * s.F);
  r.x2 = scratch.take(s.b * s.F);
  for (float** piece : {&r.step, &r.similarity1, &r.similarity2, &r.overlap1, &r.overlap2}) {
    *piece = scratch.take(s.b * columns_of(s));
  }
  r.as_columns = scratch.take((s.F > s.K ? s.F : s.K) * columns_of(s));
  return r;
}

// The queries' outputs go to z, `ldz` floats a token.
void read(const Shape& s, const Tokens& t, int64_t first, const float* w, const Learned& l,
          const Read& r, float* z, int64_t ldz) {
  const Layers layers = layers_of(s);
  const float *query = t.query + first * s.stride, *key = t.key + first * s.stride;
  step_sizes(s, t, first, r.step);
  dot_products(s, s.K, query, s.stride, key, s.stride, r.as_columns, r.similarity1);
  apply(layers.first, s.b, query, s.stride, w, r.z1, s.F);
  see_steps(s, s.F, r.step, r.similarity1, l.d1, r.overlap1, r.z1, s.F);
  for (int64_t i = 0; i < s.b * s.F; i += LANES) store(r.x2 + i, gelu(load(r.z1 + i)).value);
  dot_products(s, s.F, r.x2, s.F, l.x2, s.F, r.as_columns, r.similarity2);
  apply(layers.second, s.b, r.x2, s.F, w + layers.second_at, z, ldz);
  see_steps(s, s.K, r.step, r.similarity2, l.loss.d, r.overlap2, z, ldz);
}

void forward(const Shape& s, const Tokens& t, const Forward& out, float* memory) {
  Scratch scratch(s, memory);
  const Learned learned = take_learned(s, scratch);
  const Read queries = take_read(s, scratch);
  float* w = out.final;
  copy(weights_of(s), out.initial, w);
  for (int64_t n = 0; n < s.T / s.b; ++n) {
    const int64_t first = n * s.b;
    if (t.restart[n]) copy(weights_of(s), t.fresh, w);
    if (n % s.group == 0) copy(weights_of(s), w, out.saved + n / s.group * weights_of(s));
    learn(s, t, first, w, learned);
    read(s, t, first, w, learned, queries, out.z + first * s.stride, s.stride);
    move(s, t, first, learned, w);
  }
}

// Working memory of a mini-batch's backward pass.
struct Grads {
  float *q1, *x2, *d1, *seen1, *pulled, *slope;  // [b, F]
  float *d2, *seen2;                             // [b, K]
  float* pairs;                                  // [b, b]
  float *w1_transposed, *grad1_transposed;       // [F, K]
  float* grad2_transposed;                       // [K, F]
};

Grads take_grads(const Shape& s, Scratch& scratch) {
  Grads g;
  for (float** piece : {&g.q1, &g.x2, &g.d1, &g.seen1, &g.pulled, &g.slope}) {
    *piece = scratch.take(s.b * s.F);
  }
  g.d2 = scratch.take(s.b * s.K);
  g.seen2 = scratch.take(s.b * s.K);
  g.pairs = scratch.take(s.b * columns_of(s));
  for (float** piece : {&g.w1_transposed, &g.grad1_transposed, &g.grad2_transposed}) {
    *piece = scratch.take(s.K * s.F);
  }
  return g;
}

// One mini-batch, whose `learn` and `read` have just been done with the weights `w`. `grad` is that
// of the weights after it, and becomes that of the weights before it.
void backward_step(const Shape& s, const Tokens& t, int64_t first, const float* w, const Learned& l,
                   const Read& r, const Grads& g, float* grad, const Backward& out) {
  const Layers layers = layers_of(s);
  const int64_t at = first * s.stride, wide = s.b * s.F, C = columns_of(s);
  const float *query = t.query + at, *key = t.key + at, *grad_z = out.grad_z + at;
  const float* w2 = w + layers.second_at;
  float *grad_query = out.query + at, *grad_key = out.key + at;
  float* grad2 = grad + layers.second_at;
  transpose(s.K, s.F, w, s.F, g.w1_transposed, s.K);
  transpose(s.K, s.F, grad, s.F, g.grad1_transposed, s.K);
  transpose(s.F, s.K, grad2, s.K, g.grad2_transposed, s.F);

  // The queries' second layer.
  apply(layers.second, s.b, l.x2, s.F, grad2, g.seen2, s.K);
  dot_products(s, s.K, grad_z, s.stride, l.loss.d, s.K, r.as_columns, g.pairs);
  see_steps_backward(s, t, first, s.K, r.step, r.similarity2, l.loss.d, grad_z, s.stride, g.seen2,
                     r.overlap2, g.pairs, g.d2, out);
  multiply(s.b, s.K, s.F, {grad_z, s.stride, 1}, l.w2_transposed, s.F, g.q1, s.F, Update::kSet);
  multiply(s.b, s.b, s.F, {g.pairs, C, 1}, l.x2, s.F, g.q1, s.F, Update::kAdd);
  multiply(s.b, s.b, s.F, transposed({g.pairs, C, 1}), r.x2, s.F, g.x2, s.F, Update::kSet);
  multiply(s.b, s.K, s.F, {l.moves2, s.K, 1}, g.grad2_transposed, s.F, g.x2, s.F,
           Update::kSubtract);
  for (int64_t i = 0; i < wide; i += LANES) {
    store(g.q1 + i, load(g.q1 + i) * gelu(load(r.z1 + i)).slope);
  }

  // Their first layer.
  apply(layers.first, s.b, key, s.stride, grad, g.seen1, s.F);
  dot_products(s, s.F, g.q1, s.F, l.d1, s.F, r.as_columns, g.pairs);
  see_steps_backward(s, t, first, s.F, r.step, r.similarity1, l.d1, g.q1, s.F, g.seen1, r.overlap1,
                     g.pairs, g.d1, out);
  multiply(s.b, s.F, s.K, {g.q1, s.F, 1}, g.w1_transposed, s.K, grad_query, s.stride, Update::kSet);
  multiply(s.b, s.b, s.K, {g.pairs, C, 1}, key, s.stride, grad_query, s.stride, Update::kAdd);
  multiply(s.b, s.b, s.K, transposed({g.pairs, C, 1}), query, s.stride, grad_key, s.stride,
           Update::kSet);
  multiply(s.b, s.F, s.K, {l.moves1, s.F, 1}, g.grad1_transposed, s.K, grad_key, s.stride,
           Update::kSubtract);
  accumulate(layers.first, s.b, query, s.stride, g.q1, s.F, grad, Update::kAdd);
  accumulate(layers.second, s.b, r.x2, s.F, grad_z, s.stride, grad2, Update::kAdd);

  // d1 = pulled * slope, pulled = d2 W2^T.
  for (int64_t i = 0; i < wide; i += LANES) {
    const Vector grad_d1 = load(g.d1 + i);
    store(g.slope + i, grad_d1 * load(l.pulled + i));
    store(g.pulled + i, grad_d1 * load(l.slope + i));
  }
  multiply(s.b, s.F, s.K, {g.pulled, s.F, 1}, w2, s.K, g.d2, s.K, Update::kAdd);
  multiply(s.F, s.b, s.K, {g.pulled, 1, s.F}, l.loss.d, s.K, grad2, s.K, Update::kAdd);

  // The inner loss and the keys' layers.
  loss_gradient_backward(s, t, first, l.loss, g.d2, out);  // g.d2 is that of z2 from here on
  multiply(s.b, s.K, s.F, {g.d2, s.K, 1}, l.w2_transposed, s.F, g.x2, s.F, Update::kAdd);
  accumulate(layers.second, s.b, l.x2, s.F, g.d2, s.K, grad2, Update::kAdd);
  for (int64_t i = 0; i < wide; i += LANES) {
    const Gelu y = gelu(load(l.z1 + i));
    store(g.x2 + i, load(g.x2 + i) * y.slope + load(g.slope + i) * y.bend);
  }
  multiply(s.b, s.F, s.K, {g.x2, s.F, 1}, g.w1_transposed, s.K, grad_key, s.stride, Update::kAdd);
  accumulate(layers.first, s.b, key, s.stride, g.x2, s.F, grad, Update::kAdd);
  add_target_gradient(s, out.value + at, grad_key);
}

void backward(const Shape& s, const Tokens& t, const Backward& out, float* memory) {
  Scratch scratch(s, memory);
  float* group_weights = scratch.take(s.group * weights_of(s));
  float* z = scratch.take(s.b * s.K);
  const Learned learned = take_learned(s, scratch);
  const Read queries = take_read(s, scratch);
  const Grads grads = take_grads(s, scratch);
  walk_back(
      s, t, out, group_weights,
      [&](int64_t first, const float* w, float* after) {
        learn(s, t, first, w, learned);
        move(s, t, first, learned, after);
      },
      [&](int64_t first, const float* w, float* grad) {
        learn(s, t, first, w, learned);
        read(s, t, first, w, learned, queries, z, s.K);
        backward_step(s, t, first, w, learned, queries, grads, grad, out);
      });
}

}  // namespace

extern const TttTable TABLE(ttt_mlp) = {forward, backward};

}  // namespace bitttt
