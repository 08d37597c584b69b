# SPDX-License-Identifier: MIT
"""Which run directories belong to a launcher that lives, so that the others can be removed."""

import fcntl
import os
from pathlib import Path

import attrs

from .ipc.run_directory import RunDirectory

_NAME = "launcher.lock"


@attrs.frozen
class RunLock:
    """A lock in a run directory, which the kernel releases however its holder ends."""

    _descriptor: int

    @classmethod
    def take(cls, run: RunDirectory) -> "RunLock":
        """Lock a run directory that was just made."""
        unlocked = run.path / f"{_NAME}.new"
        descriptor = os.open(unlocked, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Under its name it is locked from the first moment, so nobody takes it for abandoned.
        unlocked.rename(run.path / _NAME)
        return cls(descriptor)

    def release(self) -> None:
        """Release the lock; call once, after the directory is removed."""
        os.close(self._descriptor)


def remove_abandoned(parent: Path) -> list[Path]:
    """Remove our run directories in `parent` whose launchers were killed; return their paths."""
    removed = []
    for lock in parent.glob(f"ts-*/{_NAME}"):
        try:
            if lock.stat().st_uid != os.getuid():
                continue
            descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:  # somebody else removes it at this moment
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # in use
        else:
            RunDirectory(lock.parent).remove()
            removed.append(lock.parent)
        finally:
            os.close(descriptor)
    return removed
