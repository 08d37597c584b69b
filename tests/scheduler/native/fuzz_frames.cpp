// SPDX-License-Identifier: MIT
// fuzz_frames COUNT GOLDEN [SEED]: mutated frames into every decoder. Each frame is refused with a
// reason, or it is a message that encodes to a stable frame. A failure prints the shortest frame.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "isolated.h"
#include "wire/codec.h"

namespace tokenspeed {
namespace {

using Frame = std::vector<char>;
constexpr uint64_t kFramesPerChild = 2000;

std::vector<Frame> LoadGolden(const char* folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".bin") paths.push_back(entry.path());
  }
  std::ranges::sort(paths);
  std::vector<Frame> frames;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    frames.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return frames;
}

Frame Mutate(const std::vector<Frame>& golden, uint64_t seed) {
  static constexpr unsigned char kMarkers[] = {0x90, 0x9f, 0xc0, 0xc4, 0xc6, 0xca,
                                               0xcb, 0xcf, 0xd3, 0xd9, 0xdb, 0xdc,
                                               0xdd, 0xde, 0xdf, 0xff, 0x7f, 0x80};
  Random random(seed);
  Frame frame = golden[random.Below(golden.size())];
  for (uint64_t changes = 1 + random.Below(4); changes > 0; --changes) {
    const size_t at = frame.empty() ? 0 : random.Below(frame.size());
    const auto here = frame.begin() + static_cast<std::ptrdiff_t>(at);
    switch (random.Below(7)) {
      case 0:
        if (!frame.empty()) frame[at] ^= static_cast<char>(1 << random.Below(8));
        break;
      case 1:
        if (!frame.empty()) frame[at] = static_cast<char>(kMarkers[random.Below(sizeof(kMarkers))]);
        break;
      case 2:
        frame.resize(at);
        break;
      case 3:
        frame.insert(here, static_cast<char>(random.Next()));
        break;
      case 4:
        if (!frame.empty()) frame.erase(here);
        break;
      case 5: {
        const Frame& other = golden[random.Below(golden.size())];
        const size_t from = random.Below(other.size());
        frame.insert(here, other.begin() + static_cast<std::ptrdiff_t>(from), other.end());
        break;
      }
      case 6:
        if (frame.size() >= 4) std::fill_n(frame.begin(), 1 + random.Below(4), '\xdd');
        break;
    }
  }
  return frame;
}

bool Holds(const Frame& frame) {
  const Bytes bytes = std::as_bytes(std::span(frame));
  (void)wire::DecodeFromFrontend(bytes).ok();
  (void)wire::DecodeFromWorker(bytes).ok();
  (void)wire::DecodeConfig(bytes).ok();
  auto once = wire::Reencode(bytes);
  if (!once.ok()) return !once.error().message.empty();
  auto twice = wire::Reencode(wire::AsBytes(once.value()));
  return twice.ok() && twice.value() == once.value();
}

}  // namespace
}  // namespace tokenspeed

int main(int argc, char** argv) {
  using namespace tokenspeed;
  if (argc < 3) return 2;
  const uint64_t count = std::strtoull(argv[1], nullptr, 10);
  const std::vector<Frame> golden = LoadGolden(argv[2]);
  const uint64_t first = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 1;
  volatile uint64_t* current = SharedCounter();
  for (uint64_t seed = first; seed < first + count; seed += kFramesPerChild) {
    const bool passed = Survives(
        [&] {
          for (uint64_t each = seed; each < std::min(first + count, seed + kFramesPerChild);
               ++each) {
            *current = each;
            if (!Holds(Mutate(golden, each))) return false;
          }
          return true;
        },
        true, 60);
    if (passed) continue;
    const Frame frame = Shrink<char>(Mutate(golden, *current), Holds);
    std::fprintf(stderr, "seed %llu fails with these %zu bytes:\n ",
                 static_cast<unsigned long long>(*current), frame.size());
    for (const char byte : frame) std::fprintf(stderr, " %02x", static_cast<unsigned char>(byte));
    std::fprintf(stderr, "\n");
    Survives([&] { return Holds(frame); }, false);
    return 1;
  }
  std::printf("%llu frames into every decoder: refused or stable\n",
              static_cast<unsigned long long>(count));
  return 0;
}
