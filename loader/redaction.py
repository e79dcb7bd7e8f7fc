r"""Redaction: what must not be stored is replaced before anything of a record is written.

Owns the rules file (`TOKENLEDGER_REDACTION`, off when unset) and the replacing. The spool's writer
and the landing loader both call it, so that neither disk nor store sees the original. All other
bytes of a record stay as they are. Refuses to guess: a line that it cannot read as JSON is withheld
whole, and rules that cannot be read stop the program instead of being passed over.

Rules are YAML with two lists, either of which may be absent::

    keys:                                   values, by where they stand in the record
      - "**.api_key"                        any depth
      - request_json.messages.*.content     * is one key or element; case does not matter
    patterns:                               text, in every string, number and inner key
      - name: email
        regex: '(?<![\w.+@-])[\w.+@-]*[\w.+-]@[\w-]++\.[\w.-]+\w'

A value goes whole and becomes `"[redacted]"` (null stays null); of a text what matches becomes
`[redacted:email]`. JSON inside a string or a key is read as JSON, and so is what there is of it in
other text: lines, events of a stream, a document that is cut off. Text that may hold more of it
than is read becomes `[redacted]`. The texts and numbers that make a line a record and name it
(`id`, `protocol_version`, …; see formats.yml) are never changed: every trace would be the same one.
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

__all__ = ["REDACTED", "Redactor", "is_withheld", "load_redactor"]

REDACTED = "redacted"
_MARK = b"[redacted"
_WITHHELD_LINE = re.compile(rb"\[redacted: \d+ bytes that are no JSON\]")
_WITHHELD = "[redacted]"
_VALUE = f'"{_WITHHELD}"'
_LISTS = ("keys", "patterns")
_MAX_INNER = 8
# Of keys that are longer, which senders choose, nothing is remembered; in names that may be written
# with letters for several (`ß`), so many are looked at together.
_KEPT_KEY = 64
_MOST_TOGETHER = 6

_SPACE = re.compile(r"[ \t\n\r]*+")
_BLANK = re.compile(r"[\s\ufeff]*+")
_ESCAPE = r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})'
_ESCAPES = re.compile(rf"(?:{_ESCAPE})++")
# What a name has to be free of to stand in a text as it is, unless it is written with `\u`.
_ESCAPABLE = re.compile(r'["\\/\x00-\x1f\x7f]')
# A character of a name as Markdown has it, or as an escape that JSON has not.
_PUNCTUATION = re.compile(r"[^\w\s]|_")
_NAME_ESCAPE = re.compile(
    r"\\++(?:[xX]([0-9a-fA-F]{2})|(?:U000|[uU]\{0*+(?=[0-9a-fA-F]{1,5}\}))([0-9a-fA-F]{1,5})\}?"
    rf"|[uU]([0-9a-fA-F]{{4}})|({_PUNCTUATION.pattern}))"
)

# Quotes of any kind: as they are, as HTML has them, as escapes of some language (without the `\`).
_QUOTES = "\"'`\xb4\xab\xbb\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u2039\u203a\uff02\uff07"
_QUOTE_HEX = "|".join(f"{ord(quote):x}" for quote in _QUOTES)
_QUOTE_DECIMAL = "|".join(str(ord(quote)) for quote in _QUOTES)
_QUOTE_HTML = (
    rf"(?i:(?:amp;)*+(?:#0*+(?:{_QUOTE_DECIMAL})|#x0*+(?:{_QUOTE_HEX})"
    "|quot|apos|grave|acute|(?:[lr](?:s|d|a|sa)|sb|bd)quo);)"
)
_QUOTE_ESCAPE = (
    rf"(?:(?i:[ux]\{{?0*+(?:{_QUOTE_HEX})\}}?)|04[27]|140|(?:[uU]0*+26|x26){_QUOTE_HTML})"
)
# What a string has if JSON is in it, or a name in quotes.
_CAN_HOLD = re.compile(rf"[\[{{\\&{_QUOTES[1:]}]")
_SCALAR = re.compile(r"-?[0-9]++(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?|true|false|null|NaN|-?Infinity")

# Where JSON may begin in a text that is none as a whole: an object, a list, a quoted string that
# begins with an escape or a bracket and an escape, or is all of a line, behind `data:` or not.
# Quotes and line ends may be escaped: that is no JSON, and a piece of some.
_LINE_SPACE = r"(?:[ \t\n\r]|(?<=[\n\r])(?:data:[ \t]*+)++)*+"
_PIECE_SPACE = r"(?:[ \t\n\r]|\\++(?:[nrt]|u00(?:09|0[aAdD]|20))|data:)*+"
_PIECE_QUOTE = r'(?:\\*+"|\\++u0022)'
_LINE_STRING = r'"[^"\\\n\r]*+(?:\\[^\n\r][^"\\\n\r]*+)*+"'
_LINE_BLANK = r"(?:[^\S\n\r]|\ufeff)*+"
_PIECE = rf"\{{{_PIECE_SPACE}{_PIECE_QUOTE}|\["
_OPENER = re.compile(
    rf"(?P<line>(?<![^\n\r])(?:{_LINE_BLANK}data:)?{_LINE_BLANK}"
    rf"(?={_LINE_STRING}{_LINE_BLANK}(?![^\n\r])|{_PIECE}))"
    rf'|(?={_PIECE}|(?<!\\)"[ \t\[{{]*+\\)'
)
_LINE_END = re.compile(rf"{_LINE_BLANK},?{_LINE_BLANK}(?![^\n\r])")
# The name of a value, where it is in no JSON that can be read: in quotes, which may be doubled or
# behind a bracket, and before a colon, an equals sign or an arrow; or the first of two things in
# parentheses. Each way to begin has a first character of its own: that makes the search fast.
_NAME_WAYS = rf"{'|'.join(_QUOTES)}|&{_QUOTE_HTML}|\\(?=[uUx01]){_QUOTE_ESCAPE}"
_NAME_QUOTE = rf"(?:\\*+(?:[{_QUOTES}]|&{_QUOTE_HTML}|{_QUOTE_ESCAPE}))"
_NAME_SPACE = r"(?:[\s*_~]|\\++[nrt*_~])*+"
_NAME_SIGN = (
    rf"{_NAME_SPACE}(?:\\*+\]{_NAME_SPACE})?+"
    r"(?:[:=\uff1a\u2192]|-++(?:>|&(?:amp;)*+gt;|\\++u003[eE])"
    r"|\\++(?i:(?:u00|x)3[ad]|uff1a|u2192)%s)"
)
_NAMED = (
    rf"(?:{_NAME_WAYS}|\((?P<first>){_NAME_SPACE}[bBrRuU]{{0,2}}+{_NAME_QUOTE}{{1,4}}+)(?=[%s\\])"
    rf"(?:%s){_NAME_QUOTE}{{1,4}}+{_NAME_SIGN % '|(?(first),|(?!))'}"
)
_ANY_NAMED = rf"(?:{_NAME_WAYS}){_NAME_QUOTE}{{0,3}}+{_NAME_SIGN % ''}"
_OPENING = ("{", "[", '"')
# What has these up to where it breaks off was JSON, and not words in brackets.
_HAS_JSON = re.compile(r'[",\\]')

# Of each rule, how far a path has come along it.
_States = frozenset[tuple[int, int]]
# What a text has if rules may name a value in it, and if it has escapes; and their keys in quotes.
_Names = tuple[tuple[str, ...], tuple[str, ...], re.Pattern[str] | None]
# Begin, end, and the states of a string; None where only patterns look, _GOES of a value that goes.
_Place = tuple[int, int, _States | None]
_GOES: _States = frozenset({(-1, -1)})


class _NotJson(Exception):
    """The text is no JSON document, from an index on; never shown to anybody."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index


@dataclass(frozen=True, slots=True)
class _Grammar:
    """What is space and what a string: as JSON says in a record, less strictly in texts in it.

    In a text that is no JSON as a whole, what stands between two quotes may be no string: the first
    may end another one. There a string that names a value breaks the document off, but in what is
    all of its lines, as an event of a stream is.
    """

    space: re.Pattern[str]
    string: re.Pattern[str]
    is_doubted: bool = False

    def skip(self, text: str, index: int) -> int:
        found = self.space.match(text, index)
        return found.end() if found else index


_STRICT = _Grammar(
    _SPACE,
    re.compile(rf'"[^"\\\x00-\x1f]*+(?:{_ESCAPE}[^"\\\x00-\x1f]*+)*+"'),
)
_LOOSE = _Grammar(_SPACE, re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL))
_DOUBTED = _Grammar(_LOOSE.space, _LOOSE.string, is_doubted=True)
_LINES = _Grammar(re.compile(_LINE_SPACE), re.compile(_LINE_STRING))
_IN_LINES = _Grammar(_LINES.space, _LINES.string, is_doubted=True)


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
        Upper and lower case are the same.
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
        self._rules = [tuple(key.casefold().split(".")) for key in keys]
        self._patterns = [_Pattern(regex, f"[redacted:{name}]") for name, regex in patterns]
        self._protected = protected
        self._steps: dict[tuple[_States, str | None], tuple[_States, bool]] = {}
        self._names: dict[_States, _Names] = {}
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
            places, end, is_whole = self._scan(text, 0, self._start, 0, _STRICT)
            if not is_whole or not _SPACE.fullmatch(text, end):
                raise _NotJson(end)
            found = self._replace(text, places, 0)
        except (_NotJson, UnicodeDecodeError, RecursionError):
            if is_withheld(line):
                return line, True
            return b"[redacted: %d bytes that are no JSON]" % len(line), True
        if found == text:
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
            names = ["*"]
            if key is not None:
                names += (key.casefold(), _plain_name(key).casefold())
            for rule, place in states:
                if place < len(self._rules[rule]):
                    segment = self._rules[rule][place]
                    if segment == "**":
                        after.append((rule, place))
                    elif segment in names:
                        after.append((rule, place + 1))
            below = self._closure(iter(after))
            known = below, any(place == len(self._rules[rule]) for rule, place in below)
            if len(self._steps) < 100_000 and len(key or "") <= _KEPT_KEY:
                self._steps[states, key] = known
        return known

    def _names_of(self, states: _States) -> _Names:
        """Give how the last keys of rules may stand in a text, and a pattern of keys in quotes."""
        known = self._names.get(states)
        if known is None:
            names = {self._rules[rule][-1] for rule, _ in states}
            if any(name == "*" or _ESCAPABLE.search(name) for name in names):
                plain, escaped = {""}, set()
            else:
                plain, escaped = names, {"\\u", "\\x"} if names else set()
                for name in names:
                    escaped |= {
                        "\\" + name[found.start() :] for found in _PUNCTUATION.finditer(name)
                    }
            # Outside of JSON the path is not known: a key on the way to a value counts, too.
            steps = {step for rule, place in states for step in self._rules[rule][place:]} - {"**"}
            if any(step == "*" or _ESCAPABLE.search(step.replace("/", "")) for step in steps):
                named = _ANY_NAMED
            else:
                firsts = "".join(
                    sorted({re.escape(first) for step in steps for first in _firsts(step)})
                )
                written = "|".join(_written(step) for step in sorted(steps))
                named = _NAMED % (firsts, written)
            pattern = re.compile(named, re.IGNORECASE) if steps else None
            known = tuple(plain), tuple(escaped), pattern
            if len(self._names) < 100_000:
                self._names[states] = known
        return known

    def _may_name(self, text: str, states: _States) -> bool:
        """Say whether rules may name a value in a text: their last key is in it, or is escaped."""
        plain, escaped, _ = self._names_of(states)
        text = text.casefold()
        return any(name in text for name in plain) or (
            "\\" in text and any(name in text for name in escaped)
        )

    def _find_named(self, text: str, states: _States, begin: int = 0) -> re.Match[str] | None:
        """Find a key of a rule in quotes of any kind that names what comes."""
        pattern = self._names_of(states)[2]
        return pattern.search(text, begin) if pattern else None

    def _find_named_behind(
        self, text: str, states: _States, begin: int, index: int
    ) -> re.Match[str] | None:
        """Find a name that reaches beyond an index, up to which JSON was read from another on.

        It may be the last string of that JSON, or begin at the quote that ends it.
        """
        last = text.rfind('"', begin, max(text.rfind('"', begin, index), begin))
        named = self._find_named(text, states, last if last >= 0 else max(index - 1, 0))
        if named and named.end() <= index:
            named = self._find_named(text, states, index - 1)
        return named

    def _hides(self, text: str, states: _States) -> bool:
        """Say whether rules may change what JSON in a text would be, if it could be read."""
        if self._may_name(text, states):
            return text != ""
        if not self._patterns:
            return False
        text = self._text(text)
        for _ in range(_MAX_INNER):
            plain = _without_escapes(text)
            if plain == text:
                return False
            if any(pattern.regex.search(plain) for pattern in self._patterns):
                return True
            text = plain
        return True  # escapes may be escaped as often as the text is long

    # --------------------------------------------------------------- documents

    def _scan(
        self, text: str, index: int, states: _States, inner: int, grammar: _Grammar
    ) -> tuple[list[_Place], int, bool]:
        """Find what rules may change in the JSON document that begins at an index.

        One pass over the tokens with a stack of its own, so that neither nesting nor a key that
        stands twice hides anything.

        Returns
        -------
        tuple
            The places in their order, where the document ends or breaks off, and whether it is
            whole. A value that goes and breaks off takes the rest of the text with it.
        """
        places: list[_Place] = []
        # Of each open container: its closing character and the states of its path.
        stack: list[tuple[str, _States]] = []
        here = states
        hidden_at: int | None = None  # the depth of a value that goes as a whole
        hidden_from = 0
        is_protected = False
        try:
            index = grammar.skip(text, index)
            while True:
                # A value begins.
                begin = index
                character = text[index : index + 1]
                has_member = False
                if character in ("{", "["):
                    stack.append(("}" if character == "{" else "]", here))
                    index = grammar.skip(text, index + 1)
                    has_member = text[index : index + 1] != stack[-1][0]
                    if not has_member:
                        index += 1
                        stack.pop()
                else:
                    token = grammar.string if character == '"' else _SCALAR
                    match = token.match(text, index)
                    if match is None:
                        raise _NotJson(index)
                    index = match.end()
                    if grammar.is_doubted and character == '"':
                        quoted = match.group()
                        # A value that ends in an escaped backslash ends at an escaped quote, if
                        # the text was escaped once more.
                        is_string = (
                            self._is_string(quoted, states | here, inner)
                            if hidden_at is None
                            else not quoted.endswith('\\"')
                        )
                        if not is_string:
                            raise _NotJson(begin)
                    if hidden_at is None and not is_protected:
                        if character == '"' and _CAN_HOLD.search(text, begin, index):
                            places.append((begin, index, here))
                        elif self._patterns:
                            places.append((begin, index, None))
                # A value has ended, and perhaps the containers that it was the last of.
                while not has_member:
                    if hidden_at == len(stack):
                        hidden_at = None
                        if text[hidden_from:index] != "null":
                            places.append((hidden_from, index, _GOES))
                    if not stack:
                        return places, index, True
                    index = grammar.skip(text, index)
                    following = text[index : index + 1]
                    if following == ",":
                        index = grammar.skip(text, index + 1)
                        has_member = True
                    elif following == stack[-1][0]:
                        index += 1
                        stack.pop()
                    else:
                        raise _NotJson(index)
                member = self._member(text, index, stack, inner, grammar)
                here, goes, index, is_protected, key = member
                if hidden_at is None:
                    if key is not None:
                        places.append(key)
                    if goes:
                        hidden_at, hidden_from = len(stack), index
        except _NotJson as error:
            if hidden_at is not None:
                places.append((hidden_from, len(text), _GOES))
                return places, len(text), False
            begin, end, last = places[-1] if places else (0, 0, None)
            if last is _GOES and not text[end : error.index].strip(", \t\n\r"):
                # As behind a quote that was not escaped: the rest of the value.
                return [*places[:-1], (begin, len(text), _GOES)], len(text), False
            return places, error.index, False

    def _member(
        self, text: str, index: int, stack: list[tuple[str, _States]], inner: int, grammar: _Grammar
    ) -> tuple[_States, bool, int, bool, _Place | None]:
        """Read up to the value of a member or element.

        Returns
        -------
        tuple
            The value's states, whether it goes, where it begins, whether it is protected, and the
            key's own place, if rules may change it.
        """
        closing, states = stack[-1]
        if closing == "]":
            below, goes = self._step(states, None)
            return below, goes, index, False, None
        match = grammar.string.match(text, index)
        if match is None:
            raise _NotJson(index)
        key = _unquote(match.group())
        can_hold = _CAN_HOLD.search(match.group()) is not None
        if (
            grammar.is_doubted
            and can_hold
            and (key[-1:] == "\\" or self._find_named(f'"{key}":', states | stack[0][1]))
        ):
            raise _NotJson(match.start())  # the name is escaped once more, or in another string
        is_root = len(stack) == 1 and inner == 0
        place: _Place | None = None
        if can_hold:  # as a form has a body that is JSON: what is in it stands where the key does
            place = (match.start(), match.end(), states)
        elif self._patterns and not is_root:
            place = (match.start(), match.end(), None)
        index = grammar.skip(text, match.end())
        if text[index : index + 1] != ":":
            raise _NotJson(match.start())  # the name is of what may follow
        index = grammar.skip(text, index + 1)
        if is_root and key in self._protected and text[index : index + 1] not in ("{", "["):
            return frozenset(), False, index, True, place
        below, goes = self._step(states, key)
        return below, goes, index, False, place

    def _replace(self, text: str, places: list[_Place], inner: int) -> str:
        """Replace what rules change at the places."""
        pieces: list[str] = []
        copied = 0
        for begin, end, states in places:
            if states is _GOES:
                token = _VALUE
            else:
                token = text[begin:end]
                value = _unquote(token) if token[0] == '"' else token
                changed = self._text(value) if states is None else self._inner(value, states, inner)
                if changed == value:
                    continue
                token = json.dumps(changed)
            pieces += (text[copied:begin], token)
            copied = end
        return "".join([*pieces, text[copied:]]) if pieces else text

    def _inner(self, text: str, states: _States, inner: int) -> str:
        """Redact a string's text, and the JSON that it is or holds."""
        # From patterns only an escape can hide something.
        can_hide = self._may_name(text, states) or (bool(self._patterns) and "\\" in text)
        if not can_hide and not self._patterns:
            return text
        begin = _blank_end(text, 0)
        is_like_json = text.startswith(_OPENING, begin)
        if inner == _MAX_INNER:
            if can_hide and (
                is_like_json or _OPENER.search(text) or self._find_named(text, states)
            ):
                return _WITHHELD
            return self._text(text)
        places: list[_Place] = []
        end = 0
        if is_like_json:
            places, end, is_whole = self._scan(text, begin, states, inner + 1, _LOOSE)
            if is_whole and _blank_end(text, end) == len(text):
                text = self._replace(text, places, inner + 1)
                can_hide = False
            else:
                places, end, is_whole = self._scan(text, begin, states, inner + 1, _DOUBTED)
                if not is_whole or text[begin] == '"':
                    # Strings in it are left to what follows: read twice at each level, they would
                    # be read 256 times at the eighth.
                    goes = [place for place in places if place[2] is _GOES]
                    text = self._replace(text, goes, inner)
                    places, begin, end = [], 0, 0
        if can_hide:
            places += self._pieces(text, begin, end, states, inner)
            text = self._replace(text, places, inner + 1)
        return self._text(text)

    def _pieces(
        self, text: str, begin: int, index: int, states: _States, inner: int
    ) -> list[_Place]:
        """Find what rules may change in the JSON that stands in a text from an index on.

        Up to there it was read, if at all, from where it began.

        Where some of it breaks off, and rules may name what comes, the rest of the text goes; and
        so it does behind the name of a value that is no key of JSON that is read. What stands in
        quotes within a line is taken for a string only if it is JSON again.
        """
        places: list[_Place] = []
        may_hide = True
        named = self._find_named_behind(text, states, begin, index)
        while True:
            if named and named.start() < index:
                named = self._find_named_behind(text, states, begin, index)
            match = _OPENER.search(text, index)
            begin = match.end() if match else len(text)
            if named and named.start() <= begin:
                return [*places, (named.end(), len(text), _GOES)]
            if match is None:
                return places
            if match["line"] is not None and text[begin] != '"':
                found, index, is_whole = self._scan(text, begin, states, inner + 1, _LINES)
                if is_whole and _LINE_END.match(text, index):
                    places += found
                    continue
            found, index, is_whole = self._scan(text, begin, states, inner + 1, _IN_LINES)
            if text[begin] == '"' and is_whole and match["line"] is None:
                quoted = text[begin:index]
                if not self._is_json(_unquote(quoted), states, inner + 1):
                    index = begin + 1
                    continue
            places += found
            if not is_whole and text[begin] == "[":
                # What follows may be its elements.
                for _ in range(text.count("[", begin, index)):
                    below, _ = self._step(states, None)
                    if below <= states:
                        break
                    states |= below
            if may_hide and not is_whole and _HAS_JSON.search(text, begin, index + 1):
                may_hide = self._hides(text[index:], states)
                if may_hide:
                    return [*places, (index, len(text), _GOES)]
            index = max(index, begin + 1)

    def _is_string(self, quoted: str, states: _States, inner: int) -> bool:
        """Say whether what stands in quotes names no value of rules, or only as JSON does."""
        if not _CAN_HOLD.search(quoted):
            return True
        text = _unquote(quoted)
        return not self._find_named(text, states) or self._is_json(text, states, inner + 1)

    def _is_json(self, text: str, states: _States, inner: int) -> bool:
        """Say whether all of a text is JSON, as are those strings in it that name values."""
        index = _blank_end(text, 0)
        while inner <= _MAX_INNER and text.startswith(_OPENING, index):
            _, index, is_whole = self._scan(text, index, states, inner, _DOUBTED)
            index = _blank_end(text, index)
            if not is_whole or index == len(text):
                return is_whole
        return False

    def _text(self, text: str) -> str:
        """Replace what patterns match in a text."""
        for pattern in self._patterns:
            text = pattern.regex.sub(pattern.mark, text)
        return text


def is_withheld(line: bytes) -> bool:
    """Say whether a line stands for one that is no JSON document, and is no JSON itself."""
    return _WITHHELD_LINE.fullmatch(line) is not None


@functools.cache
def _letters() -> dict[str, list[str]]:
    """Give the characters that a folded text may be written with, by that text."""
    letters: dict[str, list[str]] = {}
    for code in range(0x20000):  # no other planes have letters with case
        folded = chr(code).casefold()
        if folded != chr(code):
            letters.setdefault(folded, []).append(chr(code))
    return letters


def _firsts(step: str) -> list[str]:
    """Give the characters that a name may begin with, but for upper and lower case."""
    together = [letter for size in (2, 3) for letter in _letters().get(step[:size], [])]
    return [step[0], *together] if len(step) > 1 else [step[0]]


def _written(step: str) -> str:
    """Give a pattern of how a folded name may stand in a text: in any case, escaped or not."""
    pieces = []
    begin = 0
    while begin < len(step):
        end, index = begin + 1, begin
        while index < end < begin + _MOST_TOGETHER:
            heads = [step[index : index + size] for size in (2, 3)]
            end = max([end, *(index + len(head) for head in heads if head in _letters())])
            index += 1
        pieces.append(f"(?:{'|'.join(_ways(step[begin:end]))})")
        begin = end
    return "".join(pieces)


def _ways(text: str) -> list[str]:
    """Give patterns of the ways to write a folded text, one letter for several or not."""
    if not text:
        return [""]
    ways = []
    for size in (1, 2, 3):
        head = text[:size]
        letters = _letters().get(head, []) if len(head) == size else []
        if size == 1:
            letters = [head, *letters]
        if letters:
            pattern = _character(letters, is_folded=size == 1)
            ways += [pattern + rest for rest in _ways(text[size:])]
    return ways


def _character(letters: list[str], *, is_folded: bool) -> str:
    """Give a pattern of letters that are the same but for their case, escaped or not."""
    plain = re.escape(letters[0])
    if not is_folded:
        plain = f"[{''.join(map(re.escape, letters))}]"
    elif _PUNCTUATION.fullmatch(letters[0]):
        plain = rf"\\*+{plain}"
    escaped = set()
    for letter in letters:
        units = letter.encode("utf-16-be", "surrogatepass").hex()
        escaped.add(rf"\\++[ux]\{{?0*+{ord(letter):x}\}}?")
        if len(units) > 4:
            escaped.add(re.sub("....", r"\\\\++u\g<0>", units))
    return f"(?:{plain}|{'|'.join(sorted(escaped))})"


def _plain_name(key: str) -> str:
    """Undo what escapes a name besides JSON: Markdown, or another language."""
    if "\\" not in key:
        return key
    return _NAME_ESCAPE.sub(
        lambda found: found[4] or chr(int(found[1] or found[2] or found[3], 16)), key
    )


def _blank_end(text: str, index: int) -> int:
    found = _BLANK.match(text, index)
    return found.end() if found else index


def _unquote(quoted: str) -> str:
    if "\\" not in quoted:
        return quoted[1:-1]
    try:
        return str(json.loads(quoted, strict=False))
    except ValueError:  # an escape that JSON has not, in a text inside a string
        return _without_escapes(quoted[1:-1])


def _without_escapes(text: str) -> str:
    return _ESCAPES.sub(lambda run: str(json.loads(f'"{run.group()}"')), text)


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

    class Loader(yaml.SafeLoader):
        """Refuses a key that stands twice, of which YAML silently keeps the last."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys: list[Any] = []
            for key, _ in node.value:
                if key.value in keys:
                    raise UsageError(
                        f"TOKENLEDGER_REDACTION {path}: the key in line {key.start_mark.line + 1} "
                        "stands there twice; make it one."
                    )
                keys.append(key.value)
            return super().construct_mapping(node, deep)

    try:
        document = yaml.load(Path(path).read_text(), Loader)
    except OSError as error:
        raise UsageError(
            f"TOKENLEDGER_REDACTION {path} cannot be read: {error.strerror}."
        ) from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        # Not in its own words, which repeat the text: it may be any file.
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UsageError(f"TOKENLEDGER_REDACTION {path} is no YAML{place}.") from None
    if not isinstance(document, dict) or not document or document.keys() - {*_LISTS}:
        raise UsageError(
            f"TOKENLEDGER_REDACTION {path}: `keys` and `patterns` are what it may hold."
        )
    keys, entries = ([] if document.get(name) is None else document[name] for name in _LISTS)
    if not isinstance(keys, list) or not all(isinstance(key, str) and key for key in keys):
        raise UsageError(f"TOKENLEDGER_REDACTION {path}: `keys` is to be a list of paths.")
    for key in keys:
        if "" in key.split(".") or key.split(".")[-1] == "**":
            raise UsageError(
                f"TOKENLEDGER_REDACTION {path}: the path {key!r} ends in `**` or has an empty step."
            )
    if not isinstance(entries, list):
        raise UsageError(f"TOKENLEDGER_REDACTION {path}: `patterns` is to be a list.")
    patterns = [_read_pattern(path, entry) for entry in entries]
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
