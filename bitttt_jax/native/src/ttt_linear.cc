// The linear inner model.

#include "inner.h"

namespace bitttt {
namespace {

// From a mini-batch's keys to its loss and to what moves the weights.
void learn(const Shape& s, const Tokens& t, int64_t first, const float* w, float* z,
           const Loss& loss, float* moves) {
  apply({s.K, s.K}, s.b, t.key + first * s.stride, s.stride, w, z, s.K);
  loss_gradient(s, t, first, z, loss);
  rated(s, t, first, s.K, loss.d, moves);
}

void move(const Shape& s, const Tokens& t, int64_t first, const float* moves, float* w) {
  accumulate({s.K, s.K}, s.b, t.key + first * s.stride, s.stride, moves, s.K, w, Update::kSubtract);
}

void forward(const Shape& s, const Tokens& t, const Forward& out, float* memory) {
  const int64_t pairs = s.b * columns_of(s);
  Scratch scratch(s, memory);
  float* z = scratch.take(s.b * s.K);
  float* moves = scratch.take(s.b * s.K);
  float* as_columns = scratch.take(s.K * columns_of(s));
  float* similarity = scratch.take(pairs);
  float* step = scratch.take(pairs);
  float* overlap = scratch.take(pairs);
  const Loss loss = take_loss(s, scratch);
  float* w = out.final;
  copy(weights_of(s), out.initial, w);
  for (int64_t n = 0; n < s.T / s.b; ++n) {
    const int64_t first = n * s.b, at = first * s.stride;
    if (t.restart[n]) copy(weights_of(s), t.fresh, w);
    if (n % s.group == 0) copy(weights_of(s), w, out.saved + n / s.group * weights_of(s));
    learn(s, t, first, w, z, loss, moves);
    dot_products(s, s.K, t.query + at, s.stride, t.key + at, s.stride, as_columns, similarity);
    step_sizes(s, t, first, step);
    apply({s.K, s.K}, s.b, t.query + at, s.stride, w, out.z + at, s.stride);
    see_steps(s, s.K, step, similarity, loss.d, overlap, out.z + at, s.stride);
    move(s, t, first, moves, w);
  }
}

void backward(const Shape& s, const Tokens& t, const Backward& out, float* memory) {
  const int64_t size = s.b * s.K, C = columns_of(s);
  const Layer layer = {s.K, s.K};
  Scratch scratch(s, memory);
  float* group_weights = scratch.take(s.group * weights_of(s));
  float* w_transposed = scratch.take(s.K * s.K);
  float* grad_transposed = scratch.take(s.K * s.K);
  float* z = scratch.take(size);
  float* moves = scratch.take(size);
  float* seen = scratch.take(size);
  float* grad_d = scratch.take(size);
  float* as_columns = scratch.take(s.K * C);
  float* similarity = scratch.take(s.b * C);
  float* step = scratch.take(s.b * C);
  float* overlap = scratch.take(s.b * C);
  float* pairs = scratch.take(s.b * C);
  const Loss loss = take_loss(s, scratch);

  const auto relearn = [&](int64_t first, const float* w, float* after) {
    learn(s, t, first, w, z, loss, moves);
    move(s, t, first, moves, after);
  };
  const auto backward_step = [&](int64_t first, const float* w, float* grad) {
    const int64_t at = first * s.stride;
    const float *query = t.query + at, *key = t.key + at, *grad_z = out.grad_z + at;
    float *grad_query = out.query + at, *grad_key = out.key + at;
    learn(s, t, first, w, z, loss, moves);
    dot_products(s, s.K, query, s.stride, key, s.stride, as_columns, similarity);
    step_sizes(s, t, first, step);
    dot_products(s, s.K, grad_z, s.stride, loss.d, s.K, as_columns, pairs);
    apply(layer, s.b, key, s.stride, grad, seen, s.K);
    see_steps_backward(s, t, first, s.K, step, similarity, loss.d, grad_z, s.stride, seen, overlap,
                       pairs, grad_d, out);
    loss_gradient_backward(s, t, first, loss, grad_d, out);  // grad_d is that of z from here on

    transpose(s.K, s.K, w, s.K, w_transposed, s.K);
    transpose(s.K, s.K, grad, s.K, grad_transposed, s.K);
    multiply(s.b, s.K, s.K, {grad_z, s.stride, 1}, w_transposed, s.K, grad_query, s.stride,
             Update::kSet);
    multiply(s.b, s.b, s.K, {pairs, C, 1}, key, s.stride, grad_query, s.stride, Update::kAdd);
    multiply(s.b, s.K, s.K, {grad_d, s.K, 1}, w_transposed, s.K, grad_key, s.stride, Update::kSet);
    multiply(s.b, s.K, s.K, {moves, s.K, 1}, grad_transposed, s.K, grad_key, s.stride,
             Update::kSubtract);
    multiply(s.b, s.b, s.K, transposed({pairs, C, 1}), query, s.stride, grad_key, s.stride,
             Update::kAdd);
    add_target_gradient(s, out.value + at, grad_key);
    accumulate(layer, s.b, query, s.stride, grad_z, s.stride, grad, Update::kAdd);
    accumulate(layer, s.b, key, s.stride, grad_d, s.K, grad, Update::kAdd);
  };
  walk_back(s, t, out, group_weights, relearn, backward_step);
}

}  // namespace

extern const TttTable TABLE(ttt_linear) = {forward, backward};

}  // namespace bitttt
