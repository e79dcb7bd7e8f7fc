r"""Redaction: what must not be stored is replaced before anything of a record is written.

Owns the rules file (`TOKENLEDGER_REDACTION`, off when unset) and the replacing. The spool's writer
and the landing loader both call it, so that neither disk nor store sees the original. All other
bytes of a record stay as they are. Refuses to guess: a line that it cannot read as JSON is withheld
whole, and rules that cannot be read stop the program instead of being passed over.

Rules are YAML with two lists, either of which may be absent::

    keys:                                   values, by where they stand in the record
      - "**.api_key"                        any depth
      - request_json.messages.*.content     * is one key or element
    patterns:                               text, in every string, number and inner key
      - name: email
        regex: '[\w.+-]+@[\w-]+\.[\w.-]+'

A value goes whole and becomes `"[redacted]"` (null stays null); of a text what matches becomes
`[redacted:email]`. JSON inside a string is read as JSON. The texts and numbers that make a
line a record and name it (`id`, `protocol_version`, …; see formats.yml) are never changed: every
trace would be the same one.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loader.errors import UsageError

__all__ = ["REDACTED", "Redactor", "load_redactor"]

REDACTED = "redacted"
_MARK = b"[redacted"
_WITHHELD_LINE = re.compile(rb"\[redacted: \d+ bytes that are no JSON\]")
_VALUE = '"[redacted]"'
_MAX_INNER = 8

_SPACE = re.compile(r"[ \t\n\r]*+")
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*+"', re.DOTALL)
_SCALAR = re.compile(r"-?[0-9]++(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?|true|false|null|NaN|-?Infinity")

# Of each rule, how far a path has come along it.
_States = frozenset[tuple[int, int]]


class _NotJson(Exception):
    """The text is no JSON document; never shown to anybody."""


@dataclass(frozen=True, slots=True)
class _Pattern:
    regex: re.Pattern[str]
    mark: str


class Redactor:
    """Replaces values and text by rules.

    Parameters
    ----------
    keys : list of str
        Paths from the record's root: keys with dots between, `*` for one step, `**` for any number.
    patterns : list of (name, regex)
        Python regular expressions.
    protected : set of str
        Keys of the record itself whose values stay.
    """

    def __init__(
        self,
        keys: list[str],
        patterns: list[tuple[str, re.Pattern[str]]],
        protected: frozenset[str] = frozenset(),
    ) -> None:
        self._rules = [tuple(key.split(".")) for key in keys]
        self._patterns = [_Pattern(regex, f"[redacted:{name}]") for name, regex in patterns]
        self._protected = protected
        self._steps: dict[tuple[_States, str | None], tuple[_States, bool]] = {}
        self._start = self._closure((index, 0) for index in range(len(self._rules)))

    def redact(self, line: bytes) -> tuple[bytes, bool]:
        """Replace what the rules name.

        Parameters
        ----------
        line : bytes
            One record, or whatever stood in its place.

        Returns
        -------
        (bytes, bool)
            The line to store, and whether something in it is redacted, now or earlier. Of a line
            that is no JSON document only its length is left.
        """
        try:
            text = line.decode().removeprefix("\ufeff")
            found = self._document(text, self._start, 0)
        except (_NotJson, UnicodeDecodeError, RecursionError):
            if _WITHHELD_LINE.fullmatch(line):
                return line, True
            return b"[redacted: %d bytes that are no JSON]" % len(line), True
        if found is None:
            return line, _MARK in line
        return found.encode(), True

    # ------------------------------------------------------------------ paths

    def _closure(self, states: Iterator[tuple[int, int]]) -> _States:
        """Add the states that `**` reaches by standing for nothing."""
        reached = set()
        for rule, place in states:
            reached.add((rule, place))
            while place < len(self._rules[rule]) and self._rules[rule][place] == "**":
                place += 1
                reached.add((rule, place))
        return frozenset(reached)

    def _step(self, states: _States, key: str | None) -> tuple[_States, bool]:
        """Go one key (None: an array's element) down; say whether that value goes."""
        known = self._steps.get((states, key))
        if known is None:
            after = []
            for rule, place in states:
                if place < len(self._rules[rule]):
                    segment = self._rules[rule][place]
                    if segment == "**":
                        after.append((rule, place))
                    elif segment in ("*", key):
                        after.append((rule, place + 1))
            below = self._closure(iter(after))
            known = below, any(place == len(self._rules[rule]) for rule, place in below)
            if len(self._steps) < 100_000:
                self._steps[states, key] = known
        return known

    # --------------------------------------------------------------- documents

    def _document(self, text: str, states: _States, inner: int) -> str | None:
        """Redact a whole JSON text; None when nothing changes.

        One pass over the tokens with a stack of its own, so that neither nesting nor a key that
        stands twice hides anything.
        """
        pieces: list[str] = []
        copied = 0
        # Of each open container: its closing character and the states of its path.
        stack: list[tuple[str, _States]] = []
        here = states
        hidden_at: int | None = None  # the depth of a value that goes as a whole
        hidden_from = 0
        index = _skip(text, 0)
        is_protected = False
        while True:
            # A value begins.
            begin = index
            character = text[index : index + 1]
            if character in ("{", "["):
                closing = "}" if character == "{" else "]"
                stack.append((closing, here))
                index = _skip(text, index + 1)
                if text[index : index + 1] != closing:
                    here, goes, index, is_protected, change = self._member(
                        text, index, stack, inner, hidden_at is None
                    )
                    if change is not None:
                        pieces += (text[copied : change[0]], change[2])
                        copied = change[1]
                    if goes and hidden_at is None:
                        hidden_at, hidden_from = len(stack), index
                    continue
                index += 1
                stack.pop()
            elif character == '"':
                match = _STRING.match(text, index)
                if match is None:
                    raise _NotJson
                index = match.end()
                if hidden_at is None and not is_protected:
                    changed = self._string(match.group(), here, inner)
                    if changed is not None:
                        pieces += (text[copied:begin], changed)
                        copied = index
                else:
                    _unquote(match.group())
            else:
                match = _SCALAR.match(text, index)
                if match is None:
                    raise _NotJson
                index = match.end()
                if hidden_at is None and not is_protected:
                    changed = self._text(match.group())
                    if changed is not None:
                        pieces += (text[copied:begin], json.dumps(changed))
                        copied = index
            # A value has ended, and perhaps the containers that it was the last of.
            while True:
                if hidden_at == len(stack):
                    hidden_at = None
                    if text[hidden_from:index] != "null":
                        pieces += (text[copied:hidden_from], _VALUE)
                        copied = index
                index = _skip(text, index)
                if not stack:
                    if index != len(text):
                        raise _NotJson
                    if not pieces:
                        return None
                    return "".join([*pieces, text[copied:]])
                following = text[index : index + 1]
                if following == ",":
                    index = _skip(text, index + 1)
                    here, goes, index, is_protected, change = self._member(
                        text, index, stack, inner, hidden_at is None
                    )
                    if change is not None:
                        pieces += (text[copied : change[0]], change[2])
                        copied = change[1]
                    if goes and hidden_at is None:
                        hidden_at, hidden_from = len(stack), index
                    break
                if following != stack[-1][0]:
                    raise _NotJson
                index += 1
                stack.pop()

    def _member(
        self,
        text: str,
        index: int,
        stack: list[tuple[str, _States]],
        inner: int,
        is_shown: bool,
    ) -> tuple[_States, bool, int, bool, tuple[int, int, str] | None]:
        """Read up to the value of a member or element.

        Returns
        -------
        tuple
            The value's states, whether it goes, where it begins, whether it is protected, and the
            key's own change as (begin, end, text).
        """
        closing, states = stack[-1]
        if closing == "]":
            below, goes = self._step(states, None)
            return below, goes, index, False, None
        match = _STRING.match(text, index)
        if match is None:
            raise _NotJson
        key = _unquote(match.group())
        is_root = len(stack) == 1 and inner == 0
        change = None
        if is_shown and not is_root:
            changed = self._text(key)
            if changed is not None:
                change = (match.start(), match.end(), json.dumps(changed, ensure_ascii=True))
        index = _skip(text, match.end())
        if text[index : index + 1] != ":":
            raise _NotJson
        index = _skip(text, index + 1)
        if is_root and key in self._protected and text[index : index + 1] not in ("{", "["):
            return frozenset(), False, index, True, change
        below, goes = self._step(states, key)
        return below, goes, index, False, change

    def _string(self, quoted: str, states: _States, inner: int) -> str | None:
        """Redact a string value, given with its quotes; None when nothing changes."""
        text = _unquote(quoted)
        if text.lstrip(" \t\r\n\ufeff")[:1] in ("{", "[") and inner < _MAX_INNER:
            try:
                changed = self._document(text.removeprefix("\ufeff"), states, inner + 1)
            except _NotJson:
                changed = self._text(text)
        else:
            changed = self._text(text)
        return None if changed is None else json.dumps(changed, ensure_ascii=True)

    def _text(self, text: str) -> str | None:
        """Replace what patterns match in a text; None when nothing does."""
        before = text
        for pattern in self._patterns:
            text = pattern.regex.sub(pattern.mark, text)
        return None if text == before else text


def _skip(text: str, index: int) -> int:
    found = _SPACE.match(text, index)
    return found.end() if found else index


def _unquote(quoted: str) -> str:
    if "\\" not in quoted:
        return quoted[1:-1]
    try:
        return str(json.loads(quoted))
    except ValueError:
        raise _NotJson from None


@functools.lru_cache(maxsize=8)
def load_redactor(path: str | Path | None) -> Redactor | None:
    """Read the rules once.

    Parameters
    ----------
    path : path-like or None
        The rules file; None or '' means that nothing is redacted.

    Raises
    ------
    UsageError
        If the file cannot be read, or says something else than rules.
    """
    if path is None or str(path) == "":
        return None
    import yaml

    try:
        document = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"TOKENLEDGER_REDACTION {path} cannot be read: {error}") from None
    if not isinstance(document, dict) or not document or document.keys() - {"keys", "patterns"}:
        raise UsageError(
            f"TOKENLEDGER_REDACTION {path}: `keys` and `patterns` are what it may hold."
        )
    keys = document.get("keys") or []
    if not isinstance(keys, list) or not all(isinstance(key, str) and key for key in keys):
        raise UsageError(f"TOKENLEDGER_REDACTION {path}: `keys` is to be a list of paths.")
    for key in keys:
        if "" in key.split(".") or key.split(".")[-1] == "**":
            raise UsageError(
                f"TOKENLEDGER_REDACTION {path}: the path {key!r} ends in `**` or has an empty step."
            )
    entries = document.get("patterns") or []
    patterns = [_read_pattern(path, entry) for entry in entries] if entries else []
    return Redactor(keys, patterns, _protected_keys())


def _read_pattern(path: str | Path, entry: Any) -> tuple[str, re.Pattern[str]]:
    if not isinstance(entry, dict) or entry.keys() != {"name", "regex"}:
        raise UsageError(f"TOKENLEDGER_REDACTION {path}: a pattern has a `name` and a `regex`.")
    name = str(entry["name"])
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name):
        raise UsageError(
            f"TOKENLEDGER_REDACTION {path}: the name {name!r} is to be of letters, digits, _ and -."
        )
    try:
        regex = re.compile(str(entry["regex"]))
    except re.error as error:
        raise UsageError(
            f"TOKENLEDGER_REDACTION {path}: the regex of {name} is none ({error})."
        ) from None
    if regex.search(""):
        raise UsageError(
            f"TOKENLEDGER_REDACTION {path}: the regex of {name} matches nothing at all, too."
        )
    return name, regex


def _protected_keys() -> frozenset[str]:
    from loader.formats import Framer

    names: set[str] = set()
    for entry in Framer.from_file().formats:
        names.update(entry.match)
        if entry.id_key is not None:
            names.add(entry.id_key)
    return frozenset(names)
