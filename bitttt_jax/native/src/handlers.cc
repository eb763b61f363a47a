// What XLA calls: checks the shapes, and spreads the heads over XLA's own threads.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "convolution.h"
#include "ttt.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace bitttt {
namespace {

struct Kernels {
  const char* instruction_set;
  const TttTable &ttt_linear, &ttt_mlp;
  const ConvolutionTable& convolution;
};

// The widest that the CPU has, or the one that BITTTT_INSTRUCTION_SET names if the CPU has it.
Kernels choose_kernels() {
#if defined(__x86_64__)
  const char* variable = std::getenv("BITTTT_INSTRUCTION_SET");
  const std::string asked = variable ? variable : "";
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && (asked.empty() || asked == "avx512")) {
    return {"avx512", ttt_linear_avx512, ttt_mlp_avx512, convolution_avx512};
  }
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && (asked.empty() || asked == "avx2")) {
    return {"avx2", ttt_linear_avx2, ttt_mlp_avx2, convolution_avx2};
  }
#endif
  return {"baseline", ttt_linear_baseline, ttt_mlp_baseline, convolution_baseline};
}

const Kernels& kernels() {
  static const Kernels chosen = choose_kernels();
  return chosen;
}

// Runs task(0) to task(count - 1) on the pool's threads and on this one. A helper that the pool
// starts late finds nothing left to do: nobody ever waits for a task that hasn't begun, so calls
// that occupy all of the pool's threads can't block each other.
void run_all(ffi::ThreadPool& pool, int64_t count, std::function<void(int64_t)> task) {
  struct Work {
    std::function<void(int64_t)> task;
    int64_t count;
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::condition_variable all_done;
    int64_t done = 0;
    void run() {
      int64_t finished = 0;
      for (int64_t i; (i = next.fetch_add(1)) < count; ++finished) task(i);
      if (finished == 0) return;
      std::lock_guard<std::mutex> lock(mutex);
      done += finished;
      if (done == count) all_done.notify_all();
    }
  };
  auto work = std::make_shared<Work>();
  work->task = std::move(task);
  work->count = count;
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule([work] { work->run(); });
  work->run();
  std::unique_lock<std::mutex> lock(work->mutex);
  work->all_done.wait(lock, [&] { return work->done == count; });
}

// A thread's working memory, kept for its next call.
float* scratch(int64_t floats) {
  static thread_local std::vector<float> memory;
  if (static_cast<int64_t>(memory.size()) < floats) memory.resize(floats);
  return memory.data();
}

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
    call->kernels.forward(s, in.of_head(*call, i, at, rate_at), out, scratch(scratch_size(s)));
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
    call->kernels.backward(s, in.of_head(*call, i, at, rate_at), out, scratch(scratch_size(s)));
  });
  return ffi::Error::Success();
}

// --- convolution ------------------------------------------------------------------------------

using AnyArray = ffi::AnyBuffer;
using AnyResult = ffi::Result<ffi::AnyBuffer>;
using Positions = ffi::Buffer<ffi::S32>;

// x is [B, T, D], the kernel [W, D], the position [B, T].
bool convolution_fits(const AnyArray& x, const Array& kernel) {
  const auto shape = x.dimensions();
  const auto taps = kernel.dimensions();
  return shape.size() == 3 && taps.size() == 2 && taps[0] <= kMostTaps && taps[1] == shape[2] &&
         shape[2] % 16 == 0;
}

// Calls work(row, first channel, number of channels) for all of them.
void for_channels(ffi::ThreadPool& pool, const AnyArray& x,
                  const std::function<void(int64_t, int64_t, int64_t)>& work) {
  const int64_t D = x.dimensions()[2], blocks = (D + kChannels - 1) / kChannels;
  run_all(pool, x.dimensions()[0] * blocks, [&](int64_t i) {
    const int64_t channel = i % blocks * kChannels;
    work(i / blocks, channel, std::min(kChannels, D - channel));
  });
}

template <typename T>
Convolution<T> convolution_of(int64_t row, int64_t channel, int64_t channels, const AnyArray& x,
                              const Array& kernel, const Positions& position) {
  const int64_t length = x.dimensions()[1], D = x.dimensions()[2];
  return {length,
          D,
          kernel.dimensions()[0],
          channels,
          static_cast<const T*>(x.untyped_data()) + row * length * D + channel,
          kernel.typed_data() + channel,
          nullptr,
          position.typed_data() + row * length,
          nullptr};
}

template <typename T>
void convolve(ffi::ThreadPool& pool, void (*compute)(const Convolution<T>&), const AnyArray& x,
              const Array& kernel, const Array& bias, const Positions& position, AnyResult& y) {
  for_channels(pool, x, [&](int64_t row, int64_t channel, int64_t channels) {
    Convolution<T> c = convolution_of<T>(row, channel, channels, x, kernel, position);
    c.bias = bias.typed_data() + channel;
    c.y = static_cast<T*>(y->untyped_data()) + row * c.length * c.D + channel;
    compute(c);
  });
}

template <typename T>
void convolve_backward(ffi::ThreadPool& pool, void (*compute)(const ConvolutionBackward<T>&),
                       const AnyArray& x, const Array& kernel, const Positions& position,
                       const AnyArray& grad_y, AnyResult& grad_x, Result& grad_kernel,
                       Result& grad_bias) {
  for_channels(pool, x, [&](int64_t row, int64_t channel, int64_t channels) {
    const Convolution<T> c = convolution_of<T>(row, channel, channels, x, kernel, position);
    const int64_t at = row * c.length * c.D + channel;
    compute({c, static_cast<const T*>(grad_y.untyped_data()) + at,
             static_cast<T*>(grad_x->untyped_data()) + at,
             grad_kernel->typed_data() + row * c.taps * c.D + channel,
             grad_bias->typed_data() + row * c.D + channel});
  });
}

ffi::Error convolution_forward(ffi::ThreadPool pool, AnyArray x, Array kernel, Array bias,
                               Positions position, AnyResult y) {
  if (!convolution_fits(x, kernel)) {
    return ffi::Error::InvalidArgument("convolution: shapes don't fit");
  }
  const ConvolutionTable& table = kernels().convolution;
  if (x.element_type() == ffi::F32) {
    convolve<float>(pool, table.forward, x, kernel, bias, position, y);
  } else if (x.element_type() == ffi::BF16) {
    convolve<uint16_t>(pool, table.forward_bfloat16, x, kernel, bias, position, y);
  } else {
    return ffi::Error::InvalidArgument("convolution: neither float32 nor bfloat16");
  }
  return ffi::Error::Success();
}

ffi::Error convolution_backward(ffi::ThreadPool pool, AnyArray x, Array kernel, Positions position,
                                AnyArray grad_y, AnyResult grad_x, Result grad_kernel,
                                Result grad_bias) {
  if (!convolution_fits(x, kernel)) {
    return ffi::Error::InvalidArgument("convolution: shapes don't fit");
  }
  const ConvolutionTable& table = kernels().convolution;
  if (x.element_type() == ffi::F32) {
    convolve_backward<float>(pool, table.backward, x, kernel, position, grad_y, grad_x, grad_kernel,
                             grad_bias);
  } else if (x.element_type() == ffi::BF16) {
    convolve_backward<uint16_t>(pool, table.backward_bfloat16, x, kernel, position, grad_y, grad_x,
                                grad_kernel, grad_bias);
  } else {
    return ffi::Error::InvalidArgument("convolution: neither float32 nor bfloat16");
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace bitttt

using bitttt::AnyArray;
using bitttt::Array;
using bitttt::Flags;
using bitttt::Positions;

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

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    convolution_forward, bitttt::convolution_forward,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
        .Arg<AnyArray>().Arg<Array>().Arg<Array>().Arg<Positions>()  // x, kernel, bias, position
        .Ret<AnyArray>());                                           // y

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    convolution_backward, bitttt::convolution_backward,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
        .Arg<AnyArray>().Arg<Array>().Arg<Positions>().Arg<AnyArray>()  // x, kernel, position, grad
        .Ret<AnyArray>().Ret<Array>().Ret<Array>());                    // of x, kernel, bias
// clang-format on

// The instruction set in use.
extern "C" const char* instruction_set() { return bitttt::kernels().instruction_set; }
