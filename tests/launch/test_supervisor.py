# SPDX-License-Identifier: MIT
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tokenspeed_core.child_process import ChildSpec
from tokenspeed_core.supervisor import Part, Printed, Reported, RestartPolicy, Supervisor
from tokenspeed_core.worker_event import Failed, Ready, encode_event

PATIENCE_S = 30.0


def child(name: str, code: str) -> ChildSpec:
    return ChildSpec(name, (sys.executable, "-S", "-u", "-c", f"import os,sys,time,signal\n{code}"))


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


class Watched:
    """A supervisor whose output is kept."""

    def __init__(self) -> None:
        self.items: list[Printed | Reported] = []
        self.supervisor: Supervisor | None = None

    def run(self, *parts: Part, policy: RestartPolicy | None = None) -> Supervisor:
        self.supervisor = Supervisor(parts, self.items.append, policy=policy)
        self.supervisor.start()
        return self.supervisor

    def texts(self, source: str) -> list[str]:
        return [i.text for i in self.items if isinstance(i, Printed) and i.source == source]


@pytest.fixture
def watched() -> Iterator[Watched]:
    watched = Watched()
    yield watched
    if watched.supervisor is not None:
        watched.supervisor.kill()
        assert watched.supervisor.wait(PATIENCE_S)


def sleeper(name: str) -> ChildSpec:
    return child(name, "print('up'); time.sleep(1000)")


def test_a_frozen_part_tells_its_stacks_before_it_is_killed(watched: Watched) -> None:
    code = (
        "import faulthandler\nfaulthandler.register(signal.SIGUSR2)\n"
        "def stuck():\n    print('up')\n    time.sleep(1000)\nstuck()"
    )
    supervisor = watched.run(Part("part", (child("c", code), sleeper("deaf"))))
    until(lambda: "up" in watched.texts("c") and "up" in watched.texts("deaf"))
    supervisor.finish_start()
    before = supervisor.pids()
    os.kill(before["c"], signal.SIGSTOP)
    supervisor.restart("part", "nothing moved for a while")
    until(lambda: watched.texts("c").count("up") == watched.texts("deaf").count("up") == 2)
    assert any(text.endswith("in stuck") for text in watched.texts("c"))
    assert not is_alive(before["c"])
    assert any("nothing moved for a while" in text for text in watched.texts("supervisor"))


def test_a_part_with_a_stopped_child_restarts_as_one(watched: Watched) -> None:
    part = Part("part", (sleeper("c"), sleeper("peer")), stopped_s=0.3)
    supervisor = watched.run(Part("other", (sleeper("o"),)), part)
    until(lambda: all(watched.texts(name) == ["up"] for name in ("o", "c", "peer")))
    supervisor.finish_start()
    before = supervisor.pids()
    os.kill(before["o"], signal.SIGSTOP)  # of a part that may be stopped as long as one likes
    os.kill(before["c"], signal.SIGSTOP)
    until(lambda: all(watched.texts(name) == ["up"] * 2 for name in ("c", "peer")))
    after = supervisor.pids()
    assert after["o"] == before["o"]
    assert not {before["c"], before["peer"]} & set(after.values())
    assert any("c has been stopped for" in text for text in watched.texts("supervisor"))


def test_a_pause_is_no_stop(watched: Watched) -> None:
    supervisor = watched.run(Part("part", (sleeper("c"),), stopped_s=3.0))
    until(lambda: watched.texts("c") == ["up"])
    before = supervisor.pids()
    for _ in range(4):
        os.kill(before["c"], signal.SIGSTOP)
        time.sleep(0.3)
        os.kill(before["c"], signal.SIGCONT)
        time.sleep(0.3)
    assert supervisor.pids() == before


def test_a_part_restarts_as_one_and_alone(watched: Watched) -> None:
    group = Part("group", (sleeper("g0"), sleeper("g1")))
    supervisor = watched.run(Part("other", (sleeper("o"),)), group)
    until(lambda: all("up" in watched.texts(name) for name in ("o", "g0", "g1")))
    supervisor.finish_start()
    before = supervisor.pids()
    os.kill(before["g1"], signal.SIGKILL)
    until(lambda: all(watched.texts(name) == ["up"] * 2 for name in ("g0", "g1")))
    after = supervisor.pids()
    assert after["o"] == before["o"]
    assert not {before["g0"], before["g1"]} & set(after.values())
    assert not is_alive(before["g0"])
    assert any("g1" in text and "SIGKILL" in text for text in watched.texts("supervisor"))
    assert watched.texts("o") == ["up"]


def test_before_start_runs_before_every_start(watched: Watched, tmp_path: Path) -> None:
    stale = tmp_path / "stale"
    code = f"p={str(stale)!r}; print(os.path.exists(p)); open(p,'w'); time.sleep(1000)"
    part = Part("part", (child("c", code),), lambda: stale.unlink(missing_ok=True))
    supervisor = watched.run(part)
    supervisor.finish_start()
    until(lambda: watched.texts("c") == ["False"] and stale.exists())
    os.kill(supervisor.pids()["c"], signal.SIGKILL)
    until(lambda: len(watched.texts("c")) == 2)
    assert watched.texts("c") == ["False", "False"]


def test_a_death_while_starting_is_final_and_tells_the_last_line(watched: Watched) -> None:
    broken = Part("workers", (child("w", "sys.exit('no weights at /x')"), sleeper("v")))
    supervisor = watched.run(Part("other", (sleeper("o"),)), broken)
    assert supervisor.wait(PATIENCE_S)
    assert "w exited with code 1" in str(supervisor.failure)
    assert "no weights at /x" in str(supervisor.failure)
    assert supervisor.pids() == {}
    assert len(watched.texts("w")) == 1


def test_a_failure_report_is_the_cause(watched: Watched) -> None:
    report = encode_event(Failed("tp=2 does not divide\n9 heads"))
    code = f"print({report!r}); print('Traceback', file=sys.stderr); sys.exit(3)"
    supervisor = watched.run(Part("workers", (child("worker 0", code),)))
    assert supervisor.wait(PATIENCE_S)
    assert str(supervisor.failure) == "worker 0: tp=2 does not divide 9 heads"
    reports = [item for item in watched.items if isinstance(item, Reported)]
    assert reports == [Reported("worker 0", Failed("tp=2 does not divide 9 heads"))]
    assert watched.texts("worker 0") == ["Traceback"]


def test_a_program_that_cannot_run_is_named(watched: Watched) -> None:
    supervisor = watched.run(Part("p", (ChildSpec("c", ("/no/such/program", "x")),)))
    assert supervisor.wait(PATIENCE_S)
    assert "cannot run /no/such/program: No such file" in str(supervisor.failure)


def test_a_crash_loop_ends_everything(watched: Watched) -> None:
    policy = RestartPolicy(max_deaths=2, window_s=PATIENCE_S, backoff_s=(0.0, 0.05))
    loop = Part("the workers", (child("w", "print('up'); sys.exit('out of memory')"),))
    supervisor = watched.run(Part("o", (sleeper("o"),)), loop, policy=policy)
    supervisor.finish_start()
    assert supervisor.wait(PATIENCE_S)
    assert watched.texts("w") == ["up", "out of memory"] * 3
    assert "the workers died 3 times" in str(supervisor.failure)
    assert "out of memory" in str(supervisor.failure)


def test_old_deaths_are_forgotten(watched: Watched) -> None:
    policy = RestartPolicy(max_deaths=1, window_s=0.3, backoff_s=(0.5,))
    supervisor = watched.run(Part("p", (child("c", "print('up'); sys.exit()"),)), policy=policy)
    supervisor.finish_start()
    until(lambda: len(watched.texts("c")) >= 4)
    assert supervisor.failure is None


def test_parts_stop_in_order(watched: Watched) -> None:
    code = (
        "def stop(*_):\n    time.sleep(0.1); print('end'); os._exit(0)\n"
        "signal.signal(signal.SIGTERM, stop)\nprint('up')\ntime.sleep(1000)"
    )
    supervisor = watched.run(*(Part(name, (child(name, code),)) for name in "abc"))
    until(lambda: all(watched.texts(name) for name in "abc"))
    supervisor.stop()
    assert supervisor.wait(PATIENCE_S)
    ends = [i.source for i in watched.items if isinstance(i, Printed) and i.text == "end"]
    assert ends == ["a", "b", "c"]
    assert supervisor.failure is None


STUBBORN = "signal.signal(signal.SIGTERM, lambda *_: print('no'))\nprint('up')\n" + (
    "while True: time.sleep(1)"
)


def test_what_ignores_the_signal_is_killed_after_its_grace(watched: Watched) -> None:
    supervisor = watched.run(Part("p", (child("c", STUBBORN),), stop_grace_s=0.2))
    until(lambda: watched.texts("c"))
    supervisor.stop()
    assert supervisor.wait(PATIENCE_S)
    assert watched.texts("c") == ["up", "no", "no"]
    assert any("c did not stop in time" in text for text in watched.texts("supervisor"))


def test_kill_interrupts_a_drain(watched: Watched) -> None:
    supervisor = watched.run(Part("p", (child("c", STUBBORN),)), Part("q", (sleeper("d"),)))
    until(lambda: watched.texts("c") and watched.texts("d"))
    supervisor.stop(drain_s=1000.0)
    until(lambda: len(watched.texts("c")) == 2)
    assert not supervisor.wait(0)
    supervisor.kill()
    assert supervisor.wait(PATIENCE_S)
    assert supervisor.pids() == {}


def test_what_a_dead_child_started_dies_too(watched: Watched) -> None:
    code = (
        "import subprocess\n"
        "p = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(1000)'])\n"
        "print(p.pid); time.sleep(1000)"
    )
    supervisor = watched.run(Part("p", (child("c", code),)))
    until(lambda: watched.texts("c"))
    grandchild = int(watched.texts("c")[0])
    supervisor.finish_start()
    os.kill(supervisor.pids()["c"], signal.SIGKILL)
    until(lambda: len(watched.texts("c")) == 2)
    until(lambda: not is_alive(grandchild))


def test_children_outlive_the_thread_that_started_them(watched: Watched) -> None:
    caller = threading.Thread(target=lambda: watched.run(Part("p", (sleeper("c"),))))
    caller.start()
    caller.join()
    until(lambda: watched.texts("c"))
    assert watched.supervisor is not None
    time.sleep(0.1)  # a signal of the kernel would have come
    assert is_alive(watched.supervisor.pids()["c"])


def test_children_die_with_a_killed_parent(tmp_path: Path) -> None:
    code = f"""
import sys, time
from tokenspeed_core.child_process import ChildSpec
from tokenspeed_core.supervisor import Part, Supervisor
sleeper = (sys.executable, "-S", "-u", "-c", "import time; print('up'); time.sleep(1000)")
ups = []
supervisor = Supervisor(
    [Part("p", tuple(ChildSpec(str(i), sleeper) for i in range(3)))], ups.append)
supervisor.start()
while len(ups) < 3:
    time.sleep(0.01)
open({str(tmp_path / "pids")!r}, "w").write(" ".join(map(str, supervisor.pids().values())) + ".")
time.sleep(1000)
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    pids_file = tmp_path / "pids"
    until(lambda: pids_file.exists() and pids_file.read_text().endswith("."))
    pids = [int(pid) for pid in pids_file.read_text().rstrip(".").split()]
    assert len(pids) == 3
    assert all(map(is_alive, pids))
    parent.kill()
    parent.wait()
    until(lambda: not any(map(is_alive, pids)))


def test_a_child_whose_parent_is_gone_does_not_start(tmp_path: Path) -> None:
    entry = Path(sys.modules["tokenspeed_core.child_process"].__file__ or "").parent
    command = [sys.executable, "-I", "-S", str(entry / "child_entry.py")]
    started = subprocess.run([*command, "1", "/bin/true"], capture_output=True, text=True)
    assert started.returncode == 1
    assert "process 1, is gone" in started.stderr
    assert subprocess.run([*command, str(os.getpid()), "/bin/true"]).returncode == 0


def test_output_of_any_shape_comes_through(watched: Watched) -> None:
    code = (
        "os.write(1, b'\\xff\\x00 half'); time.sleep(0.1); os.write(1, b' line\\n\\n')\n"
        "os.write(2, b'y' * 20000 + b'\\n'); os.write(1, b'\\x1enot json\\nlast')"
    )
    supervisor = watched.run(Part("p", (child("c", code),)))
    assert supervisor.wait(PATIENCE_S)
    texts = watched.texts("c")
    assert "\ufffd\x00 half line" in texts
    assert "".join(text for text in texts if text.startswith("y")) == "y" * 20000
    assert max(map(len, texts)) <= 8192
    assert {"", "\x1enot json", "last"} <= set(texts)


def test_reports_arrive_between_lines(watched: Watched) -> None:
    code = f"print('a'); print({encode_event(Ready(1.5))!r}); print('b'); time.sleep(1000)"
    watched.run(Part("p", (child("c", code),)))
    until(lambda: len(watched.items) >= 3)
    assert watched.items[:3] == [
        Printed("c", "a"),
        Reported("c", Ready(1.5)),
        Printed("c", "b"),
    ]
