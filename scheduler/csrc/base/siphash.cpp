// SPDX-License-Identifier: MIT
#include "base/siphash.h"

#include <bit>

#include "base/check.h"

static_assert(std::endian::native == std::endian::little, "columns and hashes are little-endian");

namespace tokenspeed {
namespace {

struct State {
  uint64_t a, b, c, d;

  explicit State(const Hash128& key);
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

  Hash128 Finish() {
    c ^= 0xee;
    const uint64_t low = Squeeze();
    b ^= 0xdd;
    const uint64_t high = Squeeze();
    Hash128 hash;
    std::memcpy(hash.bytes.data(), &low, 8);
    std::memcpy(hash.bytes.data() + 8, &high, 8);
    return hash;
  }
};

uint64_t Load(const std::byte* from, size_t count = 8) {
  uint64_t word = 0;
  std::memcpy(&word, from, count);
  return word;
}

State::State(const Hash128& key) {
  const uint64_t k0 = Load(key.bytes.data());
  const uint64_t k1 = Load(key.bytes.data() + 8);
  a = k0 ^ 0x736f6d6570736575ull;
  b = k1 ^ 0x646f72616e646f6dull ^ 0xee;
  c = k0 ^ 0x6c7967656e657261ull;
  d = k1 ^ 0x7465646279746573ull;
}

// The last word: what is left of the tail from `rest` on, and the length.
uint64_t LastWord(Bytes head, Bytes tail, size_t rest) {
  const uint64_t last = uint64_t{head.size() + tail.size()} << 56;
  return rest < tail.size() ? last | Load(tail.data() + rest, tail.size() - rest) : last;
}

size_t AbsorbWords(State& state, Bytes data) {
  size_t at = 0;
  for (; at + 8 <= data.size(); at += 8) state.Absorb(Load(data.data() + at));
  return at;
}

}  // namespace

Hash128 SipHash128(const Hash128& key, Bytes head, Bytes tail) {
  TS_CHECK(head.size() % 8 == 0, "head of " << head.size() << " bytes is not whole words");
  State state(key);
  AbsorbWords(state, head);
  const size_t rest = AbsorbWords(state, tail);
  state.Absorb(LastWord(head, tail, rest));
  return state.Finish();
}

std::array<Hash128, 2> SipHash128Pair(const Hash128& key, const std::array<Bytes, 2>& heads,
                                      const std::array<Bytes, 2>& tails) {
  TS_CHECK(heads[0].size() == heads[1].size() && heads[0].size() % 8 == 0 &&
               tails[0].size() == tails[1].size(),
           "heads of " << heads[0].size() << " and " << heads[1].size() << " bytes, tails of "
                       << tails[0].size() << " and " << tails[1].size());
  State one(key);
  State other(key);
  const auto absorb = [&](uint64_t word, uint64_t beside) {
    one.d ^= word;
    other.d ^= beside;
    for (int i = 0; i < 2; ++i) {
      one.Round();
      other.Round();
    }
    one.a ^= word;
    other.a ^= beside;
  };
  size_t rest = 0;
  for (const auto& data : {heads, tails}) {
    for (rest = 0; rest + 8 <= data[0].size(); rest += 8) {
      absorb(Load(data[0].data() + rest), Load(data[1].data() + rest));
    }
  }
  absorb(LastWord(heads[0], tails[0], rest), LastWord(heads[1], tails[1], rest));
  return {one.Finish(), other.Finish()};
}

}  // namespace tokenspeed
