# SPDX-License-Identifier: MIT
"""HTTP over a Unix socket, as the processes of one engine speak it among themselves."""

import http.client
import socket
from pathlib import Path


class UnixConnection(http.client.HTTPConnection):
    """A connection to the server at a path; `with` closes it."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = str(path)

    def connect(self) -> None:
        """Connect.  Raises OSError if nobody listens there."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def __enter__(self) -> "UnixConnection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
