"""The store: one client of the embedded engine or of a ClickHouse server.

Owns opening (waiting for the embedded engine's lock), settings of the session, the two ways to
insert, and turning what a client raises into `StoreError`. Refuses to know what a batch is, and to
format a value into SQL: values are bound, names are checked identifiers.
"""

from __future__ import annotations

import base64
import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from html.entities import codepoint2name
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import clickhouse_connect
from chdb_lock import StoreFullError, StorePathError, release_store, require_space
from chdb_lock import StoreLockedError as ChdbLockedError
from chdb_lock import open_store as open_chdb
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import Error as ClientError
from clickhouse_connect.driver.exceptions import StreamFailureError
from clickhouse_connect.driver.transform import NativeTransform

from loader.errors import StoreError, StoreLockedError, UsageError
from loader.formats import Buffer
from loader.settings import Settings

__all__ = [
    "ACCESS_DENIED",
    "RAW_TABLES",
    "Store",
    "open_existing_store",
    "open_store",
    "render_statements",
]

RAW_TABLES = ("raw_traces", "raw_rejects", "raw_batches")

# The most that one writev takes.
_BUFFERS_A_WRITE = 1024

_STILL_RUNNING_SECONDS = 60.0
_LONGEST_WAIT_SECONDS = 10.0

ACCESS_DENIED = 497

# What pages and programs write for some characters, besides numbers.
_ENTITIES = codepoint2name | {ord("'"): "apos"}
_SHORT = {" ": "[ +]", "\n": "[\nn]", "\r": "[\rr]", "\t": "[\tt]", "\b": "[\bb]", "\f": "[\ff]"}

_MACROS = Path(__file__).resolve().parent.parent / "macros"

# What exactly-once rests on. An insert answers when its data is there; one insert is one block,
# so one part, which is there as a whole or not at all.
_SESSION_SETTINGS: dict[str, Any] = {
    "async_insert": 0,
    "max_insert_threads": 1,
    "max_insert_block_size": 16_777_216,
    "min_insert_block_size_rows": 16_777_216,
    "min_insert_block_size_bytes": 8_589_934_592,
    # It loses rows: see DECISIONS.md.
    "use_query_condition_cache": 0,
    "join_use_nulls": 0,
    # As in profiles.example.yml: for reading traces that no dbt run has transformed yet.
    "query_plan_merge_expressions": 0,
    "optimize_and_compare_chain": 0,
}


# And on replicated tables: an insert answers when most replicas have it, a count waits for all
# that was answered, and so what was looked for is what there is, whichever replica is asked.
_CLUSTER_SETTINGS: dict[str, Any] = {
    "insert_quorum": "auto",
    "insert_quorum_parallel": 0,
    "select_sequential_consistency": 1,
    # Where llm_traces is sharded: what it is compared with is on one shard.
    "distributed_product_mode": "global",
    "prefer_global_in_and_join": 1,
}


class Store:
    """A connection to the store, for one thread at a time.

    Parameters
    ----------
    client : clickhouse_connect.driver.client.Client
        An open client; the store closes it.
    settings : Settings
        Where it leads, for names and messages.
    """

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self.settings = settings
        self.database = settings.database
        self.is_embedded = settings.endpoint is None
        # As it was opened: a relative path leads elsewhere once the process has changed directory.
        self._path = os.path.realpath(settings.chdb_path)
        self._file: BinaryIO | None = None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def table(self, name: str) -> str:
        """Give a table's name with its database, quoted."""
        return f"`{self.database}`.`{name}`"

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Run a select and return its rows.

        Parameters
        ----------
        sql : str
            Values stand in it as `{name:Type}`.
        parameters : mapping, optional
            The values, by name.

        Raises
        ------
        UsageError
            If a value is no text that the store can hold.
        StoreError
            If the store cannot be reached or refuses.
        """
        bound = plain_values(parameters)
        for name, value in bound.items():
            if isinstance(value, str) and not _is_text(value):
                raise UsageError(f"{name} is {value!r}, which is no UTF-8 text: nothing has it.")
        return [
            tuple(row)
            for row in self._guarded(
                "a query", lambda: self._client.query(sql, parameters=bound)
            ).result_rows
        ]

    def now(self) -> datetime:
        """Give the store's time, UTC: the one clock that all who write to it have."""
        moment: datetime = self.query("select now64(6, 'UTC')")[0][0]
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

    def command(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        query_id: str | None = None,
    ) -> None:
        """Run a statement that has no rows to return; values are bound as in `query`.

        A server runs it under the `query_id`, if there is one; see `is_running`.
        """
        self._require_space()
        named = {"query_id": query_id} if query_id and not self.is_embedded else None
        self._guarded(
            "a statement",
            lambda: self._client.command(sql, parameters=plain_values(parameters), settings=named),
        )

    def insert_rows(
        self,
        table: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        query_id: str | None = None,
    ) -> None:
        """Insert a few Python rows as one part; a server is sent them once, as in `insert_binary`.

        A server runs it under the `query_id`, if there is one; see `is_running`.

        Raises
        ------
        StoreError
            If the insert failed, or its answer was lost: it may have taken effect.
        """
        self._require_space()

        def insert() -> None:
            context = self._client.create_insert_context(
                table, columns, database=self.database, data=rows
            )
            if self.is_embedded or context.empty:
                self._client.insert(context=context)
                return
            # The first block begins with the statement.
            blocks = b"".join(NativeTransform.build_insert(context))
            if context.insert_exception is not None:
                raise context.insert_exception
            named = {"query_id": query_id} if query_id else None
            self._client.raw_insert("", insert_block=io.BytesIO(blocks), settings=named)

        self._guarded(f"an insert into {table}", insert)

    def insert_binary(
        self,
        table: str,
        columns: Sequence[str],
        chunks: Sequence[Buffer],
        query_id: str | None = None,
        token: str | None = None,
    ) -> None:
        """Insert rows that are already encoded as RowBinary, as one part.

        Parameters
        ----------
        table : str
            Table name within the database.
        columns : sequence of str
            The columns that each row carries, in order.
        chunks : sequence of bytes-like
            The encoded rows; where one chunk ends is of no importance.
        query_id : str, optional
            A name under which a server runs it; see `is_running`.
        token : str, optional
            On a cluster: the replicas take rows under the same token once. None: they always do,
            as rows must that were there before and were removed.

        Raises
        ------
        StoreError
            If the insert failed, or its answer was lost: it may have taken effect.
        """
        if not self.is_embedded:
            settings: dict[str, Any] = {"query_id": query_id} if query_id else {}
            if self.settings.cluster and token:
                settings["insert_deduplication_token"] = token
            elif self.settings.cluster:
                settings["insert_deduplicate"] = 0
            self._guarded(
                f"an insert into {table}",
                lambda: self._client.raw_insert(
                    self.table(table),
                    column_names=list(columns),
                    # A file, not bytes: the client sends bytes a second time, unasked, when the
                    # connection closes before the answer, and the rows would land twice.
                    insert_block=io.BytesIO(b"".join(chunks)),
                    settings=settings,
                    fmt="RowBinary",
                ),
            )
            return
        self._require_space()
        names = ", ".join(f"`{name}`" for name in columns)

        def insert() -> None:
            self._client.command(
                f"insert into {self.table(table)} ({names}) "
                f"from infile '/dev/fd/{self._hand_over(chunks)}' format RowBinary"
            )

        self._guarded(f"an insert into {table}", insert)

    def _hand_over(self, chunks: Sequence[Buffer]) -> int:
        """Write chunks to the file from which the embedded engine reads; give its descriptor.

        The file has no name, so that a killed process leaves nothing behind, and it is used again
        for each insert: fresh pages would cost as much time as the copy.
        """
        if self._file is None:
            self._file = _nameless_file()
        descriptor = self._file.fileno()
        os.lseek(descriptor, 0, os.SEEK_SET)
        written = 0
        for index in range(0, len(chunks), _BUFFERS_A_WRITE):
            written += _write_all(descriptor, chunks[index : index + _BUFFERS_A_WRITE])
        os.ftruncate(descriptor, written)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor

    def is_running(self, name: str) -> bool:
        """Say whether a server still runs a statement of ours that has this in its query id.

        Raises
        ------
        StoreError
            If the server does not say: it may be running.
        """
        if self.is_embedded:
            return False
        try:
            return bool(
                self.query(
                    "select 1 from system.processes"
                    " where position(query_id, {name:String}) > 0 limit 1",
                    {"name": name},
                )
            )
        except StoreError as error:
            if error.code != ACCESS_DENIED:
                raise
            raise StoreError(
                f"the store {self.settings.store_name} does not let {self.settings.username} see "
                "whether an insert whose answer was lost still runs: grant select(query_id) on "
                "system.processes to it, or run the operation create_roles; then run it again.",
                error.code,
            ) from None

    def is_removing(self, table: str, text: str) -> bool:
        """Say whether a delete whose condition has a text goes on: it may take what is found."""
        try:
            found = self.query(
                "select 1 from system.mutations where database = {database:String}"
                " and table = {table:String} and not is_done"
                " and position(command, {text:String}) > 0",
                {"database": self.database, "table": table, "text": text},
            )
        except StoreError as error:
            if error.code != ACCESS_DENIED:
                raise
            return False  # who has no role of create_roles that may remove something
        return bool(found)

    def wait_for_inserts(
        self, name: str, what: str, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Wait until a server runs no insert under this name any more; of no name, not at all.

        Parameters
        ----------
        name : str
            As of `is_running`.
        what : str
            What is inserted, for the message.
        sleep : callable
            Waits, in seconds.

        Raises
        ------
        StoreError
            If the server does not say, or one runs for longer than a minute.
        """
        waited, pause = 0.0, 0.5
        while name and self.is_running(name):
            if waited >= _STILL_RUNNING_SECONDS:
                raise StoreError(
                    f"the store {self.settings.store_name} still runs a statement of {what}, whose "
                    "answer was lost, or of another run. Nothing is lost: run it again when that "
                    "has ended."
                )
            sleep(pause)
            waited += pause
            pause = min(pause * 2, _LONGEST_WAIT_SECONDS)

    def wait_where_seen(
        self, name: str, what: str, sleep: Callable[[float], None] = time.sleep
    ) -> StoreError | None:
        """Wait as `wait_for_inserts` does, for what killed runs left running under this name.

        It may add to what is there, or say that what is about to be removed is landed.

        Returns
        -------
        StoreError or None
            The error of a user who may not see what runs.
        """
        try:
            self.wait_for_inserts(name, what, sleep)
        except StoreError as error:
            if error.code != ACCESS_DENIED:
                raise
            return error
        return None

    def tables(self) -> set[str]:
        """Return the names of the database's tables and views; empty if there is no database."""
        return {
            row[0]
            for row in self.query(
                "select name from system.tables where database = {database:String}",
                {"database": self.database},
            )
        }

    def ensure_raw_tables(self) -> None:
        """Make the raw tables (and the database) where they, or what was added, are missing."""
        names = (*RAW_TABLES, "raw_batches.continues", "raw_lost_batches.continues")
        self.ensure_tables("landing/raw_tables.sql", "raw_tables_ddl", names)

    def ensure_tables(self, macro_file: str, macro: str, names: Sequence[str]) -> None:
        """Make tables and columns from a DDL macro, if one of them is missing.

        Parameters
        ----------
        macro_file : str
            Path under macros/.
        macro : str
            A macro of (database, cluster) that gives idempotent statements, separated by `;;`.
        names : sequence of str
            What it makes: tables, and what was added to them later as `table.column`.
        """
        there = self.query(
            "select distinct arrayJoin([table, concat(table, '.', name)]) as found"
            " from system.columns where database = {database:String}"
            " having found in {names:Array(String)}",
            {"database": self.database, "names": list(names)},
        )
        if set(names) <= {name for (name,) in there}:
            return
        for statement in render_statements(macro_file, macro, self.database, self.settings.cluster):
            self.command(statement)

    def open_another(self) -> Store:
        """Open a second store of the same kind at the same place, for another thread."""
        if self.is_embedded:
            client = self._guarded("opening it again", lambda: _open_chdb_client(self._path))
        else:
            client = _open_server(self.settings)
        return type(self)(client, self.settings)

    def close(self) -> None:
        """Close the client, and with it the embedded engine and its lock."""
        self._client.close()
        if self.is_embedded:
            release_store(self._path)
        if self._file is not None:
            self._file.close()

    def _require_space(self) -> None:
        """Refuse to write where the disk is full: the engine loses definitions of tables there."""
        if self.is_embedded:
            try:
                require_space(self._path)
            except StoreFullError as error:
                raise StoreError(str(error)) from None

    def _guarded(self, what: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except (ClientError, OSError) as error:
            raise _store_error(what, self.settings, error) from None


def open_store(settings: Settings, on_wait: Callable[[str], None] | None = None) -> Store:
    """Open the store that the settings name.

    Parameters
    ----------
    settings : Settings
        With an endpoint, a server; else the embedded engine, whose lock is waited for.
    on_wait : callable, optional
        Called once with a line of text when waiting for another process begins.

    Raises
    ------
    StoreLockedError
        If another process holds the embedded store for longer than the limit.
    StoreError
        If the store cannot be opened or reached.
    """
    if settings.endpoint is not None:
        return Store(_open_server(settings), settings)
    path = os.path.realpath(settings.chdb_path)

    def tell(holder: object) -> None:
        if on_wait is not None:
            on_wait(
                f"waiting up to {settings.lock_timeout:g} s for the store {path}, held by {holder}"
            )

    try:
        client = open_chdb(path, lambda: _open_chdb_client(path), settings.lock_timeout, tell)
        return Store(client, settings)
    except ChdbLockedError as error:
        limit = f"TOKENLEDGER_LOCK_TIMEOUT, now {settings.lock_timeout:g} s"
        raise StoreLockedError(f"{str(error).rstrip('.')} ({limit}).") from None
    except StorePathError as error:
        raise StoreError(str(error)) from None
    except ClientError as error:
        raise StoreError(
            f"cannot open the chDB store {path}: {_first_line(str(error))}. Is it a chDB folder "
            "that this user may write? Else restore it, or set CHDB_PATH to another."
        ) from None


def open_existing_store(settings: Settings) -> Store:
    """Open a store to read from; an embedded one is not made if it is missing.

    Raises
    ------
    UsageError
        If there is no embedded store yet.
    StoreError
        As `open_store`.
    """
    if settings.endpoint is None and not (settings.chdb_path / "metadata").is_dir():
        raise UsageError(
            f"there is no store at {settings.chdb_path} yet: land something first "
            "(python -m loader FILE), or set CHDB_PATH to where it is."
        )
    return open_store(settings, lambda text: print(text, file=sys.stderr))


def render_statements(
    macro_file: str, macro: str, database: str, cluster: str | None = None
) -> list[str]:
    """Render a DDL macro of macros/ without dbt, and split it into statements."""
    try:
        import jinja2

        source = (_MACROS / macro_file).read_text()
    except (ImportError, FileNotFoundError):
        raise UsageError(
            f"the tables of macros/{macro_file} are missing in the database {database}, and only "
            "a checkout of the project can make them: run `python -m loader init` there first."
        ) from None
    template = jinja2.Environment(autoescape=False).from_string(source)
    text = str(getattr(template.module, macro)(database, cluster))
    return [part.strip() for part in text.split(";;") if part.strip()]


def _open_chdb_client(path: str) -> Client:
    return clickhouse_connect.get_client(
        interface="chdb", path=path, query_limit=0, settings=_SESSION_SETTINGS
    )


def _open_server(settings: Settings) -> Client:
    assert settings.endpoint is not None
    parts = urlsplit(settings.endpoint)
    secure = parts.scheme == "https"
    try:
        return clickhouse_connect.get_client(
            host=parts.hostname,
            port=parts.port or (8443 if secure else 8123),
            secure=secure,
            username=settings.username,
            password=settings.password,
            ca_cert=settings.ca_cert,
            client_cert=settings.client_cert,
            client_cert_key=settings.client_key,
            verify=True,
            query_limit=0,
            # One run, one thread, statements by turns: a session would only forbid a second.
            autogenerate_session_id=False,
            settings=_SESSION_SETTINGS | (_CLUSTER_SETTINGS if settings.cluster else {}),
        )
    except (ClientError, OSError) as error:
        raise _store_error("connecting", settings, error) from None


def _store_error(what: str, settings: Settings, error: Exception) -> StoreError:
    code = getattr(error, "code", None)
    text = str(error)
    if settings.endpoint and isinstance(error, StreamFailureError):
        # The client takes the last bytes of an answer for what the server says: they are rows.
        code, text = None, "the answer broke off"
    # Hidden before the text is cut: half a password is one too.
    text = _first_line(_without_password(text, settings))
    advice = (
        "Check CLICKHOUSE_ENDPOINT, the user and its rights; then run it again"
        if settings.endpoint
        else "Run it again"
    )
    return StoreError(
        f"the store {settings.store_name} failed at {what}: {text}. {advice}: "
        "what is landed stays, and nothing is landed twice.",
        code if isinstance(code, int) else None,
    )


def _without_password(text: str, settings: Settings) -> str:
    """Hide what a server or proxy repeats of what it was sent, in whatever way it writes it."""
    password = settings.password
    if not password:
        return text
    login = base64.b64encode(f"{settings.username}:{password}".encode()).decode().rstrip("=")
    # From the first of some backslashes on: from each, many would take quadratic time.
    written = (
        rf"(?<!\\)(?:{_as_written(login)}(?:{_character('=')}){{0,2}}|{_as_written(password)})"
    )
    return re.sub(written, "***", text)


def _as_written(text: str) -> str:
    """Make a pattern of a text in whatever way each of its characters is written.

    Backslashes before a character are taken with it, however often it was escaped; so those that
    are the text's own are taken as a run.
    """
    pattern = ""
    for part in re.findall(r"\\+|[^\\]", text):
        way = _character(part[0])
        if part[0] == "\\":
            way = rf"(?:{way}){{{len(part)}}}|\\++"
        elif not part.isascii():  # its bytes, taken for characters
            way = "".join(map(_character, part.encode().decode("latin-1"))) + "|" + way
        pattern += f"(?:{way})"
    return pattern


def _character(character: str) -> str:
    """Make a pattern of a character as it is, and as URLs, JSON, Python and web pages write it."""
    code = ord(character)
    units = re.findall("....", character.encode("utf-16-be").hex())
    ways = [
        f"(?:&|u0026)(?:#0*+{code}|#x0*+{code:x}|{_ENTITIES.get(code, '#')});",
        *(r"\\*+".join(f"u{unit}" for unit in units), f"u{code:08x}", f"x{code:02x}"),
        "".join(f"%{byte:02x}" for byte in character.encode()),
    ]
    # The longer first, or "25" of "%25" would stay.
    return rf"\\*+(?:(?i:{'|'.join(ways)})|{_SHORT.get(character, re.escape(character))})"


def _first_line(text: str) -> str:
    """Keep an engine's message to what says the cause: it may go on with rows that it read."""
    line = next((line for line in text.splitlines() if line.strip()), "no message")
    row = r"\s*(?::\s*While executing|\(at row|Row \d+:|\.? Column values:|Stack trace:)"
    line = re.split(row, line)[0]
    return line.strip().rstrip(".")[:300]


def plain_value(value: Any) -> Any:
    """Turn a caller's own kind of text or number (a StrEnum) into the text or number that it is.

    Others do not know its class, and what it says of itself may be something else.
    """
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int.__int__(value)
    return value


def plain_values(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Copy parameters, each as :func:`plain_value` gives it."""
    return {name: plain_value(value) for name, value in (parameters or {}).items()}


def _is_text(value: str) -> bool:
    """Say whether a value has no lone surrogate, as bytes of a command line become one."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _nameless_file() -> BinaryIO:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("tokenledger-batch", os.MFD_CLOEXEC), "w+b")
    return tempfile.TemporaryFile()


def _write_all(descriptor: int, buffers: Sequence[Buffer]) -> int:
    """Write all of the buffers; one call writes at most 2 GiB, and less on a full disk."""
    total = sum(len(buffer) for buffer in buffers)
    written = os.writev(descriptor, buffers)
    if written < total:
        rest = memoryview(b"".join(buffers))[written:]
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    return total
