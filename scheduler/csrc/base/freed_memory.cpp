// SPDX-License-Identifier: MIT
#include "base/freed_memory.h"

#if __has_include(<malloc.h>)
#include <malloc.h>
#endif

namespace tokenspeed {

void KeepFreedMemory() {
#if defined(M_TRIM_THRESHOLD) && defined(M_MMAP_THRESHOLD)
  ::mallopt(M_TRIM_THRESHOLD, 16 << 20);  // at the end of a heap
  ::mallopt(M_MMAP_THRESHOLD, 4 << 20);   // what is larger goes back at once
#endif
}

}  // namespace tokenspeed
