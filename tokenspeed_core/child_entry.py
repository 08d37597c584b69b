# SPDX-License-Identifier: MIT
"""Program that ties its own life to its parent's and then becomes another program.

Run as a file, `python -I -S child_entry.py PARENT_PID PROGRAM ARGUMENT...`: setting the tie between
fork and exec inside a process with threads can deadlock, and after exec it would come too late.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Exit if the parent is gone, else exec PROGRAM so that it is killed when the parent dies."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit("this system cannot tie a process to its parent (prctl PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the tie was made
        sys.exit(f"the launcher, process {parent}, is gone")
    try:
        os.execv(program[0], program)
    except OSError as error:
        sys.exit(f"cannot run {program[0]}: {error.strerror}; is the installation complete?")


if __name__ == "__main__":
    main()
