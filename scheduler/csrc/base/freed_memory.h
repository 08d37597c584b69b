// SPDX-License-Identifier: MIT
// What the C library does with memory that the process frees.
#pragma once

namespace tokenspeed {

// Keeps what is freed for what comes next, within bounds, from now on. A prompt of 128k tokens is
// half a megabyte in a message, in a request and in its session's history; by default each goes
// back to the kernel, which fills the pages of the next one with zeros. Only with glibc.
void KeepFreedMemory();

}  // namespace tokenspeed
