// SPDX-License-Identifier: MIT
// Row-wise kernels: norms, rope, gated activation.
#pragma once

#include <cmath>
#include <vector>

#include "vector.h"

namespace tokenspeed::cpu::TOKENSPEED_ISA {

// Rows below this count run on the calling thread: waking the team costs more than they do.
constexpr size_t kParallelRows = 16;

template <typename T>
inline void NormRow(const T* x, const T* w, T* y, size_t d, float eps) {
  float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
  for (size_t i = 0; i < d; ++i) squares += ToFloat(x[i]) * ToFloat(x[i]);
  const float scale = 1.0f / std::sqrt(squares / static_cast<float>(d) + eps);
#pragma omp simd
  for (size_t i = 0; i < d; ++i)
    y[i] = FromFloat<T>(ToFloat(FromFloat<T>(ToFloat(x[i]) * scale)) * ToFloat(w[i]));
}

template <typename T>
void RmsNorm(const T* x, const T* w, T* y, size_t n, size_t d, float eps) {
#pragma omp parallel for schedule(static) if (n >= kParallelRows)
  for (size_t row = 0; row < n; ++row) NormRow(x + row * d, w, y + row * d, d, eps);
}

template <typename T>
void AddRmsNorm(const T* x, const T* residual, const T* w, T* y, T* sum, size_t n, size_t d,
                float eps) {
#pragma omp parallel for schedule(static) if (n >= kParallelRows)
  for (size_t row = 0; row < n; ++row) {
    const size_t start = row * d;
#pragma omp simd
    for (size_t i = 0; i < d; ++i)
      sum[start + i] = FromFloat<T>(ToFloat(x[start + i]) + ToFloat(residual[start + i]));
    NormRow(sum + start, w, y + start, d, eps);
  }
}

template <typename T>
void Rope(const T* x, const float* cos, const float* sin, T* y, size_t n, size_t heads, size_t h,
          size_t x_stride) {
  const size_t half = h / 2;
#pragma omp parallel for schedule(static) if (n >= kParallelRows)
  for (size_t row = 0; row < n; ++row) {
    const float* c = cos + row * h;
    const float* s = sin + row * h;
    for (size_t head = 0; head < heads; ++head) {
      const T* from = x + row * x_stride + head * h;
      T* to = y + (row * heads + head) * h;
#pragma omp simd
      for (size_t i = 0; i < half; ++i) {
        const float first = ToFloat(from[i]);
        const float second = ToFloat(from[half + i]);
        to[i] = FromFloat<T>(first * c[i] - second * s[i]);
        to[half + i] = FromFloat<T>(second * c[half + i] + first * s[half + i]);
      }
    }
  }
}

template <typename T>
void SiluMul(const T* x, T* y, size_t n, size_t f) {
#pragma omp parallel for schedule(static) if (n * f >= 16384)
  for (size_t row = 0; row < n; ++row) {
    const T* gate = x + row * 2 * f;
    const T* up = gate + f;
    T* to = y + row * f;
#pragma omp simd
    for (size_t i = 0; i < f; ++i) {
      const float g = ToFloat(gate[i]);
      const float e = ExpNonPositive(g < 0.0f ? g : -g);  // exp(-|g|) never overflows
      const float sigmoid = (g < 0.0f ? e : 1.0f) / (1.0f + e);
      to[i] = FromFloat<T>(ToFloat(FromFloat<T>(g * sigmoid)) * ToFloat(up[i]));
    }
  }
}

}  // namespace tokenspeed::cpu::TOKENSPEED_ISA
