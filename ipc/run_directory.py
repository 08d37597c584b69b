# SPDX-License-Identifier: MIT
"""The private directory in which the processes of one engine meet."""

import os
import secrets
import shutil
import tempfile
from pathlib import Path

import attrs

# sockaddr_un.sun_path holds 108 bytes with its terminating zero.
MAX_SOCKET_PATH_BYTES = 107


class RunDirectoryError(RuntimeError):
    """A run directory cannot be created or joined."""


@attrs.frozen
class RunDirectory:
    """Sockets and session token of one engine, in a directory that only its owner can enter."""

    path: Path

    @classmethod
    def create(cls, parent: Path | None = None) -> "RunDirectory":
        """Make a fresh directory (mode 0700) with a new 16-byte session token (mode 0600).

        Raises:
            RunDirectoryError: the socket paths would be longer than the kernel allows.
        """
        parent = parent or Path(tempfile.gettempdir())
        path = Path(tempfile.mkdtemp(prefix="ts-", dir=parent))
        longest = path / "frontend.sock"
        if len(os.fsencode(longest)) > MAX_SOCKET_PATH_BYTES:
            path.rmdir()
            raise RunDirectoryError(
                f"socket path {longest} is {len(os.fsencode(longest))} bytes long, the kernel "
                f"allows {MAX_SOCKET_PATH_BYTES}; choose a shorter directory with --run-dir"
            )
        token = os.open(path / "token", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(token, "wb") as file:
            file.write(secrets.token_bytes(16))
        return cls(path)

    @classmethod
    def join(cls, path: Path | str) -> "RunDirectory":
        """Return the directory of a running engine.

        Raises:
            RunDirectoryError: there is no engine's token at `path`.
        """
        if "://" in str(path):
            raise RunDirectoryError(
                f"{path} is an endpoint, not a run directory; another machine's engine is reached "
                f"with CURVE keys only: Client(RemoteEngine.read(FILE)), see `tokenspeed keys`"
            )
        run = cls(Path(path))
        if not (run.path / "token").is_file():
            raise RunDirectoryError(
                f"{run.path} is no engine's run directory: it holds no token file. "
                f"`tokenspeed serve` prints the right path when it starts"
            )
        return run

    @property
    def is_there(self) -> bool:
        """The engine has not removed it."""
        return self.path.is_dir()

    @property
    def token(self) -> bytes:
        """The 16-byte session token that every Hello carries."""
        return (self.path / "token").read_bytes()

    @property
    def frontend_endpoint(self) -> str:
        """Where the scheduler listens for frontends."""
        return f"ipc://{self.path / 'frontend.sock'}"

    @property
    def worker_endpoint(self) -> str:
        """Where the scheduler listens for workers."""
        return f"ipc://{self.path / 'worker.sock'}"

    def api_socket(self, index: int) -> Path:
        """Where the launcher and its siblings reach an API process."""
        return self.path / f"api-{index}.sock"

    @property
    def rendezvous(self) -> str:
        """Where the ranks of a worker group find each other (torch.distributed init method)."""
        return f"file://{self.path / 'ranks'}"

    @property
    def grammars(self) -> Path:
        """Where frontends keep compiled grammars for the workers."""
        return self.path / "grammars"

    def remove(self) -> None:
        """Delete the directory; silent if it is gone already."""
        shutil.rmtree(self.path, ignore_errors=True)
