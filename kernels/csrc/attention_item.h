// SPDX-License-Identifier: MIT
// One piece of attention: the queries of a row that share a kv head, over a range of the context.
//
// Few queries (decode) take inner products of their rows with the keys as they lie.  Many (prefill)
// keep their scores transposed, a lane a query, so that no step reduces across lanes.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels.h"
#include "vector.h"

namespace tokenspeed::cpu::TOKENSPEED_ISA {

constexpr size_t kChunk = 64;     // context tokens between two updates of the running maxima
constexpr size_t kLane = 16;      // floats of the widest register
constexpr size_t kWideRows = 16;  // from so many query rows on, scores are transposed
constexpr float kNone = -std::numeric_limits<float>::infinity();

struct Item {
  size_t row, head, first_query, num_queries;
  size_t begin, end;  // context range, begin at a block boundary
  size_t first_query_position;
  ptrdiff_t partial;  // where the partial result goes; -1: straight to the output
};

// Scratch of one thread.  After an item: per query row (query * groups + group) the maximum of its
// scores, the sum of their exponentials, and the unnormalised output.
template <typename T>
struct Workspace {
  size_t stride;  // slots of a chunk
  std::vector<T> queries;
  std::vector<float> turned, keys, values, scores, maxima, sums, keep, output;
  std::vector<int32_t> positions;

  Workspace(size_t query_rows, size_t block_size, size_t head_dim)
      : stride((kChunk + block_size - 1) / block_size * block_size),
        queries(query_rows * head_dim),
        values(stride * head_dim) {
    const size_t lanes = (query_rows + kLane - 1) / kLane * kLane;
    if (query_rows >= kWideRows) {
      turned.resize(lanes * head_dim);
      keys.resize(stride * head_dim);
      keep.resize(lanes);
      positions.resize(lanes);
    }
    scores.resize(stride * lanes);
    maxima.resize(lanes);
    sums.resize(lanes);
    output.resize(lanes * head_dim);
  }
};

// sums[R, kLane * L] += weights[R, count] . values[count, kLane * L], all kept in registers; rows
// of `weights` are `row_step` apart and its columns `step`.
template <int R, int L>
inline void AddTile(const float* weights, size_t row_step, size_t step, const float* values,
                    size_t count, size_t width, float* sums) {
  typedef float Lane __attribute__((vector_size(64), aligned(4), may_alias));
  Lane tile[R][L];
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < L; ++i)
      tile[r][i] = *reinterpret_cast<const Lane*>(sums + r * width + i * kLane);
  for (size_t k = 0; k < count; ++k) {
    const Lane* v = reinterpret_cast<const Lane*>(values + k * width);
    for (int r = 0; r < R; ++r) {
      const float weight = weights[r * row_step + k * step];
      for (int i = 0; i < L; ++i) tile[r][i] += weight * v[i];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < L; ++i) *reinterpret_cast<Lane*>(sums + r * width + i * kLane) = tile[r][i];
}

template <int R>
inline void AddRows(const float* weights, size_t row_step, size_t step, const float* values,
                    size_t count, size_t width, float* sums) {
  size_t first = 0;
  for (; first + 4 * kLane <= width; first += 4 * kLane)
    AddTile<R, 4>(weights, row_step, step, values + first, count, width, sums + first);
  for (; first + 2 * kLane <= width; first += 2 * kLane)
    AddTile<R, 2>(weights, row_step, step, values + first, count, width, sums + first);
  for (; first + kLane <= width; first += kLane)
    AddTile<R, 1>(weights, row_step, step, values + first, count, width, sums + first);
  for (; first < width; ++first)
    for (int r = 0; r < R; ++r)
      for (size_t k = 0; k < count; ++k)
        sums[r * width + first] += weights[r * row_step + k * step] * values[k * width + first];
}

// sums[rows, width] += weights[rows, count] . values[count, width].
inline void AddProduct(const float* weights, size_t rows, size_t row_step, size_t step,
                       const float* values, size_t count, size_t width, float* sums) {
  for (size_t row = 0; row < rows; row += 4) {
    const float* from = weights + row * row_step;
    float* to = sums + row * width;
    switch (rows - row) {
      case 1:
        AddRows<1>(from, row_step, step, values, count, width, to);
        break;
      case 2:
        AddRows<2>(from, row_step, step, values, count, width, to);
        break;
      case 3:
        AddRows<3>(from, row_step, step, values, count, width, to);
        break;
      default:
        AddRows<4>(from, row_step, step, values, count, width, to);
        break;
    }
  }
}

// Where the block of context position `start` begins in a cache.
inline size_t BlockBase(const Attention& a, const Item& item, size_t start) {
  const size_t place = item.row * a.max_blocks + start / a.block_size;
  const size_t block = static_cast<size_t>(a.block_tables[place]);
  return block * a.block_stride + item.head * a.block_size * a.head_dim;
}

template <typename T>
void Widen(const T* from, size_t count, float* to) {
#pragma omp simd
  for (size_t i = 0; i < count; ++i) to[i] = ToFloat(from[i]);
}

// Scores [query row, slot]; a row at a time.
template <typename T>
void AddChunkNarrow(const Attention& a, const Item& item, size_t start, size_t count,
                    Workspace<T>& work) {
  const size_t h = a.head_dim, g = a.groups, query_rows = item.num_queries * g;
  const size_t stride = work.stride;
  for (size_t offset = 0; offset < count; offset += a.block_size) {
    const size_t slots = std::min(a.block_size, count - offset);
    const size_t base = BlockBase(a, item, start + offset);
    Dot(static_cast<const T*>(a.k_cache) + base, h, slots, work.queries.data(), h, query_rows, h,
        work.scores.data() + offset, stride);
    Widen(static_cast<const T*>(a.v_cache) + base, slots * h, work.values.data() + offset * h);
  }
  for (size_t row = 0; row < query_rows; ++row) {
    const size_t position = item.first_query_position + row / g;
    float* scores = work.scores.data() + row * stride;
    const size_t visible = position < start ? 0 : std::min(count, position - start + 1);
    std::fill(scores + visible, scores + count, 0.0f);
    if (visible == 0) continue;
    float maximum = work.maxima[row];
#pragma omp simd reduction(max : maximum)
    for (size_t i = 0; i < visible; ++i) {
      scores[i] *= a.scale;
      maximum = scores[i] > maximum ? scores[i] : maximum;
    }
    const float keep = ExpNonPositive(work.maxima[row] - maximum);
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < visible; ++i) {
      scores[i] = ExpNonPositive(scores[i] - maximum);
      sum += scores[i];
    }
    work.sums[row] = work.sums[row] * keep + sum;
    work.maxima[row] = maximum;
    float* output = work.output.data() + row * h;
#pragma omp simd
    for (size_t i = 0; i < h; ++i) output[i] *= keep;
  }
  AddProduct(work.scores.data(), query_rows, stride, 1, work.values.data(), count, h,
             work.output.data());
}

// Scores [slot, query row]; all rows at a time, `lanes` of them with the padding.
template <typename T>
void AddChunkWide(const Attention& a, const Item& item, size_t start, size_t count, size_t lanes,
                  Workspace<T>& work) {
  const size_t h = a.head_dim;
  for (size_t offset = 0; offset < count; offset += a.block_size) {
    const size_t slots = std::min(a.block_size, count - offset);
    const size_t base = BlockBase(a, item, start + offset);
    Widen(static_cast<const T*>(a.k_cache) + base, slots * h, work.keys.data() + offset * h);
    Widen(static_cast<const T*>(a.v_cache) + base, slots * h, work.values.data() + offset * h);
  }
  float* scores = work.scores.data();
  float* maxima = work.maxima.data();
  float* sums = work.sums.data();
  float* keep = work.keep.data();
  const int32_t* positions = work.positions.data();
  std::fill_n(scores, count * lanes, 0.0f);
  AddProduct(work.keys.data(), count, h, 1, work.turned.data(), h, lanes, scores);
  std::copy_n(maxima, lanes, keep);
  for (size_t slot = 0; slot < count; ++slot) {
    const int32_t at = static_cast<int32_t>(start + slot);
    float* row = scores + slot * lanes;
#pragma omp simd
    for (size_t i = 0; i < lanes; ++i) {
      row[i] = positions[i] < at ? kNone : row[i];
      maxima[i] = row[i] > maxima[i] ? row[i] : maxima[i];
    }
  }
#pragma omp simd
  for (size_t i = 0; i < lanes; ++i) {
    // A query that sees nothing yet has no maximum; any finite one makes its weights zero.
    keep[i] = ExpNonPositive(keep[i] - (maxima[i] == kNone ? 0.0f : maxima[i]));
    sums[i] *= keep[i];
  }
  for (size_t slot = 0; slot < count; ++slot) {
    float* row = scores + slot * lanes;
#pragma omp simd
    for (size_t i = 0; i < lanes; ++i) {
      row[i] = ExpNonPositive(row[i] - (maxima[i] == kNone ? 0.0f : maxima[i]));
      sums[i] += row[i];
    }
  }
  const size_t query_rows = item.num_queries * a.groups;
  for (size_t row = 0; row < query_rows; ++row) {
    if (keep[row] == 1.0f) continue;
    float* output = work.output.data() + row * h;
#pragma omp simd
    for (size_t i = 0; i < h; ++i) output[i] *= keep[row];
  }
  AddProduct(scores, query_rows, 1, lanes, work.values.data(), count, h, work.output.data());
}

// Attends the item's queries over its range.
template <typename T>
void RunItem(const Attention& a, const Item& item, Workspace<T>& work) {
  const size_t h = a.head_dim, g = a.groups, query_rows = item.num_queries * g;
  const size_t lanes = (query_rows + kLane - 1) / kLane * kLane;
  for (size_t query = 0; query < item.num_queries; ++query) {
    const size_t from = ((item.first_query + query) * a.kv_heads + item.head) * g * h;
    std::copy_n(static_cast<const T*>(a.q) + from, g * h, work.queries.data() + query * g * h);
  }
  const bool wide = query_rows >= kWideRows;
  if (wide) {
    std::fill_n(work.turned.begin(), lanes * h, 0.0f);
    // Padded lanes see everything and are never read.
    std::fill_n(work.positions.begin(), lanes, std::numeric_limits<int32_t>::max());
    for (size_t row = 0; row < query_rows; ++row) {
      work.positions[row] = static_cast<int32_t>(item.first_query_position + row / g);
      for (size_t i = 0; i < h; ++i)
        work.turned[i * lanes + row] = ToFloat(work.queries[row * h + i]) * a.scale;
    }
  }
  std::fill_n(work.maxima.begin(), lanes, kNone);
  std::fill_n(work.sums.begin(), lanes, 0.0f);
  std::fill_n(work.output.begin(), query_rows * h, 0.0f);
  for (size_t start = item.begin; start < item.end; start += work.stride) {
    const size_t count = std::min(work.stride, item.end - start);
    if (wide) {
      AddChunkWide(a, item, start, count, lanes, work);
    } else {
      AddChunkNarrow(a, item, start, count, work);
    }
  }
}

}  // namespace tokenspeed::cpu::TOKENSPEED_ISA
