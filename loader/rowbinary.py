"""ClickHouse's RowBinary, as far as the raw tables need it: strings, whole numbers, times.

Owns bytes only. RowBinary carries text as length and bytes, so nothing is escaped and nothing can
change on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

__all__ = [
    "encode_milliseconds",
    "encode_string",
    "encode_strings",
    "encode_uint32",
    "encode_uint64",
    "varint",
]

_SMALL = [bytes((value,)) for value in range(128)]


def varint(value: int) -> bytes:
    """Encode a length: 7 bits a byte, lowest first."""
    if value < 128:
        return _SMALL[value]
    encoded = bytearray()
    while value >= 128:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode_string(value: bytes) -> bytes:
    """Encode a String."""
    return varint(len(value)) + value


def encode_strings(values: Sequence[str]) -> bytes:
    """Encode an Array(String)."""
    return varint(len(values)) + b"".join(encode_string(value.encode()) for value in values)


def encode_uint32(value: int) -> bytes:
    """Encode a UInt32."""
    return value.to_bytes(4, "little")


def encode_uint64(value: int) -> bytes:
    """Encode a UInt64."""
    return value.to_bytes(8, "little")


def encode_milliseconds(moment: datetime) -> bytes:
    """Encode a DateTime64(3, 'UTC') from an aware time."""
    seconds = moment.astimezone(UTC)
    return int(seconds.timestamp() * 1000).to_bytes(8, "little", signed=True)
