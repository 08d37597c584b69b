// SPDX-License-Identifier: MIT
// Golden frames decode and encode to themselves; bounds hold before anything is allocated.
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "expect.h"
#include "wire/codec.h"

namespace tokenspeed::wire {
namespace {

void GoldenFramesAreStable(const char* folder) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".bin") continue;
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string frame{std::istreambuf_iterator<char>(file), {}};
    auto again = Reencode(AsBytes(frame));
    EXPECT(again.ok() && again.value() == frame);
    ++count;
  }
  EXPECT(count >= 20);
}

void ClaimsLargerThanTheFrameAreRefused() {
  EXPECT(!Reencode(AsBytes(std::string("\xdd\xff\xff\xff\xff\x01", 6))).ok());
  EXPECT(!Reencode(AsBytes(std::string("\x92\x06\xdb\xff\xff\xff\xff", 7))).ok());
  EXPECT(!Reencode(AsBytes(std::string(100'000, '\x91'))).ok());
  EXPECT(!Reencode(AsBytes(std::string(kMaxFrameBytes + 1, '\0'))).ok());
  std::string long_name;
  Encode(Shutdown{std::string(kMaxStringBytes + 1, 'x')}, long_name);
  EXPECT(!Reencode(AsBytes(long_name)).ok());
  std::string long_blob;
  Submit submit;
  submit.salt.bytes.assign(kMaxBlobBytes + 1, 'x');
  Encode(submit, long_blob);
  EXPECT(!Reencode(AsBytes(long_blob)).ok());
}

void SocketsTakeOnlyTheirMessages() {
  std::string frame;
  Encode(StepAck{}, frame);
  EXPECT(DecodeFromWorker(AsBytes(frame)).ok() && !DecodeFromFrontend(AsBytes(frame)).ok());
  Encode(Abort{}, frame);
  EXPECT(!DecodeFromWorker(AsBytes(frame)).ok() && DecodeFromFrontend(AsBytes(frame)).ok());
}

}  // namespace
}  // namespace tokenspeed::wire

int main(int, char** argv) {
  using namespace tokenspeed::wire;
  GoldenFramesAreStable(argv[1]);
  ClaimsLargerThanTheFrameAreRefused();
  SocketsTakeOnlyTheirMessages();
  return 0;
}
