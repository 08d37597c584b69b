// SPDX-License-Identifier: MIT
// The process: one thread, one poll loop over two ROUTER sockets, the signals and the parent.
#pragma once

#include <string>

#include "base/result.h"
#include "net/zmq_library.h"
#include "wire/messages.h"

namespace tokenspeed::net {

// Serves until it is told to stop; returns the exit status. Errors: the endpoints cannot be bound,
// or the configuration is not usable.
//
// SIGTERM or SIGINT: new requests are refused, accepted ones finish, the workers are told to exit.
// A second one, or the parent's death: at once.
Result<int> Serve(const ZmqLibrary& zmq, const wire::SchedulerConfig& config);

}  // namespace tokenspeed::net
