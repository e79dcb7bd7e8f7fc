"""The errors that a user can meet, each with its exit code.

Owns the tree; refuses to print. Each message is one line: what, where, what to do::

    LoaderError
    ├── UsageError          2   an argument or a setting cannot be
    ├── SourceError         2   a file or stream cannot be read (further)
    │   └── BrokenError         it is read, and ends where it should not
    │       └── DamagedError        what its bytes were is not known
    │           └── ExpansionError      as it expands too far to be read to its check
    └── StoreError          3   the store is unreachable, refuses, or lost an answer
        ├── StoreLockedError    another process holds the embedded store
        └── SourceTakenError    another process holds the file, or landed it meanwhile

Exit code 1 is no error: all was landed, and some records are among the rejects.
"""

from __future__ import annotations

__all__ = [
    "BrokenError",
    "DamagedError",
    "ExpansionError",
    "LoaderError",
    "SourceError",
    "SourceTakenError",
    "StoreError",
    "StoreLockedError",
    "UsageError",
]


class LoaderError(Exception):
    """Base of every error whose message is meant for the user."""

    exit_code = 2


class UsageError(LoaderError):
    """An argument or a setting that cannot be."""


class SourceError(LoaderError):
    """A file or stream that is missing, unreadable, broken or beyond a limit."""


class BrokenError(SourceError):
    """A file or stream ends early, is damaged, or expands too far: what came before stands.

    Of one that could not be opened or read, another `SourceError`, nothing is known.
    """


class DamagedError(BrokenError):
    """A compressed file or stream is not what it was, or may not be.

    Attributes
    ----------
    intact_until : int
        Decompressed bytes of the members before the damaged one, which has no check but at its end.
    """

    def __init__(self, message: str, intact_until: int) -> None:
        super().__init__(message)
        self.intact_until = intact_until


class ExpansionError(DamagedError):
    """A compressed file or stream takes more room than it may, and was not read to its check."""


class StoreError(LoaderError):
    """The store is unreachable, refused a statement, or its answer was lost.

    Attributes
    ----------
    code : int or None
        ClickHouse's error number, where the store gave one.
    """

    exit_code = 3

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class StoreLockedError(StoreError):
    """Another process holds the embedded store for longer than the limit."""


class SourceTakenError(StoreError):
    """Another process holds a file for longer than the limit, or has landed it meanwhile."""
