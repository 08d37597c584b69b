// SPDX-License-Identifier: MIT
// tokenspeed-scheduler --config FILE --libzmq PATH
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

#include "base/freed_memory.h"
#include "base/stack_dump.h"
#include "net/server.h"
#include "wire/codec.h"

namespace {

constexpr const char* kUsage =
    "usage: tokenspeed-scheduler --config FILE [--libzmq PATH]\n"
    "\n"
    "Plans the steps of one replica: requests come from frontends, plans go to workers.\n"
    "`tokenspeed serve` starts it.\n"
    "\n"
    "  --config FILE   SchedulerConfig bytes (ipc/messages.py)\n"
    "  --libzmq PATH   the ZeroMQ library to open; default libzmq.so.5\n"
    "  --version       print the version and the wire version\n"
    "  --help          print this\n";

int Fail(const std::string& message) {
  std::fprintf(stderr, "tokenspeed-scheduler: %s\n", message.c_str());
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  std::string config_path, zmq_path;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--help") return std::fputs(kUsage, stdout) < 0;
    if (argument == "--version") {
      return std::printf("tokenspeed-scheduler %s, wire %d\n", TOKENSPEED_VERSION,
                         static_cast<int>(tokenspeed::wire::kVersion)) < 0;
    }
    std::string* value = argument == "--config"   ? &config_path
                         : argument == "--libzmq" ? &zmq_path
                                                  : nullptr;
    if (value == nullptr) return Fail("unknown argument " + argument + "; try --help");
    if (++i == argc) return Fail(argument + " needs a value; try --help");
    *value = argv[i];
  }
  if (config_path.empty()) return Fail("--config FILE is missing; try --help");
  std::ifstream file(config_path, std::ios::binary);
  if (!file) return Fail("cannot read the configuration file " + config_path);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  auto config = tokenspeed::wire::DecodeConfig(tokenspeed::wire::AsBytes(bytes));
  if (!config.ok()) return Fail(config_path + ": " + config.error().message);
  auto zmq = tokenspeed::net::LoadZmq(zmq_path);
  if (!zmq.ok()) return Fail(zmq.error().message);
  tokenspeed::KeepFreedMemory();
  tokenspeed::DumpStackOnSignal();
  auto status = tokenspeed::net::Serve(zmq.value(), config.value());
  return status.ok() ? status.value() : Fail(status.error().message);
}
