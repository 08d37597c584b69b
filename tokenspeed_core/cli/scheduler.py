# SPDX-License-Identifier: MIT
"""`tokenspeed scheduler`: look into the scheduler: its states, and its black box event by event."""

import argparse
import sys

from ..scheduler._scheduler import Played, Replay, SchedulerError, diagram

HELP = "replay a scheduler's black box, print its state diagram"
DESCRIPTION = (
    "Look into the scheduler. `tokenspeed serve --record FILE` keeps a black box of its events; "
    "`tokenspeed scheduler replay FILE` plays them again into the same core and compares every "
    "outcome, plans bit for bit. A crashed scheduler's box is kept as FILE.1, older ones as FILE.2 "
    "and FILE.3."
)


class ReplayDifferenceError(RuntimeError):
    """A replay came to another outcome than the recorded process."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their flags."""
    parser.add_argument(
        "--diagram",
        nargs="?",
        const="mermaid",
        choices=("mermaid", "dot"),
        help="print the states of a request and every legal arrow; default: mermaid",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    replay = actions.add_parser("replay", help="play a black box again")
    replay.add_argument("file", help="the black box")
    replay.add_argument("--until", type=int, metavar="STEP", help="stop behind this step's plan")
    replay.add_argument("--step", action="store_true", help="print each event; Enter for the next")
    replay.add_argument("--events", action="store_true", help="print each event")
    replay.add_argument(
        "--verify", action="store_true", help="check every invariant of the core after each event"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print what was asked for; 2 if that is nothing."""
    if arguments.diagram is not None:
        print(diagram(arguments.diagram), end="")
    elif arguments.action == "replay":
        _replay(arguments)
    else:
        print("tokenspeed scheduler: give --diagram or replay FILE; try --help", file=sys.stderr)
        return 2
    return 0


def _replay(arguments: argparse.Namespace) -> None:
    replay = Replay(arguments.file)
    plans = events = shown = 0
    last: Played | None = None
    while (played := replay.next()) is not None:
        last = played
        if not played.replayed and shown == 0:
            print("the box has no more room from here on: events are shown, not replayed")
        events += played.replayed
        shown += not played.replayed
        plans += played.step > 0
        if arguments.events or arguments.step:
            _show(played, replay, wait=arguments.step)
        if not played.same:
            raise ReplayDifferenceError(
                f"event {played.index} ({played.event}) has another outcome than it had: "
                f"{played.outcome or 'nothing'}; is this the release that recorded it?"
            )
        if arguments.verify and played.replayed:
            _verify(replay, played)
        if arguments.until is not None and played.step >= arguments.until:
            break
    stats = replay.stats()
    print(f"{events} events replayed, {plans} plans, all as recorded; {shown} more shown")
    print(", ".join(f"{name} {value}" for name, value in stats.items()))
    if last is not None and not last.settled:
        print(f"the process ended inside event {last.index}: {last.event}")
    elif not replay.closed:
        print("the process did not end by itself")


def _show(played: Played, replay: Replay, *, wait: bool) -> None:
    arrow = f" -> {played.outcome}" if played.outcome else ""
    print(f"{played.index:>8} {played.event}{arrow}")
    if not wait:
        return
    stats = replay.stats()
    names = ("waiting", "running", "in_flight", "free_blocks", "cached_blocks", "retiring_blocks")
    print("         " + ", ".join(f"{name} {stats[name]}" for name in names), end=" ", flush=True)
    sys.stdin.readline()


def _verify(replay: Replay, played: Played) -> None:
    try:
        replay.check()
    except SchedulerError as error:
        raise ReplayDifferenceError(
            f"after event {played.index} ({played.event}): {error}"
        ) from None
