// What XLA calls for normalisations: checks the shapes, and goes through the rows.

#include "kernels.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace bitttt {
namespace {

// x is [rows, width], and so is the result; the scale has `width` values.
ffi::Error rms_norm(float eps, ffi::AnyBuffer x, ffi::Buffer<ffi::F32> scale,
                    ffi::Result<ffi::AnyBuffer> y) {
  const int64_t width = scale.element_count(), count = x.element_count();
  if (width == 0 || width % 16 || count % width || x.element_type() != y->element_type() ||
      static_cast<int64_t>(y->element_count()) != count) {
    return ffi::Error::InvalidArgument("norm: shapes don't fit");
  }
  const auto run = [&](auto type, auto normalise) {
    using T = decltype(type);
    for (int64_t i = 0; i < count; i += width) {
      normalise(static_cast<const T*>(x.untyped_data()) + i, scale.typed_data(), width, eps,
                static_cast<T*>(y->untyped_data()) + i);
    }
    return ffi::Error::Success();
  };
  if (x.element_type() == ffi::F32) return run(float{}, kernels().norm.rms_norm);
  if (x.element_type() == ffi::BF16) return run(uint16_t{}, kernels().norm.rms_norm_bfloat16);
  return ffi::Error::InvalidArgument("norm: neither float32 nor bfloat16");
}

}  // namespace
}  // namespace bitttt

XLA_FFI_DEFINE_HANDLER_SYMBOL(rms_norm, bitttt::rms_norm,
                              ffi::Ffi::Bind()
                                  .Attr<float>("eps")
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::AnyBuffer>());
