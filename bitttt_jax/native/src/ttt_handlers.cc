// What XLA calls for the dual form: checks the shapes, and spreads the heads over the threads.

#include "kernels.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace bitttt {
namespace {

using Array = ffi::Buffer<ffi::F32>;
using Flags = ffi::Buffer<ffi::PRED>;
using Result = ffi::Result<Array>;

// Query, key and value are [B, T, H, K], rate [B, T, H], the token scale [b], the norm [H, K],
// restart [B, N]; with M weights a head, the initial weights are [B, H, M], the fresh ones [H, M].
struct Call {
  Shape shape;
  const TttTable& kernels;
  int64_t B, H, N, groups;
};

ffi::ErrorOr<Call> read_shapes(const Array& query, const Array& scale, const Array& weights,
                               int64_t hidden, int64_t group) {
  const auto q = query.dimensions();
  const auto w = weights.dimensions();
  if (q.size() != 4 || w.size() != 3 || scale.dimensions().size() != 1) {
    return ffi::Unexpected(ffi::Error::InvalidArgument("ttt: wrong number of dimensions"));
  }
  const int64_t B = q[0], T = q[1], H = q[2], K = q[3], b = scale.dimensions()[0];
  const Shape shape = {T, b, K, hidden, H * K, H, group};
  if (K % 16 || hidden % 16 || b < 1 || T % b || group < 1 || w[0] != B || w[1] != H ||
      w[2] != weights_of(shape)) {
    return ffi::Unexpected(ffi::Error::InvalidArgument("ttt: shapes don't fit"));
  }
  const int64_t N = T / b;
  const TttTable& table = hidden ? kernels().ttt_mlp : kernels().ttt_linear;
  return Call{shape, table, B, H, N, (N + group - 1) / group};
}

// Calls work(index of the head among all, its first float in [B, T, H, K], in [B, T, H]).
void for_heads(ffi::ThreadPool& pool, const Call& c,
               const std::function<void(int64_t, int64_t, int64_t)>& work) {
  const Shape& s = c.shape;
  run_all(pool, c.B * c.H, [&](int64_t i) {
    const int64_t row = i / c.H, head = i % c.H;
    work(i, row * s.T * s.stride + head * s.K, row * s.T * c.H + head);
  });
}

struct Inputs {
  const Array &query, &key, &value, &rate, &scale, &norm_scale, &norm_bias, &fresh;
  const Flags& restart;

  Tokens of_head(const Call& c, int64_t i, int64_t at, int64_t rate_at) const {
    const Shape& s = c.shape;
    const int64_t row = i / c.H, head = i % c.H;
    return {query.typed_data() + at,
            key.typed_data() + at,
            value.typed_data() + at,
            rate.typed_data() + rate_at,
            scale.typed_data(),
            norm_scale.typed_data() + head * s.K,
            norm_bias.typed_data() + head * s.K,
            fresh.typed_data() + head * weights_of(s),
            restart.typed_data() + row * c.N};
  }
};

ffi::Error ttt_forward(ffi::ThreadPool pool, int64_t hidden, int64_t group, Array query, Array key,
                       Array value, Array rate, Array scale, Array norm_scale, Array norm_bias,
                       Array initial, Array fresh, Flags restart, Result z, Result saved,
                       Result final) {
  const auto call = read_shapes(query, scale, initial, hidden, group);
  if (call.has_error()) return call.error();
  const Shape& s = call->shape;
  const int64_t weights = weights_of(s);
  const Inputs in = {query, key, value, rate, scale, norm_scale, norm_bias, fresh, restart};
  for_heads(pool, *call, [&](int64_t i, int64_t at, int64_t rate_at) {
    const Forward out = {initial.typed_data() + i * weights, z->typed_data() + at,
                         saved->typed_data() + i * call->groups * weights,
                         final->typed_data() + i * weights};
    call->kernels.forward(s, in.of_head(*call, i, at, rate_at), out,
                          scratch<float>(scratch_size(s)));
  });
  return ffi::Error::Success();
}

ffi::Error ttt_backward(ffi::ThreadPool pool, int64_t hidden, int64_t group, Array query, Array key,
                        Array value, Array rate, Array scale, Array norm_scale, Array norm_bias,
                        Array saved, Array fresh, Flags restart, Array grad_z, Array grad_final,
                        Result grad_query, Result grad_key, Result grad_value, Result grad_rate,
                        Result grad_scale, Result grad_norm_scale, Result grad_norm_bias,
                        Result grad_initial, Result grad_fresh) {
  const auto call = read_shapes(query, scale, grad_final, hidden, group);
  if (call.has_error()) return call.error();
  const Shape& s = call->shape;
  const int64_t weights = weights_of(s);
  const Inputs in = {query, key, value, rate, scale, norm_scale, norm_bias, fresh, restart};
  for_heads(pool, *call, [&](int64_t i, int64_t at, int64_t rate_at) {
    const Backward out = {saved.typed_data() + i * call->groups * weights,
                          grad_z.typed_data() + at,
                          grad_final.typed_data() + i * weights,
                          grad_query->typed_data() + at,
                          grad_key->typed_data() + at,
                          grad_value->typed_data() + at,
                          grad_rate->typed_data() + rate_at,
                          grad_scale->typed_data() + i * s.b,
                          grad_norm_scale->typed_data() + i * s.K,
                          grad_norm_bias->typed_data() + i * s.K,
                          grad_initial->typed_data() + i * weights,
                          grad_fresh->typed_data() + i * weights};
    call->kernels.backward(s, in.of_head(*call, i, at, rate_at), out,
                           scratch<float>(scratch_size(s)));
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace bitttt

using bitttt::Array;
using bitttt::Flags;

// clang-format off
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    ttt_forward, bitttt::ttt_forward,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<int64_t>("hidden").Attr<int64_t>("group")
        .Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>()  // query, key, value, rate
        .Arg<Array>().Arg<Array>().Arg<Array>()               // scale, norm scale, norm bias
        .Arg<Array>().Arg<Array>().Arg<Flags>()               // initial, fresh, restart
        .Ret<Array>().Ret<Array>().Ret<Array>());             // z, saved, final

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    ttt_backward, bitttt::ttt_backward,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<int64_t>("hidden").Attr<int64_t>("group")
        .Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>()  // query, key, value, rate
        .Arg<Array>().Arg<Array>().Arg<Array>()               // scale, norm scale, norm bias
        .Arg<Array>().Arg<Array>().Arg<Flags>()               // saved, fresh, restart
        .Arg<Array>().Arg<Array>()                            // gradients of z, final
        .Ret<Array>().Ret<Array>().Ret<Array>().Ret<Array>()  // of query, key, value, rate
        .Ret<Array>().Ret<Array>().Ret<Array>()               // of scale, norm scale, norm bias
        .Ret<Array>().Ret<Array>());                          // of initial, fresh
// clang-format on
