# SPDX-License-Identifier: MIT
import io
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tokenspeed_core.background_writer import BackgroundWriter
from tokenspeed_core.launcher_output import LauncherOutput
from tokenspeed_core.supervisor import Printed, Reported
from tokenspeed_core.worker_event import (
    Failed,
    Loading,
    Ready,
    WorkerEvent,
    decode_event,
    encode_event,
)

sizes = st.integers(0, 2**62)
events: st.SearchStrategy[WorkerEvent] = st.one_of(
    st.builds(Loading, sizes, sizes), st.builds(Ready, st.floats(0, 1e6))
)


@given(event=events)
def test_events_survive_their_line(event: WorkerEvent) -> None:
    line = encode_event(event)
    assert "\n" not in line
    assert decode_event(line) == event


@given(message=st.text())
def test_a_failure_is_one_bounded_line(message: str) -> None:
    message += "x" * 5000 if message else ""
    line = encode_event(Failed(message))
    assert "\n" not in line
    assert len(line.encode()) <= 8192
    event = decode_event(line)
    assert isinstance(event, Failed)
    assert " ".join(message.split()).startswith(event.message)


@given(text=st.text())
def test_other_lines_are_no_events(text: str) -> None:
    assert decode_event(text) is None
    assert decode_event("\x1e" + text) is None


def test_posting_never_waits_and_losses_are_counted() -> None:
    gate = threading.Event()
    written: list[tuple[int, int]] = []

    def write(item: int, dropped: int) -> None:
        gate.wait()
        written.append((item, dropped))

    writer = BackgroundWriter(write, capacity=10)
    for item in range(1000):
        writer.post(item)
    gate.set()
    while not written or len(written) < 10:
        time.sleep(0.001)
    writer.post(1000)
    writer.close(10.0)
    items = [item for item, _ in written]
    assert items == sorted(items)
    assert items[-1] == 1000
    assert len(items) + sum(dropped for _, dropped in written) == 1001


def test_closing_does_not_wait_for_a_stalled_reader() -> None:
    gate = threading.Event()
    writer: BackgroundWriter[int] = BackgroundWriter(lambda item, dropped: gate.wait() and None)
    writer.post(1)
    writer.close(0.01)
    gate.set()


def test_an_item_that_cannot_be_written_does_not_end_the_others() -> None:
    written: list[float] = []
    writer: BackgroundWriter[int] = BackgroundWriter(lambda item, _: written.append(6 / item))
    for item in (3, 0, 2):
        writer.post(item)
    writer.close(10.0)
    assert written == [2.0, 3.0]


def test_lines_carry_their_source_and_losses() -> None:
    stream = io.StringIO()
    output = LauncherOutput(stream)
    output.write(Printed("worker 0", "hello"), 0)
    output.write(Printed("api", "[bold]x"), 7)
    output.write(Reported("worker 0", Loading(1, 2)), 0)
    output.write(Reported("worker 0", Ready(2.0)), 0)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[worker 0] hello"
    assert "7 lines were dropped" in lines[1]
    assert lines[2:] == ["[api] [bold]x", "[worker 0] ready after 2.0 s"]


def test_a_terminal_sees_a_bar_over_all_ranks() -> None:
    control, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream:
        output = LauncherOutput(stream)
        output.write(Reported("worker 0", Loading(2**20, 2 * 2**20)), 0)
        output.write(Reported("worker 1", Loading(2**20, 2 * 2**20)), 0)
        output.write(Printed("worker 1", "a line above the bar"), 0)
        output.write(Reported("worker 0", Loading(2 * 2**20, 2 * 2**20)), 0)
        output.write(Reported("worker 1", Ready(1.0)), 0)
        output.write(Printed("api", "after"), 0)
        shown = b""
        while b"after" not in shown and select.select([control], [], [], 10)[0]:
            shown += os.read(control, 65536)
    os.close(control)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert "loading weights" in text
    assert "/4.0 MiB" in text
    assert "/100 bytes" not in text
    assert "[worker 1] a line above the bar" in text
    assert text.splitlines()[-1].endswith("[api] after")


def test_a_stalled_stderr_stalls_no_child_and_no_exit(tmp_path: Path) -> None:
    done = tmp_path / "done"
    code = f"""
import sys
from tokenspeed_core.background_writer import BackgroundWriter
from tokenspeed_core.child_process import ChildSpec
from tokenspeed_core.launcher_output import LauncherOutput
from tokenspeed_core.supervisor import Part, Supervisor
chatty = "for i in range(100000): print('x' * 100)\\nopen({str(done)!r}, 'w')"
writer = BackgroundWriter(LauncherOutput().write)
spec = ChildSpec("c", (sys.executable, "-S", "-c", chatty))
supervisor = Supervisor([Part("p", (spec,))], writer.post)
supervisor.start()
supervisor.wait()
writer.close(0.1)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    try:
        assert process.wait(60) == 0  # though nobody has read its stderr
        assert done.exists()
    finally:
        process.kill()
        assert process.stderr is not None
        process.stderr.close()
