// SPDX-License-Identifier: MIT
// One instruction set's table of kernels; the build compiles this file once for each.
#include "kernels.h"

#include "attention.h"
#include "linear.h"
#include "pointwise.h"

namespace tokenspeed::cpu::TOKENSPEED_ISA {
namespace {

// Calls `run` with pointers of the element type that `bf16` names.
template <typename Run>
void WithType(bool bf16, Run run) {
  if (bf16) {
    run(BFloat16{});
  } else {
    run(float{});
  }
}

template <typename T>
const T* In(const void* pointer) {
  return static_cast<const T*>(pointer);
}
template <typename T>
T* Out(void* pointer) {
  return static_cast<T*>(pointer);
}

#define TOKENSPEED_STRING(name) #name
#define TOKENSPEED_NAME(name) TOKENSPEED_STRING(name)

}  // namespace

const Kernels kKernels = {
    .name = TOKENSPEED_NAME(TOKENSPEED_ISA),
    .linear =
        [](const void* x, const void* w, void* y, size_t n, size_t i, size_t o, bool bf16) {
          WithType(bf16, [&](auto type) {
            using T = decltype(type);
            Linear(In<T>(x), In<T>(w), Out<T>(y), n, i, o);
          });
        },
    .rms_norm =
        [](const void* x, const void* w, void* y, size_t n, size_t d, float eps, bool bf16) {
          WithType(bf16, [&](auto type) {
            using T = decltype(type);
            RmsNorm(In<T>(x), In<T>(w), Out<T>(y), n, d, eps);
          });
        },
    .add_rms_norm =
        [](const void* x, const void* residual, const void* w, void* y, void* sum, size_t n,
           size_t d, float eps, bool bf16) {
          WithType(bf16, [&](auto type) {
            using T = decltype(type);
            AddRmsNorm(In<T>(x), In<T>(residual), In<T>(w), Out<T>(y), Out<T>(sum), n, d, eps);
          });
        },
    .rope =
        [](const void* x, const float* cos, const float* sin, void* y, size_t n, size_t heads,
           size_t h, size_t x_stride, bool bf16) {
          WithType(bf16, [&](auto type) {
            using T = decltype(type);
            Rope(In<T>(x), cos, sin, Out<T>(y), n, heads, h, x_stride);
          });
        },
    .silu_mul =
        [](const void* x, void* y, size_t n, size_t f, bool bf16) {
          WithType(bf16, [&](auto type) {
            using T = decltype(type);
            SiluMul(In<T>(x), Out<T>(y), n, f);
          });
        },
    .attention =
        [](const Attention& args, bool bf16) {
          WithType(bf16, [&](auto type) { RunAttention<decltype(type)>(args); });
        },
};

}  // namespace tokenspeed::cpu::TOKENSPEED_ISA
