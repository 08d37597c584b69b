// SPDX-License-Identifier: MIT
// The `_cpu` Python module: kernels on raw addresses, so that it needs no torch to build.
#include <pybind11/pybind11.h>

#include "kernels.h"

namespace tokenspeed::cpu {

const Kernels& BestKernels() {
#if defined(TOKENSPEED_HAS_AVX512BF16)
  if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
    return avx512bf16::kKernels;
  }
#endif
  return portable::kKernels;
}

}  // namespace tokenspeed::cpu

namespace {

using Address = uintptr_t;
using tokenspeed::cpu::BestKernels;

template <typename T = void>
T* At(Address address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  namespace py = pybind11;
  m.attr("instruction_set") = BestKernels().name;
  using Release = py::call_guard<py::gil_scoped_release>;
  m.def(
      "linear",
      [](Address x, Address w, Address y, size_t n, size_t i, size_t o, bool bf16) {
        BestKernels().linear(At<>(x), At<>(w), At<>(y), n, i, o, bf16);
      },
      Release());
  m.def("rms_norm", [](Address x, Address w, Address y, size_t n, size_t d, float eps, bool bf16) {
    BestKernels().rms_norm(At<>(x), At<>(w), At<>(y), n, d, eps, bf16);
  });
  m.def("add_rms_norm", [](Address x, Address residual, Address w, Address y, Address sum, size_t n,
                           size_t d, float eps, bool bf16) {
    BestKernels().add_rms_norm(At<>(x), At<>(residual), At<>(w), At<>(y), At<>(sum), n, d, eps,
                               bf16);
  });
  m.def("rope", [](Address x, Address cos, Address sin, Address y, size_t n, size_t heads, size_t h,
                   size_t x_stride, bool bf16) {
    BestKernels().rope(At<>(x), At<float>(cos), At<float>(sin), At<>(y), n, heads, h, x_stride,
                       bf16);
  });
  m.def("silu_mul", [](Address x, Address y, size_t n, size_t f, bool bf16) {
    BestKernels().silu_mul(At<>(x), At<>(y), n, f, bf16);
  });
  m.def(
      "attention",
      [](Address q, Address k, Address v, Address k_cache, Address v_cache, Address out,
         Address cache_slots, Address query_starts, Address context_lens, Address block_tables,
         size_t tokens, size_t rows, size_t max_blocks, size_t kv_heads, size_t groups,
         size_t head_dim, size_t block_size, size_t block_stride, float scale, bool bf16) {
        BestKernels().attention({.q = At<>(q),
                                 .k = At<>(k),
                                 .v = At<>(v),
                                 .k_cache = At<>(k_cache),
                                 .v_cache = At<>(v_cache),
                                 .out = At<>(out),
                                 .cache_slots = At<int64_t>(cache_slots),
                                 .query_starts = At<int32_t>(query_starts),
                                 .context_lens = At<int32_t>(context_lens),
                                 .block_tables = At<int32_t>(block_tables),
                                 .tokens = tokens,
                                 .rows = rows,
                                 .max_blocks = max_blocks,
                                 .kv_heads = kv_heads,
                                 .groups = groups,
                                 .head_dim = head_dim,
                                 .block_size = block_size,
                                 .block_stride = block_stride,
                                 .scale = scale},
                                bf16);
      },
      Release());
}
