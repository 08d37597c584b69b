// SPDX-License-Identifier: MIT
// Matrix product with a row-major [out, in] weight, for any number of tokens.
#pragma once

#include <algorithm>

#include "vector.h"

namespace tokenspeed::cpu::TOKENSPEED_ISA {

// Output rows that one thread works on at a time: their weights stay in its L2 cache while all
// tokens pass.
constexpr size_t kPanelRows = 64;
// Tokens between two stores of a panel's float32 results.
constexpr size_t kTokenTile = 32;

template <typename T>
void Linear(const T* x, const T* w, T* y, size_t n, size_t in, size_t out) {
  const size_t rows = std::min(kPanelRows, std::max<size_t>(8, out / 64 / 8 * 8));
  const size_t panels = (out + rows - 1) / rows;
#pragma omp parallel for schedule(static)
  for (size_t panel = 0; panel < panels; ++panel) {
    const size_t first = panel * rows;
    const size_t count = std::min(rows, out - first);
    float sums[kTokenTile * kPanelRows];
    for (size_t token = 0; token < n; token += kTokenTile) {
      const size_t tokens = std::min(kTokenTile, n - token);
      Dot(w + first * in, in, count, x + token * in, in, tokens, in, sums, kPanelRows);
      for (size_t t = 0; t < tokens; ++t) {
        T* to = y + (token + t) * out + first;
#pragma omp simd
        for (size_t r = 0; r < count; ++r) to[r] = FromFloat<T>(sums[t * kPanelRows + r]);
      }
    }
  }
}

}  // namespace tokenspeed::cpu::TOKENSPEED_ISA
