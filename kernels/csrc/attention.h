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

constexpr size_t kQueryTile = 8;    // query tokens of one item; times groups rows of scores
constexpr size_t kMinRange = 256;   // context tokens below which a range is not cut
constexpr size_t kItemsPerThread = 4;

struct Item {
  size_t row, head, first_query, num_queries;
  size_t begin, end;    // context range, begin at a block boundary
  size_t first_query_position;
  ptrdiff_t partial;    // where the partial result goes; -1: straight to the output
};

// Scratch of one thread.
struct Workspace {
  std::vector<float> scores, values, maxima, sums, output;
  void Reserve(size_t query_rows, size_t block_size, size_t head_dim) {
    scores.resize(query_rows * block_size);
    values.resize(block_size * head_dim);
    maxima.resize(query_rows);
    sums.resize(query_rows);
    output.resize(query_rows * head_dim);
  }
};

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
void RunItem(const Attention& a, const Item& item, Workspace& work) {
  const size_t h = a.head_dim, g = a.groups, bs = a.block_size;
  const size_t query_rows = item.num_queries * g;
  const T* q = static_cast<const T*>(a.q);
  const int32_t* table = a.block_tables + item.row * a.max_blocks;
  work.Reserve(kQueryTile * g, bs, h);
  std::fill_n(work.maxima.begin(), query_rows, -std::numeric_limits<float>::infinity());
  std::fill_n(work.sums.begin(), query_rows, 0.0f);
  std::fill_n(work.output.begin(), query_rows * h, 0.0f);
  for (size_t start = item.begin; start < item.end; start += bs) {
    const size_t count = std::min(bs, item.end - start);
    const size_t base = (static_cast<size_t>(table[start / bs]) * a.kv_heads + item.head) * bs * h;
    const T* keys = static_cast<const T*>(a.k_cache) + base;
    const T* values = static_cast<const T*>(a.v_cache) + base;
    for (size_t query = 0; query < item.num_queries; ++query) {
      const T* row = q + (((item.first_query + query) * a.kv_heads + item.head) * g) * h;
      Dot(keys, h, count, row, h, g, h, work.scores.data() + query * g * bs, bs);
    }
#pragma omp simd
    for (size_t i = 0; i < count * h; ++i) work.values[i] = ToFloat(values[i]);
    for (size_t row = 0; row < query_rows; ++row) {
      const size_t position = item.first_query_position + row / g;
      if (position < start) continue;
      const size_t visible = std::min(count, position - start + 1);
      float* scores = work.scores.data() + row * bs;
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
      if (keep != 1.0f) {
#pragma omp simd
        for (size_t i = 0; i < h; ++i) output[i] *= keep;
      }
      size_t slot = 0;
      for (; slot + 4 <= visible; slot += 4) {
        const float* v = work.values.data() + slot * h;
        const float p0 = scores[slot], p1 = scores[slot + 1];
        const float p2 = scores[slot + 2], p3 = scores[slot + 3];
#pragma omp simd
        for (size_t i = 0; i < h; ++i)
          output[i] += p0 * v[i] + p1 * v[h + i] + p2 * v[2 * h + i] + p3 * v[3 * h + i];
      }
      for (; slot < visible; ++slot) {
        const float* v = work.values.data() + slot * h;
#pragma omp simd
        for (size_t i = 0; i < h; ++i) output[i] += scores[slot] * v[i];
      }
    }
  }
}

template <typename T>
void RunAttention(const Attention& a) {
  WriteCache<T>(a);
  const size_t h = a.head_dim, g = a.groups;
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
  T* out = static_cast<T*>(a.out);
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
    Workspace work;
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
