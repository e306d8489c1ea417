"""Regular expressions of clients, matched in linear time.

A client's pattern runs in the broker's only thread, and Python's own matcher takes for ever over some that look
harmless (`(a+)+b`). Apache Kafka uses RE2 there, whose language has nothing that needs trying back and forth; this is
the part of that language that names of topics and ids are looked for with: literals, escapes, classes, groups,
alternatives, counts, anchors, word boundaries, and the flags i and s in front. Whatever else there is (back references,
look-around) is refused, as RE2 refuses it.

Theory of operation. The pattern becomes an automaton without memory (Thompson): states with at most two arrows.
Matching keeps the set of states that the characters so far lead to, so a character costs at most one look at each
state.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Final, NamedTuple

MAX_STATES: Final = 2_000
"""Counts are written out; a pattern that becomes larger is refused."""
_MAX_COUNT: Final = 1_000
_MAX_DEPTH: Final = 50

_MATCH, _SPLIT, _CHARACTER, _ASSERTION = range(4)
_ESCAPED_CLASSES: Final = frozenset("dDwWsS")
_CONTROLS: Final = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}
_WORD: Final = re.compile(r"\w", re.ASCII)

Takes = Callable[[str], bool]
Holds = Callable[[str, int], bool]


class PatternError(ValueError):
    """Not a pattern; the message says where."""


class _Fragment(NamedTuple):
    """A piece of the automaton: where it begins, and the arrows that lead out of it (state, which arrow)."""

    start: int
    ends: list[tuple[int, int]]


class LinearPattern:
    """A compiled pattern. Raises PatternError."""

    def __init__(self, pattern: str) -> None:
        parser = _Parser(pattern)
        whole = parser.whole()
        self._kinds, self._arrows, self._tests = parser.kinds, parser.arrows, parser.tests
        final = parser.state(_MATCH)
        parser.connect(whole.ends, final)
        self._start = whole.start

    def matches(self, text: str) -> bool:
        """Whether the whole text is matched."""
        current = self._reached([self._start], text, 0)
        for position, character in enumerate(text):
            following = [
                self._arrows[state][0]
                for state in current
                if self._kinds[state] == _CHARACTER and self._tests[state](character)  # type: ignore[call-arg, misc]
            ]
            if not following:
                return False
            current = self._reached(following, text, position + 1)
        return any(self._kinds[state] == _MATCH for state in current)

    def _reached(self, states: list[int], text: str, position: int) -> list[int]:
        """The states that these lead to without another character."""
        seen = set(states)
        reached = []
        todo = list(states)
        while todo:
            state = todo.pop()
            kind = self._kinds[state]
            if kind in (_CHARACTER, _MATCH):
                reached.append(state)
                continue
            if kind == _ASSERTION and not self._tests[state](text, position):  # type: ignore[call-arg, misc]
                continue
            for target in self._arrows[state]:
                if target >= 0 and target not in seen:
                    seen.add(target)
                    todo.append(target)
        return reached


class _Parser:
    """Reads a pattern from left to right, and builds the automaton as it goes."""

    def __init__(self, pattern: str) -> None:
        flags = re.match(r"\(\?([is]+)\)", pattern)
        self._pattern = pattern
        self._at = flags.end() if flags else 0
        self._depth = 0
        self._flags = re.ASCII
        if flags and "i" in flags[1]:
            self._flags |= re.IGNORECASE
        if flags and "s" in flags[1]:
            self._flags |= re.DOTALL
        self.kinds: list[int] = []
        self.arrows: list[list[int]] = []
        self.tests: list[Takes | Holds | None] = []

    def state(self, kind: int, test: Takes | Holds | None = None) -> int:
        """A new state without arrows."""
        if len(self.kinds) >= MAX_STATES:
            raise PatternError("it is too large")
        self.kinds.append(kind)
        self.arrows.append([-1, -1])
        self.tests.append(test)
        return len(self.kinds) - 1

    def connect(self, ends: list[tuple[int, int]], target: int) -> None:
        """Let arrows lead to a state."""
        for state, which in ends:
            self.arrows[state][which] = target

    def whole(self) -> _Fragment:
        """The whole pattern."""
        found = self._alternatives()
        if self._at < len(self._pattern):
            raise self._error("a bracket is closed that was not opened")
        return found

    def _alternatives(self) -> _Fragment:
        found = self._sequence()
        while self._take("|"):
            other = self._sequence()
            split = self.state(_SPLIT)
            self.arrows[split] = [found.start, other.start]
            found = _Fragment(split, found.ends + other.ends)
        return found

    def _sequence(self) -> _Fragment:
        found = self._nothing()
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            following = self._counted()
            self.connect(found.ends, following.start)
            found = _Fragment(found.start, following.ends)
        return found

    def _counted(self) -> _Fragment:
        begin = self._at
        first = self._atom()
        count = self._count()
        if count is None:
            return first
        self._take("?")  # lazy or not makes no difference to whether all of a text is matched
        after = self._at
        if self._count() is not None:
            raise self._error("a count of a count")
        least, most = count

        def once_more() -> _Fragment:
            self._at = begin
            return self._atom()

        pieces = [first, *(once_more() for _ in range(least - 1))]
        if most is None:
            pieces[-1] = self._repeated(pieces[-1], or_nothing=least == 0)
        else:
            pieces += [self._optional(once_more()) for _ in range(most - max(least, 1))]
            if least == 0:
                pieces[0] = self._optional(first) if most else self._nothing()
        self._at = after
        for before, following in pairwise(pieces):
            self.connect(before.ends, following.start)
        return _Fragment(pieces[0].start, pieces[-1].ends)

    def _count(self) -> tuple[int, int | None] | None:
        """The count that stands here: `*`, `+`, `?`, `{2}`, `{2,}`, `{2,5}`."""
        for sign, count in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return count
        found = re.compile(r"\{(\d+)(,(\d*))?\}").match(self._pattern, self._at)
        if found is None:
            return None
        self._at = found.end()
        least = int(found[1])
        most = least if found[2] is None else int(found[3]) if found[3] else None
        if least > _MAX_COUNT or (most is not None and (most < least or most > _MAX_COUNT)):
            raise self._error("a count that is too large, or ends before it begins")
        return least, most

    def _repeated(self, piece: _Fragment, *, or_nothing: bool) -> _Fragment:
        split = self.state(_SPLIT)
        self.arrows[split][0] = piece.start
        self.connect(piece.ends, split)
        return _Fragment(split if or_nothing else piece.start, [(split, 1)])

    def _optional(self, piece: _Fragment) -> _Fragment:
        split = self.state(_SPLIT)
        self.arrows[split][0] = piece.start
        return _Fragment(split, [*piece.ends, (split, 1)])

    def _nothing(self) -> _Fragment:
        state = self.state(_SPLIT)
        return _Fragment(state, [(state, 0)])

    def _atom(self) -> _Fragment:
        character = self._pattern[self._at]
        self._at += 1
        if character == "(":
            return self._group()
        if character == "[":
            return self._character(self._class())
        if character == "\\":
            return self._escape()
        if character == ".":
            return self._character(self._taking("."))
        if character == "^":
            return self._assertion(lambda _text, position: position == 0)
        if character == "$":
            return self._assertion(lambda text, position: position == len(text))
        if character in "*+?":
            raise self._error("nothing to repeat")
        return self._character(self._taking(re.escape(character)))

    def _group(self) -> _Fragment:
        if self._take("?") and not self._take(":"):
            name = re.compile(r"P?<[A-Za-z_]\w*>").match(self._pattern, self._at)
            if name is None:
                raise self._error("a group that is of no known kind")
            self._at = name.end()
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._error("too many brackets in brackets")
        found = self._alternatives()
        self._depth -= 1
        if not self._take(")"):
            raise self._error("a bracket that is not closed")
        return found

    def _class(self) -> Takes:
        negated = self._take("^")
        members = [self._member(first=True)]
        while not self._take("]"):
            members.append(self._member(first=False))
        return self._taking("[" + "^" * negated + "".join(members) + "]")

    def _member(self, *, first: bool) -> str:
        """A character of a class, a range, or an escaped class; as Python writes it."""
        low = self._member_character(first=first)
        if len(low) > 1 and low[1] in _ESCAPED_CLASSES:
            return low
        if not self._pattern.startswith("-", self._at) or self._pattern.startswith("-]", self._at):
            return low
        self._at += 1
        high = self._member_character(first=False)
        if len(high) > 1 and high[1] in _ESCAPED_CLASSES:
            raise self._error("a range that ends in a class")
        return f"{low}-{high}"

    def _member_character(self, *, first: bool) -> str:
        if self._at >= len(self._pattern) or (self._pattern[self._at] == "]" and not first):
            raise self._error("a class that is not closed")
        character = self._pattern[self._at]
        self._at += 1
        if character == "[" and self._pattern.startswith(":", self._at):
            raise self._error("a class by name, which is not supported here")
        if character != "\\":
            return re.escape(character)
        if self._at == len(self._pattern):
            raise self._error("an escape without a character")
        return self._escaped_character()

    def _escaped_character(self) -> str:
        """What stands behind a backslash and is one character, as Python writes it."""
        character = self._pattern[self._at]
        self._at += 1
        if character in _ESCAPED_CLASSES:
            return "\\" + character
        if character in _CONTROLS:
            return re.escape(_CONTROLS[character])
        if character.isalnum():
            raise self._error(f"the escape \\{character}, which is not supported here")
        return re.escape(character)

    def _escape(self) -> _Fragment:
        if self._at == len(self._pattern):
            raise self._error("an escape without a character")
        if self._take("b"):
            return self._assertion(_is_word_boundary)
        if self._take("B"):
            return self._assertion(lambda text, position: not _is_word_boundary(text, position))
        if self._take("A"):
            return self._assertion(lambda _text, position: position == 0)
        if self._take("z"):
            return self._assertion(lambda text, position: position == len(text))
        return self._character(self._taking(self._escaped_character()))

    def _character(self, takes: Takes) -> _Fragment:
        state = self.state(_CHARACTER, takes)
        return _Fragment(state, [(state, 0)])

    def _assertion(self, holds: Holds) -> _Fragment:
        state = self.state(_ASSERTION, holds)
        return _Fragment(state, [(state, 0)])

    def _taking(self, one_character: str) -> Takes:
        try:
            matches = re.compile(one_character, self._flags).fullmatch
        except re.error as error:
            raise self._error(str(error)) from None
        return lambda character: matches(character) is not None

    def _take(self, sign: str) -> bool:
        if not self._pattern.startswith(sign, self._at):
            return False
        self._at += len(sign)
        return True

    def _error(self, what: str) -> PatternError:
        return PatternError(f"{what} at position {self._at}")


def _is_word_boundary(text: str, position: int) -> bool:
    before = position > 0 and _WORD.match(text[position - 1]) is not None
    after = position < len(text) and _WORD.match(text[position]) is not None
    return before != after
