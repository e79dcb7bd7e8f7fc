"""Framing: whether a line is a record, of which format, and where its request and response are.

Owns formats.yml and the text of a record's parts. Refuses to look into them: request and response
are copied byte for byte, and what they mean is decided in SQL.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from loader.errors import UsageError

__all__ = ["FORMATS_FILE", "NON_FINITE_NUMBER", "Buffer", "Format", "Framer", "Record", "Rejection"]

FORMATS_FILE = Path(__file__).with_name("formats.yml")
NON_FINITE_NUMBER = "non_finite_number"

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAX_CACHED_KEYS = 10_000
_MAX_CACHED_KEY_LENGTH = 64
# A string, or a number that Python's json writes and JSON does not have. A string without an end
# goes to the end of the line: looking for its end from each of its quotes would be quadratic.
_STRING_OR_NON_FINITE = re.compile(rb'"(?>[^"\\]+|\\.)*+"?|-?Infinity|NaN', re.DOTALL)

# Bytes, or a view of them: msgspec's Raw is one too.
Buffer = bytes | msgspec.Raw


@dataclass(frozen=True)
class Format:
    """One accepted record format, as formats.yml states it."""

    name: str
    match: dict[str, bytes]
    match_any: tuple[str, ...]
    id_key: str | None
    request_key: str
    response_key: str


@dataclass(frozen=True, slots=True)
class Record:
    """A line that is a record.

    Attributes
    ----------
    format : str
        The format's name.
    request, response : bytes-like
        The record's own text; empty when the key is absent.
    envelope : bytes
        The other keys as one JSON object, their values verbatim.
    repairs : tuple of str
        What had to be changed to accept the line.
    has_id : bool
        Whether the record names itself.
    """

    format: str
    request: Buffer
    response: Buffer
    envelope: bytes
    repairs: tuple[str, ...]
    has_id: bool


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a line is no record: a fixed word, and a sentence that quotes no payload."""

    reason: str
    detail: str


class Framer:
    """Frames lines by a list of formats.

    Parameters
    ----------
    formats : list of Format
        Tried in order.
    """

    def __init__(self, formats: list[Format]) -> None:
        self.formats = formats
        self._decode: Callable[[bytes], dict[str, msgspec.Raw]] = msgspec.json.Decoder(
            dict[str, msgspec.Raw]
        ).decode
        self._decode_any = msgspec.json.Decoder(msgspec.Raw).decode
        self._key_texts: dict[str, bytes] = {}

    @classmethod
    def from_file(cls, path: Path = FORMATS_FILE) -> Framer:
        """Read the formats from a YAML file.

        Raises
        ------
        UsageError
            If an entry is incomplete; the message names it.
        """
        import yaml

        try:
            document = yaml.safe_load(path.read_text())
            entries = document["formats"].items()
        except (OSError, yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"{path}: no list of formats can be read from it ({error}).") from None
        return cls([_format(path, name, entry) for name, entry in entries])

    def frame(self, line: bytes) -> Record | Rejection:
        """Split one line into its parts.

        Parameters
        ----------
        line : bytes
            A line without its newline; not blank.

        Returns
        -------
        Record or Rejection
            Never an exception, whatever the bytes are.
        """
        if not line.isascii():
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return Rejection(
                    "not_utf8", f"byte {error.start} of the line is not UTF-8 ({error.reason})"
                )
            line = line.removeprefix(_BYTE_ORDER_MARK)
        repairs: tuple[str, ...] = ()
        parts: dict[str, Any]
        try:
            parts = self._decode(line)
        except RecursionError:
            return _TOO_DEEP
        except msgspec.ValidationError:
            # Said of the first character: what comes behind it may be no JSON.
            try:
                self._decode_any(line)
            except RecursionError:
                return _TOO_DEEP
            except msgspec.DecodeError:
                split = _split_leniently(line)
                return split if isinstance(split, Rejection) else _NOT_AN_OBJECT
            return _NOT_AN_OBJECT
        except msgspec.DecodeError:
            split = _split_leniently(line)
            if isinstance(split, Rejection):
                return split
            parts, repairs = split
        else:
            if _has_key_twice(line, parts):
                return _DUPLICATE_KEY
        return self._arrange(parts, repairs)

    def _arrange(self, parts: dict[str, Any], repairs: tuple[str, ...]) -> Record | Rejection:
        for format_ in self.formats:
            if _matches(format_, parts):
                break
        else:
            return _UNKNOWN_FORMAT
        request = parts.pop(format_.request_key, b"")
        response = parts.pop(format_.response_key, b"")
        id_text = parts.get(format_.id_key) if format_.id_key is not None else None
        texts = self._key_texts
        members = []
        for key, value in parts.items():
            text = texts.get(key)
            members.append(text if text is not None else self._key_text(key))
            members.append(value)
        envelope = b"{%b}" % b"".join(members)[1:]
        if envelope.count(b"[") + envelope.count(b"{") > _MAX_ENVELOPE_DEPTH and _is_deep(envelope):
            return _TOO_DEEP
        has_id = id_text is not None and bytes(id_text) not in (b"null", b'""')
        return Record(format_.name, request, response, envelope, repairs, has_id)

    def _key_text(self, key: str) -> bytes:
        """Write a key as JSON, with the comma before and the colon after it."""
        try:
            text = b"," + json.dumps(key, ensure_ascii=False).encode() + b":"
        except UnicodeEncodeError:
            text = b"," + json.dumps(key).encode() + b":"
        if len(key) <= _MAX_CACHED_KEY_LENGTH and len(self._key_texts) < _MAX_CACHED_KEYS:
            self._key_texts[key] = text
        return text


_NOT_JSON = Rejection("not_json", "the line is no JSON document")
_NOT_AN_OBJECT = Rejection("not_an_object", "the line is JSON, but no object")
_TOO_DEEP = Rejection("too_deep", "the line nests deeper than can be read")
_DUPLICATE_KEY = Rejection(
    "duplicate_key", "a key stands twice in the object, and only one could be kept"
)
_UNKNOWN_FORMAT = Rejection(
    "unknown_format", "the object has the keys of no known format; see loader/formats.yml"
)


# The engine reads a thousand levels, and whose a trace is stands in its envelope.
_MAX_ENVELOPE_DEPTH = 900
_STRING = re.compile(rb'"(?>[^"\\]+|\\.)*+"')
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _is_deep(envelope: bytes) -> bool:
    steps = _STRING.sub(b"", envelope).translate(_STEPS, _NO_BRACKETS)
    depths = itertools.accumulate(memoryview(steps).cast("b"))
    return max(depths, default=0) > _MAX_ENVELOPE_DEPTH


def _matches(format_: Format, parts: dict[str, Any]) -> bool:
    for key, value in format_.match.items():
        found = parts.get(key)
        if found is None or bytes(found) != value:
            return False
    if format_.match_any:
        return any(key in parts for key in format_.match_any)
    return True


# The shortest member there is: `"":1,`.
_MEMBER_BYTES = 5
_MEMBER_HEAD = re.compile(rb'\s*[{,]\s*"(?>[^"\\]+|\\.)*+"\s*:\s*')


def _has_key_twice(line: bytes, parts: dict[str, Any]) -> bool:
    """Say whether an object has more members than were read of it: of a key the last one stays."""
    shortest = sum(map(len, parts)) + sum(map(len, parts.values())) + 4 * len(parts) + 1
    if not parts or len(line) < shortest + _MEMBER_BYTES:
        return False
    end = 0
    for value in parts.values():
        head = _MEMBER_HEAD.match(line, end)
        if head is None or not line.startswith(bytes(value), head.end()):
            return True
        end = head.end() + len(value)
    return line[end:].strip() != b"}"


def _split_leniently(
    line: bytes,
) -> tuple[dict[str, bytes], tuple[str, ...]] | Rejection:
    """Split what Python's json reads and JSON proper does not have.

    That is NaN and Infinity, which become null, and lone surrogates as escapes, which stay.
    """
    repairs: tuple[str, ...] = ()
    if b"NaN" in line or b"Infinity" in line:
        repaired = _STRING_OR_NON_FINITE.sub(_null_for_number, line)
        if repaired != line:
            line, repairs = repaired, (NON_FINITE_NUMBER,)
    text = line.decode()
    try:
        parts = _split_object(text)
    except RecursionError:
        return _TOO_DEEP
    except (ValueError, StopIteration, IndexError):
        return _NOT_JSON
    return parts if isinstance(parts, Rejection) else (parts, repairs)


def _null_for_number(match: re.Match[bytes]) -> bytes:
    found = match.group()
    return found if found.startswith(b'"') else b"null"


def _no_constant(name: str) -> None:
    raise ValueError(name)


# Only where a value ends is asked of this decoder, so it may make nothing of a number.
_DECODER = json.JSONDecoder(
    parse_int=lambda text: None, parse_float=lambda text: None, parse_constant=_no_constant
)
_SPACE = re.compile(r"[ \t\n\r]*")


def _split_object(text: str) -> dict[str, bytes] | Rejection:
    def skip(index: int) -> int:
        found = _SPACE.match(text, index)
        return found.end() if found else index

    start = skip(0)
    value, end = _DECODER.raw_decode(text, start)
    if skip(end) != len(text):
        return _NOT_JSON
    if not isinstance(value, dict):
        return _NOT_AN_OBJECT
    del value
    parts: dict[str, bytes] = {}
    index = skip(start + 1)
    while text[index] != "}":
        key, index = _DECODER.raw_decode(text, index)
        if key in parts:
            return _DUPLICATE_KEY
        begin = skip(skip(index) + 1)
        _, index = _DECODER.raw_decode(text, begin)
        parts[key] = text[begin:index].encode()
        index = skip(index)
        if text[index] == ",":
            index = skip(index + 1)
    return parts


def _format(path: Path, name: str, entry: Any) -> Format:
    if not isinstance(entry, dict) or not {"request", "response"} <= entry.keys():
        raise UsageError(f"{path}: the format {name} must name its request and response keys.")
    unknown = entry.keys() - {"match", "match_any", "id", "request", "response"}
    if unknown or not ("match" in entry or "match_any" in entry):
        raise UsageError(
            f"{path}: the format {name} needs match or match_any"
            + (f", and has the unknown key {sorted(unknown)[0]!r}." if unknown else ".")
        )
    match = {key: json.dumps(value).encode() for key, value in (entry.get("match") or {}).items()}
    return Format(
        name=name,
        match=match,
        match_any=tuple(entry.get("match_any") or ()),
        id_key=entry.get("id"),
        request_key=entry["request"],
        response_key=entry["response"],
    )
