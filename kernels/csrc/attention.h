// SPDX-License-Identifier: MIT
// Paged attention that reads KV blocks in place.
//
// Work is cut into items of (row, kv head, query tile, range of the context).  An item keeps a
// running maximum, a running sum and an unnormalised output per query (Milakov & Gimelshein 2018);
// where a context is cut into several ranges, a second pass merges them by their log-sum-exp.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <omp.h>

#include "kernels.h"
#include "vector.h"

namespace tokenspeed::cpu::TOKENSPEED_ISA {

constexpr size_t kQueryTile = 8;   // query tokens of one item; times groups rows of scores
constexpr size_t kChunk = 64;      // context tokens between two updates of the running maxima
constexpr size_t kMinRange = 256;  // context tokens below which a range is not cut
constexpr size_t kItemsPerThread = 4;

struct Item {
  size_t row, head, first_query, num_queries;
  size_t begin, end;    // context range, begin at a block boundary
  size_t first_query_position;
  ptrdiff_t partial;    // where the partial result goes; -1: straight to the output
};

// Scratch of one thread.
template <typename T>
struct Workspace {
  std::vector<T> queries;
  std::vector<float> scores, values, maxima, sums, output;
  size_t stride;  // of scores
  Workspace(size_t query_rows, size_t block_size, size_t head_dim)
      : queries(query_rows * head_dim),
        maxima(query_rows),
        sums(query_rows),
        output(query_rows * head_dim),
        stride((kChunk + block_size - 1) / block_size * block_size) {
    scores.resize(query_rows * stride);
    values.resize(stride * head_dim);
  }
};

// output[R, h] += weights[R, count] . values[count, h], for R rows at once.
template <int R>
inline void AddWeighted(const float* weights, size_t stride, const float* values, size_t count,
                        size_t h, float* output) {
  typedef float Lane __attribute__((vector_size(64), aligned(4), may_alias));
  constexpr size_t kLanes = 4, kLane = 16, kWidth = kLanes * kLane;
  size_t first = 0;
  for (; first + kWidth <= h; first += kWidth) {
    Lane sums[R][kLanes];
    for (int r = 0; r < R; ++r)
      for (size_t i = 0; i < kLanes; ++i)
        sums[r][i] = *reinterpret_cast<const Lane*>(output + r * h + first + i * kLane);
    for (size_t slot = 0; slot < count; ++slot) {
      const Lane* v = reinterpret_cast<const Lane*>(values + slot * h + first);
      for (int r = 0; r < R; ++r) {
        const float p = weights[r * stride + slot];
        for (size_t i = 0; i < kLanes; ++i) sums[r][i] += p * v[i];
      }
    }
    for (int r = 0; r < R; ++r)
      for (size_t i = 0; i < kLanes; ++i)
        *reinterpret_cast<Lane*>(output + r * h + first + i * kLane) = sums[r][i];
  }
  for (size_t slot = 0; slot < count && first < h; ++slot) {
    for (int r = 0; r < R; ++r) {
      const float p = weights[r * stride + slot];
#pragma omp simd
      for (size_t i = first; i < h; ++i) output[r * h + i] += p * values[slot * h + i];
    }
  }
}

template <typename T>
void WriteCache(const Attention& a) {
  const T* k = static_cast<const T*>(a.k);
  const T* v = static_cast<const T*>(a.v);
  T* k_cache = static_cast<T*>(a.k_cache);
  T* v_cache = static_cast<T*>(a.v_cache);
  const size_t h = a.head_dim;
  for (size_t token = 0; token < a.tokens; ++token) {
    const size_t block = static_cast<size_t>(a.cache_slots[token]) / a.block_size;
    const size_t offset = static_cast<size_t>(a.cache_slots[token]) % a.block_size;
    for (size_t head = 0; head < a.kv_heads; ++head) {
      const size_t from = (token * a.kv_heads + head) * h;
      const size_t to = ((block * a.kv_heads + head) * a.block_size + offset) * h;
      std::memcpy(k_cache + to, k + from, h * sizeof(T));
      std::memcpy(v_cache + to, v + from, h * sizeof(T));
    }
  }
}

// Attends the item's queries over its range; leaves the unnormalised result in the workspace.
template <typename T>
void RunItem(const Attention& a, const Item& item, Workspace<T>& work) {
  const size_t h = a.head_dim, g = a.groups, bs = a.block_size, stride = work.stride;
  const size_t query_rows = item.num_queries * g;
  const int32_t* table = a.block_tables + item.row * a.max_blocks;
  for (size_t query = 0; query < item.num_queries; ++query) {
    const size_t from = ((item.first_query + query) * a.kv_heads + item.head) * g * h;
    std::copy_n(static_cast<const T*>(a.q) + from, g * h, work.queries.data() + query * g * h);
  }
  std::fill_n(work.maxima.begin(), query_rows, -std::numeric_limits<float>::infinity());
  std::fill_n(work.sums.begin(), query_rows, 0.0f);
  std::fill_n(work.output.begin(), query_rows * h, 0.0f);
  for (size_t start = item.begin; start < item.end; start += stride) {
    const size_t count = std::min(stride, item.end - start);
    for (size_t offset = 0; offset < count; offset += bs) {
      const size_t slots = std::min(bs, count - offset);
      const size_t block = static_cast<size_t>(table[(start + offset) / bs]);
      const size_t base = (block * a.kv_heads + item.head) * bs * h;
      Dot(static_cast<const T*>(a.k_cache) + base, h, slots, work.queries.data(), h, query_rows, h,
          work.scores.data() + offset, stride);
      const T* values = static_cast<const T*>(a.v_cache) + base;
      float* to = work.values.data() + offset * h;
#pragma omp simd
      for (size_t i = 0; i < slots * h; ++i) to[i] = ToFloat(values[i]);
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
      if (keep != 1.0f) {
        float* output = work.output.data() + row * h;
#pragma omp simd
        for (size_t i = 0; i < h; ++i) output[i] *= keep;
      }
    }
    for (size_t row = 0; row < query_rows; row += 4) {
      const float* weights = work.scores.data() + row * stride;
      float* output = work.output.data() + row * h;
      const float* values = work.values.data();
      switch (query_rows - row) {
        case 1: AddWeighted<1>(weights, stride, values, count, h, output); break;
        case 2: AddWeighted<2>(weights, stride, values, count, h, output); break;
        case 3: AddWeighted<3>(weights, stride, values, count, h, output); break;
        default: AddWeighted<4>(weights, stride, values, count, h, output); break;
      }
    }
  }
}

template <typename T>
void RunAttention(const Attention& a) {
  WriteCache<T>(a);
  const size_t h = a.head_dim, g = a.groups;
  T* out = static_cast<T*>(a.out);
  const size_t used = static_cast<size_t>(a.query_starts[a.rows]);
  std::memset(out + used * a.kv_heads * g * h, 0, (a.tokens - used) * a.kv_heads * g * h * sizeof(T));
  const size_t threads = static_cast<size_t>(omp_get_max_threads());
  size_t tiles = 0;
  for (size_t row = 0; row < a.rows; ++row) {
    const size_t queries = static_cast<size_t>(a.query_starts[row + 1] - a.query_starts[row]);
    tiles += (queries + kQueryTile - 1) / kQueryTile * a.kv_heads;
  }
  if (tiles == 0) return;
  const size_t wanted_ranges = (threads * kItemsPerThread + tiles - 1) / tiles;
  std::vector<Item> items;
  items.reserve(tiles * wanted_ranges);
  size_t partials = 0;
  for (size_t row = 0; row < a.rows; ++row) {
    const size_t first = static_cast<size_t>(a.query_starts[row]);
    const size_t queries = static_cast<size_t>(a.query_starts[row + 1]) - first;
    const size_t cached = static_cast<size_t>(a.context_lens[row]) - queries;
    for (size_t tile = 0; tile < queries; tile += kQueryTile) {
      const size_t count = std::min(kQueryTile, queries - tile);
      const size_t context = cached + tile + count;
      const size_t ranges = std::clamp<size_t>(context / kMinRange, 1, wanted_ranges);
      const size_t blocks = (context + a.block_size - 1) / a.block_size;
      const size_t length = (blocks + ranges - 1) / ranges * a.block_size;
      const bool whole = length >= context;
      for (size_t head = 0; head < a.kv_heads; ++head) {
        for (size_t begin = 0; begin < context; begin += length) {
          const ptrdiff_t partial = whole ? -1 : static_cast<ptrdiff_t>(partials++);
          items.push_back({row, head, first + tile, count, begin,
                           std::min(context, begin + length), cached + tile, partial});
        }
      }
    }
  }
  // A partial result: per query row its maximum, its sum and its unnormalised output.
  const size_t stride = kQueryTile * g * (h + 2);
  std::vector<float> parts(partials * stride);
  const auto store = [&](const Item& item, const float* output, const float* sums) {
    for (size_t row = 0; row < item.num_queries * g; ++row) {
      const size_t token = item.first_query + row / g;
      T* to = out + ((token * a.kv_heads + item.head) * g + row % g) * h;
      const float scale = 1.0f / sums[row];
#pragma omp simd
      for (size_t i = 0; i < h; ++i) to[i] = FromFloat<T>(output[row * h + i] * scale);
    }
  };
#pragma omp parallel
  {
    Workspace<T> work(kQueryTile * g, a.block_size, h);
#pragma omp for schedule(dynamic, 1)
    for (size_t index = 0; index < items.size(); ++index) {
      const Item& item = items[index];
      RunItem<T>(a, item, work);
      if (item.partial < 0) {
        store(item, work.output.data(), work.sums.data());
        continue;
      }
      const size_t rows = item.num_queries * g;
      float* part = parts.data() + static_cast<size_t>(item.partial) * stride;
      std::copy_n(work.maxima.begin(), rows, part);
      std::copy_n(work.sums.begin(), rows, part + rows);
      std::copy_n(work.output.begin(), rows * h, part + 2 * rows);
    }
  }
  // Ranges of one tile are neighbours in `items`; merge them in order, so that the result does not
  // depend on which thread was first.
  for (size_t index = 0; index < items.size();) {
    size_t end = index + 1;
    if (items[index].partial < 0) {
      index = end;
      continue;
    }
    while (end < items.size() && items[end].begin != 0) ++end;
    const Item& item = items[index];
    const size_t rows = item.num_queries * g;
    std::vector<float> output(rows * h, 0.0f), sums(rows, 0.0f);
    for (size_t row = 0; row < rows; ++row) {
      float maximum = -std::numeric_limits<float>::infinity();
      for (size_t i = index; i < end; ++i)
        maximum = std::max(maximum, parts[static_cast<size_t>(items[i].partial) * stride + row]);
      for (size_t i = index; i < end; ++i) {
        const float* part = parts.data() + static_cast<size_t>(items[i].partial) * stride;
        const float weight = ExpNonPositive(part[row] - maximum);
        sums[row] += weight * part[rows + row];
        const float* from = part + 2 * rows + row * h;
#pragma omp simd
        for (size_t j = 0; j < h; ++j) output[row * h + j] += weight * from[j];
      }
    }
    store(item, output.data(), sums.data());
    index = end;
  }
}

}  // namespace tokenspeed::cpu::TOKENSPEED_ISA
