// SPDX-License-Identifier: MIT
// Element types and inner products of the CPU kernels.
//
// Every kernel source is compiled once per instruction set, inside the namespace that the build
// names in TOKENSPEED_ISA.  This header is the only place that knows intrinsics; the kernels are
// plain loops that the compiler vectorises, except for the inner product, where it can not.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace tokenspeed::cpu::TOKENSPEED_ISA {

// The upper half of an IEEE float.
struct BFloat16 {
  uint16_t bits;
};

inline float ToFloat(float value) { return value; }
inline float ToFloat(BFloat16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

template <typename T>
T FromFloat(float value);
template <>
inline float FromFloat<float>(float value) {
  return value;
}
// Rounds to nearest even; NaN stays NaN.
template <>
inline BFloat16 FromFloat<BFloat16>(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;
  return {static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded)};
}

// exp(x) for x <= 0, relative error below 2e-7; Cephes' expf polynomial, written without branches
// so that loops over it vectorise.  Values below -87 give 0.
inline float ExpNonPositive(float x) {
  const float clamped = x < -87.0f ? -87.0f : x;
  const float scaled = clamped * 1.44269504088896341f - 0.5f;
  const int32_t n = static_cast<int32_t>(scaled);  // truncation of a non-positive number: ceil
  const float k = static_cast<float>(n);
  const float r = clamped - k * 0.693359375f + k * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float power = std::bit_cast<float>((n + 127) << 23);
  // A factor, not a choice: GCC leaves a loop with a choice of results unvectorised.
  return p * power * static_cast<float>(x >= -87.0f);
}

// out[t * stride + r] = sum over k of w[r * ldw + k] * x[t * ldx + k], fp32 accumulation, for R
// rows of w and T rows of x.
template <int R, int T>
inline void DotTile(const float* w, size_t ldw, const float* x, size_t ldx, size_t k, float* out,
                    size_t stride) {
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < T; ++t) {
      float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
      for (size_t i = 0; i < k; ++i) sum += w[r * ldw + i] * x[t * ldx + i];
      out[t * stride + r] = sum;
    }
  }
}

#if defined(__AVX512BF16__)

// Sums of four accumulators, as the four floats of one 128-bit lane.
inline __m128 ReduceFour(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 lanes =
      _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 half =
      _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

template <int R, int T>
inline void DotTile(const BFloat16* w, size_t ldw, const BFloat16* x, size_t ldx, size_t k,
                    float* out, size_t stride) {
  __m512 sums[T][R];
  for (int t = 0; t < T; ++t)
    for (int r = 0; r < R; ++r) sums[t][r] = _mm512_setzero_ps();
  const auto accumulate = [&](size_t i, __mmask32 mask) {
    __m512bh rows[R];
    for (int r = 0; r < R; ++r)
      rows[r] = std::bit_cast<__m512bh>(_mm512_maskz_loadu_epi16(mask, w + r * ldw + i));
    for (int t = 0; t < T; ++t) {
      const auto column = std::bit_cast<__m512bh>(_mm512_maskz_loadu_epi16(mask, x + t * ldx + i));
      for (int r = 0; r < R; ++r) sums[t][r] = _mm512_dpbf16_ps(sums[t][r], rows[r], column);
    }
  };
  size_t i = 0;
  for (; i + 32 <= k; i += 32) {
    __m512bh rows[R];
    for (int r = 0; r < R; ++r) {
      const BFloat16* row = w + r * ldw + i;
      // Weights stream from memory: fetch the next tile while this one is multiplied.
      if constexpr (R > 1) _mm_prefetch(row + R * ldw, _MM_HINT_T0);
      rows[r] = std::bit_cast<__m512bh>(_mm512_loadu_si512(row));
    }
    for (int t = 0; t < T; ++t) {
      const auto column = std::bit_cast<__m512bh>(_mm512_loadu_si512(x + t * ldx + i));
      for (int r = 0; r < R; ++r) sums[t][r] = _mm512_dpbf16_ps(sums[t][r], rows[r], column);
    }
  }
  if (i < k) accumulate(i, static_cast<__mmask32>((uint64_t{1} << (k - i)) - 1));
  for (int t = 0; t < T; ++t) {
    if constexpr (R == 4) {
      _mm_storeu_ps(out + t * stride, ReduceFour(sums[t][0], sums[t][1], sums[t][2], sums[t][3]));
    } else {
      for (int r = 0; r < R; ++r) out[t * stride + r] = _mm512_reduce_add_ps(sums[t][r]);
    }
  }
}

#else

template <int R, int T>
inline void DotTile(const BFloat16* w, size_t ldw, const BFloat16* x, size_t ldx, size_t k,
                    float* out, size_t stride) {
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < T; ++t) {
      float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
      for (size_t i = 0; i < k; ++i) sum += ToFloat(w[r * ldw + i]) * ToFloat(x[t * ldx + i]);
      out[t * stride + r] = sum;
    }
  }
}

#endif

// out[t * stride + r] for any number of rows of w and x, in tiles of four by four.
template <typename T>
inline void Dot(const T* w, size_t ldw, size_t rows, const T* x, size_t ldx, size_t columns,
                size_t k, float* out, size_t stride) {
  for (size_t t = 0; t < columns; t += 4) {
    const size_t width = columns - t < 4 ? columns - t : 4;
    for (size_t r = 0; r < rows; r += 4) {
      const T* wr = w + r * ldw;
      const T* xt = x + t * ldx;
      float* y = out + t * stride + r;
      if (rows - r >= 4) {
        switch (width) {
          case 4:
            DotTile<4, 4>(wr, ldw, xt, ldx, k, y, stride);
            break;
          case 3:
            DotTile<4, 3>(wr, ldw, xt, ldx, k, y, stride);
            break;
          case 2:
            DotTile<4, 2>(wr, ldw, xt, ldx, k, y, stride);
            break;
          default:
            DotTile<4, 1>(wr, ldw, xt, ldx, k, y, stride);
            break;
        }
      } else {
        for (size_t i = 0; i < width; ++i)
          for (size_t j = r; j < rows; ++j)
            DotTile<1, 1>(w + j * ldw, ldw, xt + i * ldx, ldx, k, out + (t + i) * stride + j,
                          stride);
      }
    }
  }
}

}  // namespace tokenspeed::cpu::TOKENSPEED_ISA
