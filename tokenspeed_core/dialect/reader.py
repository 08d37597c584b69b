# SPDX-License-Identifier: MIT
"""Reading an answer's text in a dialect, as it comes."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from .dialect import CONTENT, Dialect, Kind
from .event import CallArguments, CallBegun, Content, Event, Reasoning
from .json_call import JsonCall
from .parameters import Parameters

MAX_NAME_CHARS = 256
MAX_HEADER_CHARS = 512

_LIMITS = {Kind.NAME: MAX_NAME_CHARS, Kind.HEADER: MAX_HEADER_CHARS, Kind.KEY: 1 << 30}
_IN_PARAMETERS = (Kind.BODY, Kind.KEY, Kind.VALUE)


class DialectReader:
    """Turns text into events; any split of the text gives the same events, pieces joined.

    What is not written as the dialect wants is content, with the mark before it: nothing raises,
    and no text is lost but space beside marks.  `tools` maps names to the JSON schemas of their
    parameters; with `thinks` the text begins inside the reasoning.
    """

    def __init__(
        self, dialect: Dialect, tools: Mapping[str, Mapping[str, Any]], *, thinks: bool = False
    ) -> None:
        self._dialect = dialect
        self._tools = tools
        self._state = dialect.states["reasoning" if thinks else dialect.start]
        self._buffer = ""  # came, and may be part of a mark
        self._space = ""  # at the end of a text or in a gap: lost if a mark follows
        self._is_after_mark = thinks
        self._raw: list[str] = []  # of what may turn out to be no call, from its mark on
        self._length = 0  # of the characters in it, without the mark
        self._json = JsonCall()
        self._parameters = Parameters({}, trims_values=False)
        self._has_arguments = False
        self._is_open = False  # the last call has begun and not ended
        self.num_calls = 0
        self.has_answered = False  # something but reasoning was read

    def push(self, text: str) -> list[Event]:
        """Take the next text and return what is certain by now."""
        self._buffer += text
        return self._told(self._read(is_final=False))

    def finish(self) -> list[Event]:
        """Return the rest, when no more text will come."""
        return self._told(chain(self._read(is_final=True), self._end()))

    def _told(self, events: Iterable[Event]) -> list[Event]:
        told = list(events)
        self.has_answered |= any(not isinstance(event, Reasoning) for event in told)
        return told

    def _read(self, *, is_final: bool) -> Iterator[Event]:
        while self._buffer:
            state = self._state
            if state.kind is Kind.CALL:
                yield from self._take_call()
                continue
            start, mark = self._next_mark(is_final)
            text, self._buffer = self._buffer[:start], self._buffer[start:]
            if text:
                yield from self._take(text)
                if self._state is not state:
                    continue
            if not mark:
                return
            self._buffer = self._buffer.removeprefix(mark)
            yield from self._pass(mark)

    def _next_mark(self, is_final: bool) -> tuple[int, str]:
        """Return where the first mark begins, and the mark, "" if it may yet become one."""
        buffer, exits = self._buffer, self._state.exits
        found = min(
            ((at, mark) for mark in exits if (at := buffer.find(mark)) >= 0),
            default=(len(buffer), ""),
        )
        if not is_final:
            longest = max(map(len, exits), default=0)
            for at in range(max(0, len(buffer) - longest + 1), found[0]):
                if any(mark.startswith(buffer[at:]) for mark in exits):
                    return at, ""
        return found

    def _take(self, text: str) -> Iterator[Event]:
        """Take text of the state that has no mark in it."""
        match self._state.kind:
            case Kind.CONTENT | Kind.REASONING:
                yield from self._say(text)
            case Kind.GAP:
                self._take_gap(text)
            case Kind.BODY:
                yield from self._take_between(text)
            case Kind.ARGUMENTS:
                self._has_arguments |= not text.isspace()
                yield self._argued(text)
            case Kind.VALUE:
                yield from self._argue(self._parameters.push(text))
            case kind:
                room = _LIMITS[kind] - self._length
                self._raw.append(text[:room])
                self._length += len(text)
                if len(text) > room:
                    self._buffer = text[room:] + self._buffer
                    yield from self._give_up()

    def _say(self, text: str) -> Iterator[Event]:
        if self._is_after_mark:
            text = text.lstrip()
            self._is_after_mark = not text
        text = self._space + text
        kept = text.rstrip("\n")
        self._space = text[len(kept) :]
        if kept:
            yield Reasoning(kept) if self._state.kind is Kind.REASONING else Content(kept)

    def _take_gap(self, text: str) -> None:
        """Space goes with the next mark; anything else ends the gap."""
        self._space += text
        if not text.isspace():
            self._buffer = self._space + self._buffer
            self._enter(CONTENT)

    def _take_between(self, text: str) -> Iterator[Event]:
        """Text between parameters has no place in the call."""
        text = self._space + text
        kept = text.rstrip()
        self._space = text[len(kept) :]
        if kept:
            yield Content(kept)

    def _take_call(self) -> Iterator[Event]:
        """Take of the buffer what belongs to a call's JSON object."""
        call, taken, is_part = self._json, 0, True
        for char in self._buffer:
            is_part = call.push(char)
            if not is_part:
                break
            taken += 1
            if not self._is_open:
                self._raw.append(char)
                if call.is_call:
                    assert call.name is not None
                    if self._dialect.known_names_only and call.name not in self._tools:
                        is_part = False
                        break
                    yield self._begin(call.name)
            if call.is_done:
                break
        self._buffer = self._buffer[taken:]
        if self._is_open:
            arguments = call.take_arguments()
            self._has_arguments |= bool(arguments)
            yield from self._argue(arguments)
            if call.is_done or not is_part:
                yield from self._end_call()
                self._enter(self._state.then)
        elif call.is_done or not is_part:
            yield from self._give_up()

    def _pass(self, mark: str) -> Iterator[Event]:
        """Leave the state through a mark."""
        target, kind = self._state.exits[mark], self._state.kind
        if kind is Kind.NAME:
            name = "".join(self._raw[1:]).strip()
            if not name or any(char.isspace() for char in name):
                self._raw.append(mark)
                yield from self._give_up()
                return
            yield self._begin(name)
        elif kind is Kind.HEADER:
            yield from self._pass_header(mark)
            return
        elif kind is Kind.KEY:
            yield self._argued(self._parameters.begin("".join(self._raw[1:]).strip()))
        elif kind is Kind.VALUE:
            yield from self._argue(self._parameters.end())
        if self._is_open and self._dialect.states[target].kind not in (
            Kind.ARGUMENTS,
            *_IN_PARAMETERS,
        ):
            yield from self._end_call()
        self._enter(target, mark)

    def _pass_header(self, mark: str) -> Iterator[Event]:
        assert self._dialect.header is not None
        header = self._dialect.header.fullmatch("".join(self._raw))
        if header is None:
            self._raw.append(mark)
            yield from self._give_up()
            return
        name = header["name"] or header["called"]
        if name:
            yield self._begin(name)
            self._enter("arguments", mark)
        else:
            self._enter(self._dialect.channels[header["channel"]], mark)

    def _enter(self, name: str, mark: str = "") -> None:
        self._state = state = self._dialect.states[name]
        self._space, self._is_after_mark, self._length = "", bool(mark), 0
        self._raw = [] if state.kind is Kind.HEADER else [mark]
        if state.kind is Kind.CALL:
            self._json = JsonCall()
            if mark.endswith("{"):  # the mark is the object's own beginning
                self._json.push("{")

    def _give_up(self) -> Iterator[Event]:
        """What was taken for a call or a header is content."""
        raw = "".join(self._raw)
        self._enter(CONTENT)
        yield from self._say(raw)

    def _begin(self, name: str) -> CallBegun:
        self._is_open, self._has_arguments = True, False
        self._parameters = Parameters(
            self._tools.get(name, {}), trims_values=self._dialect.trims_values
        )
        self.num_calls += 1
        return CallBegun(self.num_calls - 1, name)

    def _end_call(self) -> Iterator[Event]:
        self._is_open = False
        if self._state.kind in _IN_PARAMETERS:
            yield self._argued(self._parameters.close())
        elif not self._has_arguments:
            yield self._argued("{}")

    def _argued(self, text: str) -> CallArguments:
        return CallArguments(self.num_calls - 1, text)

    def _argue(self, text: str) -> Iterator[Event]:
        if text:
            yield self._argued(text)

    def _end(self) -> Iterator[Event]:
        match self._state.kind:
            case Kind.NAME | Kind.HEADER:
                yield from self._give_up()
            case Kind.CALL if not self._is_open:
                yield from self._give_up()
            case Kind.KEY:
                yield Content("".join(self._raw))
            case Kind.VALUE:
                yield from self._argue(self._parameters.cut())
            case Kind.BODY:
                yield from self._end_call()
            case Kind.ARGUMENTS if not self._has_arguments:
                yield self._argued("{}")
        space, self._space = self._space, ""
        if space and self._state.kind is Kind.CONTENT:
            yield Content(space)
        elif space and self._state.kind is Kind.REASONING:
            yield Reasoning(space)
