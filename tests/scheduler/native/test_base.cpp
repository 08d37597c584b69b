// SPDX-License-Identifier: MIT
// SipHash-2-4-128 against the vectors that its authors publish (key 00..0f, input 00..n-1).
#include <csignal>
#include <string>

#include "base/result.h"
#include "base/siphash.h"
#include "expect.h"

namespace tokenspeed {
namespace {

std::string Hex(const Hash128& hash) {
  std::string text;
  for (const std::byte byte : hash.bytes) {
    char two[3];
    std::snprintf(two, sizeof(two), "%02x", static_cast<unsigned>(byte));
    text += two;
  }
  return text;
}

void PublishedVectors() {
  Hash128 key;
  std::array<std::byte, 64> input;
  for (size_t i = 0; i < 16; ++i) key.bytes[i] = static_cast<std::byte>(i);
  for (size_t i = 0; i < 64; ++i) input[i] = static_cast<std::byte>(i);
  const auto hash = [&](size_t n) { return Hex(SipHash128(key, Bytes(input).first(n))); };
  EXPECT(hash(0) == "a3817f04ba25a8e66df67214c7550293");
  EXPECT(hash(1) == "da87c1d86b99af44347659119b22fc45");
  EXPECT(hash(2) == "8177228da4a45dc7fca38bdef60affe4");
  EXPECT(hash(3) == "9c70b60c5267a94e5f33b6b02985ed51");
  EXPECT(hash(4) == "f88164c12d9c8faf7d0f6e7c7bcd5579");
  EXPECT(hash(5) == "1368875980776f8854527a07690e9627");
  EXPECT(hash(6) == "14eeca338b208613485ea0308fd7a15e");
  EXPECT(hash(7) == "a1f1ebbed8dbc153c0b84aa61ff08239");
  EXPECT(hash(8) == "3b62a9ba6258f5610f83e264f31497b4");
  EXPECT(hash(15) == "5493e99933b0a8117e08ec0f97cfc3d9");
  EXPECT(hash(63) == "5150d1772f50834a503e069a973fbd7c");
}

void HeadAndTailAreOneInput() {
  Hash128 key;
  std::array<std::byte, 40> input{};
  for (size_t i = 0; i < 40; ++i) input[i] = static_cast<std::byte>(i * 7);
  const Bytes all(input);
  EXPECT(SipHash128(key, all.first(16), all.subspan(16)) == SipHash128(key, all));
  EXPECT_DEATH(SipHash128(key, all.first(3), all.subspan(3)));
  for (size_t size = 0; size + 24 <= all.size(); ++size) {
    const std::array<Bytes, 2> heads = {all.first(16), all.subspan(8, 16)};
    const std::array<Bytes, 2> tails = {all.subspan(16, size), all.subspan(24, size)};
    const auto [one, other] = SipHash128Pair(key, heads, tails);
    EXPECT(one == SipHash128(key, heads[0], tails[0]));
    EXPECT(other == SipHash128(key, heads[1], tails[1]));
  }
}

void ResultsHoldOneOfTwo() {
  Result<int> good = 3;
  Result<int> bad = Error{"why"};
  EXPECT(good.ok() && good.value() == 3);
  EXPECT(!bad.ok() && bad.error().message == "why");
  EXPECT_DEATH(bad.value());
  EXPECT_DEATH((void)good.error());
}

}  // namespace
}  // namespace tokenspeed

int main() {
  tokenspeed::PublishedVectors();
  tokenspeed::HeadAndTailAreOneInput();
  tokenspeed::ResultsHoldOneOfTwo();
  return 0;
}
