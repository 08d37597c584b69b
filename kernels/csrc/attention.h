// SPDX-License-Identifier: MIT
// Paged attention that reads KV blocks in place.
//
// Work is cut into items of (row, kv head, query tile, range of the context).  An item keeps a
// running maximum, a running sum and an unnormalised output per query (Milakov & Gimelshein 2018);
// where a context is cut into several ranges, a second pass merges them by their log-sum-exp.
#pragma once

#include <omp.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "attention_item.h"
#include "kernels.h"
#include "vector.h"

namespace tokenspeed::cpu::TOKENSPEED_ISA {

constexpr size_t kTileRows = 96;   // query rows of an item: tokens times groups
constexpr size_t kMinRange = 256;  // context tokens below which a range is not cut
constexpr size_t kItemsPerThread = 4;

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
      const size_t to = block * a.block_stride + (head * a.block_size + offset) * h;
      std::memcpy(k_cache + to, k + from, h * sizeof(T));
      std::memcpy(v_cache + to, v + from, h * sizeof(T));
    }
  }
}

template <typename T>
void RunAttention(const Attention& a) {
  WriteCache<T>(a);
  const size_t h = a.head_dim, g = a.groups;
  T* out = static_cast<T*>(a.out);
  const size_t used = static_cast<size_t>(a.query_starts[a.rows]);
  std::memset(out + used * a.kv_heads * g * h, 0,
              (a.tokens - used) * a.kv_heads * g * h * sizeof(T));
  const size_t threads = static_cast<size_t>(omp_get_max_threads());
  const size_t tile_queries = std::max<size_t>(1, kTileRows / g);
  size_t tiles = 0, max_queries = 0;
  for (size_t row = 0; row < a.rows; ++row) {
    const size_t queries = static_cast<size_t>(a.query_starts[row + 1] - a.query_starts[row]);
    tiles += (queries + tile_queries - 1) / tile_queries * a.kv_heads;
    max_queries = std::max(max_queries, std::min(queries, tile_queries));
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
    for (size_t tile = 0; tile < queries; tile += tile_queries) {
      const size_t count = std::min(tile_queries, queries - tile);
      const size_t context = cached + tile + count;
      const size_t ranges = std::clamp<size_t>(context / kMinRange, 1, wanted_ranges);
      const size_t blocks = (context + a.block_size - 1) / a.block_size;
      const size_t length = (blocks + ranges - 1) / ranges * a.block_size;
      const bool whole = length >= context;
      for (size_t head = 0; head < a.kv_heads; ++head) {
        for (size_t begin = 0; begin < context; begin += length) {
          const ptrdiff_t partial = whole ? -1 : static_cast<ptrdiff_t>(partials++);
          items.push_back({row, head, first + tile, count, begin, std::min(context, begin + length),
                           cached + tile, partial});
        }
      }
    }
  }
  // A partial result: per query row its maximum, its sum and its unnormalised output.
  const size_t stride = max_queries * g * (h + 2);
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
    Workspace<T> work(max_queries * g, a.block_size, h);
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
