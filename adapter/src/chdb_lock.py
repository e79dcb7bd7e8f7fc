"""The lock of a chDB folder: who holds it, and waiting for it with a limit.

A chDB engine holds `flock` on `<path>/status` while it is open, and the kernel frees it when the
process ends, however it ends. That lock alone lets two engines in: an engine that closes frees it
first and removes the file after, which may by then be the file that another process has locked, and
a third one makes a new file and locks that. So this module has a lock of its own, on
`<path>/chdb.lock`, a file that is never removed, from before the engine opens until after it has
closed. It also says when the disk is too full to write there. It depends on the standard library
alone, and refuses to import dbt or chDB or to break a lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

__all__ = [
    "Holder",
    "StoreFullError",
    "StoreLockedError",
    "StorePathError",
    "find_holder",
    "open_store",
    "release_store",
    "require_space",
]

Opened = TypeVar("Opened")

_POLL_SECONDS = 0.1
_OPENING_TRIES = 3
_COMMAND_CHARACTERS = 200
_COMMAND_WORDS = 4
_SPARE_BYTES = 16 * 1024 * 1024
_LOCK_FILE = "chdb.lock"

# One thread of a process opens at a time: the others then find the engine already theirs.
_opening = threading.Lock()
# The descriptors that hold this process's own locks, by folder.
_held: dict[str, int] = {}


class StorePathError(Exception):
    """The folder cannot be a store, or this process has another store open."""


class StoreLockedError(Exception):
    """Another process kept the store open for longer than the limit.

    Attributes
    ----------
    holder : Holder
        The process that had it at the last look.
    """

    def __init__(self, path: str, holder: Holder, waited: float) -> None:
        self.path = path
        self.holder = holder
        super().__init__(
            f"the chDB store {path} is held by {holder}; gave up after {waited:g} s. "
            "One process at a time can open it: wait for that one, stop it, or raise the limit."
        )


class StoreFullError(Exception):
    """The disk under a store has too little room for a statement that writes."""

    def __init__(self, path: str, free: int) -> None:
        self.path = path
        super().__init__(
            f"the disk under the chDB store {path} has {free / 2**20:.1f} MiB of space left, and "
            "the engine would lose the definition of a table that it writes on a full disk. "
            f"Nothing was done: make room ({_SPARE_BYTES // 2**20} MiB at least) and run it again."
        )


@dataclass(frozen=True)
class Holder:
    """A process that holds a store: its id (None if it cannot be seen) and what program it is.

    That is how its command line begins, without options: they may name whose traces are erased.
    """

    pid: int | None
    command: str

    def __str__(self) -> str:
        if self.pid is None:
            return "a process that cannot be seen from here (another user or container)"
        return f"process {self.pid} ({self.command or 'command unknown'})"


def require_space(path: str | os.PathLike[str]) -> None:
    """Refuse to go on where a statement that writes could meet a full disk.

    On a full disk the engine (seen on chDB 4.4, ClickHouse 26.9) says that a `create` or an `alter`
    worked, and leaves an empty file for the definition of the table. The store cannot be opened
    any more then. So who writes asks first.

    Parameters
    ----------
    path : path-like
        The store's folder; it need not exist.

    Raises
    ------
    StoreFullError
        If less than 16 MiB are left to this user.
    """
    place = Path(path).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < _SPARE_BYTES:
        raise StoreFullError(os.fspath(path), free)


def find_holder(path: str | os.PathLike[str]) -> Holder | None:
    """Return the process that has the store open, or None if it is free.

    Parameters
    ----------
    path : path-like
        The store's folder; it need not exist.

    Returns
    -------
    Holder or None
        This very process too, when its own engine is open.
    """
    folder = Path(path)
    return _test(folder / _LOCK_FILE) or _test(folder / "status")


def open_store(
    path: str | os.PathLike[str],
    opener: Callable[[], Opened],
    timeout: float = 60.0,
    on_wait: Callable[[Holder], None] | None = None,
) -> Opened:
    """Make the store's folder if absent, wait until it is free, and open it.

    Parameters
    ----------
    path : path-like
        The store's folder, made with mode 0700 when absent. A group may write to one that is
        there, everybody may not; what is written there, and whatever this process makes from now
        on, is not for everybody to read.
    opener : callable
        Opens the engine on that folder and returns whatever the caller needs.
    timeout : float
        Seconds to wait for another process; 0 tries once.
    on_wait : callable, optional
        Called once, with the holder, when waiting begins.

    Returns
    -------
    object
        What `opener` returned. Who closes it calls `release_store` after that.

    Raises
    ------
    StoreLockedError
        If another process still holds the store at the limit.
    StorePathError
        If the folder cannot be made or is open for everybody to write, its lock is a symbolic
        link, or this process has a store at another path open.
    """
    folder = os.path.realpath(path)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise StorePathError(
            f"cannot make the chDB store {folder}: {error.strerror}. Choose a folder you can write."
        ) from error
    if os.stat(folder).st_mode & stat.S_IWOTH:
        raise StorePathError(
            f"everybody may write to the chDB store {folder}, and the engine would read what they "
            f"put there: chmod o-w {folder}, or choose a folder inside it."
        )
    started = time.monotonic()
    told = False
    failures = 0
    with _opening:
        # The engine makes files that everybody may read, whenever it likes.
        os.umask(os.umask(0o077) | 0o007)
        while True:
            holder = _take(folder)
            if holder is None:
                try:
                    return opener()
                except BaseException as error:
                    _release(folder)
                    if "already initialized with path" in str(error):
                        raise StorePathError(
                            f"cannot open the chDB store {folder}: this process has another store "
                            "open. Close that one first, or use a process of its own."
                        ) from error
                    if "EmbeddedServer" not in str(error):
                        raise
                    # A program that does not go through this module may have opened it, or tested
                    # its lock, since the look.
                    holder = _look(folder, "status")
                    failures += holder is None
                    if failures == _OPENING_TRIES or (holder and holder.pid == os.getpid()):
                        raise StorePathError(
                            f"the engine cannot open the chDB store {folder}, though no process "
                            "holds it: its files are damaged, not writable, or of a newer version. "
                            "The engine's own words are above; restore the folder from a backup."
                        ) from error
            if holder is not None:
                left = timeout - (time.monotonic() - started)
                if left <= 0:
                    raise StoreLockedError(folder, holder, timeout)
                if not told and on_wait is not None:
                    on_wait(holder)
                    told = True
            time.sleep(_POLL_SECONDS)


def release_store(path: str | os.PathLike[str]) -> None:
    """Let other processes in, if this one has closed its last client of the store.

    Parameters
    ----------
    path : path-like
        The store's folder, as given to `open_store`. While another client of this process is open
        on it, and where nothing was opened, nothing happens.
    """
    with _opening:
        _release(os.path.realpath(path))


def _take(folder: str) -> Holder | None:
    """Take the store's lock for this process; give who has it, if that is another."""
    if folder in _held:
        return None
    try:
        descriptor = os.open(
            os.path.join(folder, _LOCK_FILE),
            os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o600,
        )
    except OSError as error:
        raise _unreadable(folder, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A program that does not go through this module has the engine's own lock alone.
        holder = _look(folder, "status")
        if holder is None or holder.pid == os.getpid():
            _held[folder] = descriptor
            return None
        return holder
    except BlockingIOError:
        return _identify(os.fstat(descriptor))
    finally:
        if folder not in _held:
            os.close(descriptor)


def _release(folder: str) -> None:
    """Free this process's lock, unless its engine is open."""
    if folder in _held:
        holder = _look(folder, "status")
        if holder is None or holder.pid not in (os.getpid(), None):
            os.close(_held.pop(folder))


def _look(folder: str, name: str) -> Holder | None:
    """Test a lock; a file that cannot be read is the caller's error, not a crash."""
    try:
        return _test(Path(folder) / name)
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: str, error: OSError) -> StorePathError:
    if error.errno == errno.ELOOP:
        return StorePathError(
            f"{error.filename} of the chDB store is a symbolic link, which is not followed: "
            "remove it, and find out who made it."
        )
    return StorePathError(
        f"cannot open {error.filename or folder} of the chDB store: {error.strerror}. "
        "Run as the user who owns the folder."
    )


def _test(path: Path) -> Holder | None:
    """Return the process that has a lock on a file, or None if it is free or there is no file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        # A shared lock, held for no longer than this test: two that test do not meet.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _identify(os.fstat(descriptor))
    else:
        return None
    finally:
        os.close(descriptor)


def _identify(status: os.stat_result) -> Holder:
    """Name the process that holds the lock on a file: by the kernel's table, else by its files."""
    pid = _pid_from_locks(status)
    if pid is None or not os.path.exists(f"/proc/{pid}"):
        pid = _pid_from_descriptors(status)
    if pid is None:
        return Holder(None, "")
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        raw = b""
    return Holder(pid, _program(raw.decode(errors="replace").split("\0"))[:_COMMAND_CHARACTERS])


def _program(arguments: Sequence[str]) -> str:
    """Say `python -m loader drain` or `python dbt run-operation erase` of a whole command line."""
    said: list[str] = []
    for argument in arguments[:_COMMAND_WORDS]:
        if argument.startswith("-") and argument != "-m":
            break
        said.append(argument)
    return " ".join(said).strip()


def _pid_from_locks(status: os.stat_result) -> int | None:
    """Look the file up in /proc/locks: `n: FLOCK ADVISORY WRITE pid major:minor:inode 0 EOF`."""
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        table = Path("/proc/locks").read_text()
    except OSError:
        return None
    for line in table.splitlines():
        fields = line.split()
        if fields[1:2] == ["FLOCK"] and fields[3:4] == ["WRITE"] and fields[5:6] == [device]:
            return int(fields[4]) if int(fields[4]) > 0 else None
    return None


def _pid_from_descriptors(status: os.stat_result) -> int | None:
    """Find a process that has the file open, where /proc/locks does not say (containers, btrfs)."""
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return None
    # This process has it open once more, for the test itself.
    if _descriptors(os.getpid(), status) > 1:
        return os.getpid()
    return next((pid for pid in pids if pid != os.getpid() and _descriptors(pid, status)), None)


def _descriptors(pid: int, status: os.stat_result) -> int:
    """Count a process's descriptors of one file; 0 when they cannot be seen."""
    count = 0
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found = os.stat(f"/proc/{pid}/fd/{name}")
                count += (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino)
    except OSError:
        return 0
    return count
