// SPDX-License-Identifier: MIT
// SipHash-2-4 with 128-bit output (Aumasson and Bernstein, "SipHash: a fast short-input PRF").
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace tokenspeed {

using Bytes = std::span<const std::byte>;

// 16 bytes: a hash, a digest or a key. Compares as its bytes.
struct Hash128 {
  std::array<std::byte, 16> bytes{};

  // The default would compare byte by byte.
  friend bool operator==(const Hash128& a, const Hash128& b) {
    return std::memcmp(a.bytes.data(), b.bytes.data(), sizeof(a.bytes)) == 0;
  }

  Bytes view() const { return Bytes(bytes); }
  uint64_t low() const {
    uint64_t word;
    std::memcpy(&word, bytes.data(), sizeof(word));
    return word;
  }
  // REQUIRES: data.size() == 16
  static Hash128 From(Bytes data) {
    Hash128 hash;
    std::memcpy(hash.bytes.data(), data.data(), hash.bytes.size());
    return hash;
  }
};

// Hashes the concatenation of `head` and `tail`; head.size() must be a multiple of 8.
Hash128 SipHash128(const Hash128& key, Bytes head, Bytes tail);

// Two hashes under one key: the rounds of one do not wait for those of the other.
// REQUIRES: the heads have one size, as the tails have.
std::array<Hash128, 2> SipHash128Pair(const Hash128& key, const std::array<Bytes, 2>& heads,
                                      const std::array<Bytes, 2>& tails);

inline Hash128 SipHash128(const Hash128& key, Bytes data) { return SipHash128(key, {}, data); }

}  // namespace tokenspeed
