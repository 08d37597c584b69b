// SPDX-License-Identifier: MIT
// The CPU kernels, as one table per instruction set.
//
// All pointers are to contiguous row-major arrays, but for the blocks of a cache, which stand
// `block_stride` elements apart; `bf16` says whether activations and weights are
// bfloat16 or float32.  Kernels read and write only what their comments name, run on the OpenMP
// team of the process, and never allocate in proportion to a context.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tokenspeed::cpu {

struct Attention {
  const void* q;                // [tokens, kv_heads, groups, head_dim]
  const void* k;                // [tokens, kv_heads, head_dim], written to the cache first
  const void* v;                // as k
  void* k_cache;                // [blocks, kv_heads, block_size, head_dim], blocks apart
  void* v_cache;                // as k_cache
  void* out;                    // as q
  const int64_t* cache_slots;   // [tokens]: block * block_size + offset
  const int32_t* query_starts;  // [rows + 1]
  const int32_t* context_lens;  // [rows]: cached and new tokens
  const int32_t* block_tables;  // [rows, max_blocks]
  size_t tokens, rows, max_blocks;
  size_t kv_heads, groups, head_dim, block_size, block_stride;
  float scale;
};

struct Kernels {
  const char* name;
  // y[n, o] = x[n, i] . w[o, i]^T.
  void (*linear)(const void* x, const void* w, void* y, size_t n, size_t i, size_t o, bool bf16);
  // y[n, d] = w * round(x * rsqrt(mean(x^2) + eps)).
  void (*rms_norm)(const void* x, const void* w, void* y, size_t n, size_t d, float eps, bool bf16);
  // sum = round(x + residual); y = rms_norm(sum).
  void (*add_rms_norm)(const void* x, const void* residual, const void* w, void* y, void* sum,
                       size_t n, size_t d, float eps, bool bf16);
  // Rotates the halves of each head: y1 = x1 cos1 - x2 sin1, y2 = x2 cos2 + x1 sin2.
  // x, y [n, heads, h] with rows of x `x_stride` elements apart; cos, sin [n, h] float32.
  void (*rope)(const void* x, const float* cos, const float* sin, void* y, size_t n, size_t heads,
               size_t h, size_t x_stride, bool bf16);
  // y[n, f] = silu(x[n, :f]) * x[n, f:].
  void (*silu_mul)(const void* x, void* y, size_t n, size_t f, bool bf16);
  // Writes the step's k and v into their blocks, then softmax(scale q k^T) v, causal per row.
  void (*attention)(const Attention& args, bool bf16);
};

// The widest table that this processor runs.
const Kernels& BestKernels();

namespace portable {
extern const Kernels kKernels;
}
namespace avx512bf16 {
extern const Kernels kKernels;
}

}  // namespace tokenspeed::cpu
