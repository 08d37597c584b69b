# SPDX-License-Identifier: MIT
"""The caches of block groups behind the first, for `SimulatedWorker`.

Windows and other full groups keep tokens, a state is a digest of all tokens before it.  All groups
lie in one memory: who begins to write a parent destroys what other groups had in it.  What a row
reads must be what its own history says; nothing outside of a window is looked at.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from tokenspeed_core.ipc.codec import int32_column
from tokenspeed_core.ipc.messages import GroupKind

Cells = list[list[int | None]]  # of a block, the tokens in it


class Group(NamedTuple):
    """As the columns of Hello."""

    kind: int
    tokens: int
    span: int
    share: int


class State(NamedTuple):
    """What a state is after some tokens."""

    count: int
    digest: bytes

    def after(self, token: int) -> "State":
        digest = hashlib.blake2b(self.digest + int32_column([token]), digest_size=8).digest()
        return State(self.count + 1, digest)


BEGINNING = State(0, b"")


class SimulatedGroups:
    """Contents of all groups; `first` are the cells of group 0, which the worker writes."""

    def __init__(self, groups: Sequence[Group], num_parents: int, first: Cells) -> None:
        self.groups = groups
        self.owners: dict[int, int] = {}  # the group that wrote a parent last
        self.cells: list[Cells] = [first]
        self.states: dict[tuple[int, int], State] = {}  # by group and block
        for group in groups[1:]:
            self.cells.append([[None] * group.tokens for _ in range(num_parents * group.share)])

    def check_block(self, group: int, block: int) -> None:
        """A block of the group, not scratch; a window has holes, named 0."""
        spec = self.groups[group]
        hole = block == 0 and spec.kind == GroupKind.WINDOW
        assert hole or spec.share <= block < len(self.cells[group]), f"block {block} of {group}"

    def copy(self, copies: Sequence[tuple[int, int, int]]) -> None:
        """Copy states (group, source, target); all sources are read first."""
        found = []
        for group, source, _ in copies:
            assert self.groups[group].kind == GroupKind.STATE
            assert self.owners[source // self.groups[group].share] == group
            found.append(self.states[group, source])
        assert len({(group, target) for group, _, target in copies}) == len(copies)
        for (group, _, target), state in zip(copies, found, strict=True):
            self.begin(group, target)
            self.states[group, target] = state

    def is_written(self, group: int, block: int) -> bool:
        """All of a block behind the first group has content."""
        if self.groups[group].kind == GroupKind.STATE:
            return (group, block) in self.states
        return None not in self.cells[group][block]

    def take(self, tier: "SimulatedGroups", group: int, source: int, target: int) -> None:
        """Copy a block from another tier."""
        if self.groups[group].kind == GroupKind.STATE:
            self.states[group, target] = tier.states[group, source]
        else:
            self.cells[group][target] = list(tier.cells[group][source])

    def lose(self, group: int, block: int) -> None:
        """A copy onto the block failed."""
        self.states.pop((group, block), None)
        self.cells[group][block] = [None] * self.groups[group].tokens

    def begin(self, group: int, block: int) -> None:
        """The group writes this block: its parent is no other group's any more."""
        parent = block // self.groups[group].share
        if self.owners.get(parent) == group:
            return
        self.owners[parent] = group
        for other, spec in enumerate(self.groups):
            for child in range(parent * spec.share, (parent + 1) * spec.share):
                if other != group:
                    self.cells[other][child] = [None] * spec.tokens
                    self.states.pop((other, child), None)

    def write(self, tables: Sequence[list[int]], position: int, token: int) -> None:
        """A token enters all groups but the first, whose block is only begun."""
        first, offset = divmod(position, self.groups[0].tokens)
        if offset == 0:
            self.begin(0, tables[0][first])
        for index, group in enumerate(self.groups[1:], 1):
            if group.kind == GroupKind.STATE:
                block = tables[index][-1]
                if position == 0:
                    self.begin(index, block)
                    self.states[index, block] = BEGINNING
                state = self.states[index, block]
                assert state.count == position, f"a state after {state.count}, not {position}"
                self.states[index, block] = state.after(token)
                continue
            place, offset = divmod(position, group.tokens)
            if offset == 0:
                self.begin(index, tables[index][place])
            self.cells[index][tables[index][place]][offset] = token

    def check(self, tables: Sequence[list[int]], begin: int, history: Sequence[int]) -> None:
        """A row took the slot from `begin` tokens to all of `history`: it read that and no more."""
        for index, group in enumerate(self.groups[1:], 1):
            if group.kind == GroupKind.STATE:
                state = BEGINNING
                for token in history:
                    state = state.after(token)
                assert self.states[index, tables[index][-1]] == state
                continue
            first = max(0, begin + 1 - group.span) if group.span else 0
            for position in range(first, len(history)):
                place, offset = divmod(position, group.tokens)
                found = self.cells[index][tables[index][place]][offset]
                assert found == history[position], f"group {index}, position {position}: {found}"
