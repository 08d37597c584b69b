// SPDX-License-Identifier: MIT
#include "base/siphash.h"

#include <bit>

#include "base/check.h"

static_assert(std::endian::native == std::endian::little, "columns and hashes are little-endian");

namespace tokenspeed {
namespace {

struct State {
  uint64_t a, b, c, d;

  void Round() {
    a += b;
    c += d;
    b = std::rotl(b, 13) ^ a;
    d = std::rotl(d, 16) ^ c;
    a = std::rotl(a, 32);
    c += b;
    a += d;
    b = std::rotl(b, 17) ^ c;
    d = std::rotl(d, 21) ^ a;
    c = std::rotl(c, 32);
  }

  void Absorb(uint64_t word) {
    d ^= word;
    Round();
    Round();
    a ^= word;
  }

  uint64_t Squeeze() {
    for (int i = 0; i < 4; ++i) Round();
    return a ^ b ^ c ^ d;
  }
};

uint64_t Load(const std::byte* from, size_t count = 8) {
  uint64_t word = 0;
  std::memcpy(&word, from, count);
  return word;
}

size_t AbsorbWords(State& state, Bytes data) {
  size_t at = 0;
  for (; at + 8 <= data.size(); at += 8) state.Absorb(Load(data.data() + at));
  return at;
}

}  // namespace

Hash128 SipHash128(const Hash128& key, Bytes head, Bytes tail) {
  TS_CHECK(head.size() % 8 == 0, "head of " << head.size() << " bytes is not whole words");
  const uint64_t k0 = Load(key.bytes.data());
  const uint64_t k1 = Load(key.bytes.data() + 8);
  State state{k0 ^ 0x736f6d6570736575ull, k1 ^ 0x646f72616e646f6dull ^ 0xee,
              k0 ^ 0x6c7967656e657261ull, k1 ^ 0x7465646279746573ull};
  AbsorbWords(state, head);
  const size_t rest = AbsorbWords(state, tail);
  const uint64_t length = head.size() + tail.size();
  uint64_t last = length << 56;
  if (rest < tail.size()) last |= Load(tail.data() + rest, tail.size() - rest);
  state.Absorb(last);
  state.c ^= 0xee;
  const uint64_t low = state.Squeeze();
  state.b ^= 0xdd;
  const uint64_t high = state.Squeeze();
  Hash128 hash;
  std::memcpy(hash.bytes.data(), &low, 8);
  std::memcpy(hash.bytes.data() + 8, &high, 8);
  return hash;
}

}  // namespace tokenspeed
