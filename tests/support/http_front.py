"""A loopback HTTP server that speaks ClickHouse's HTTP interface over chDB.

It owns two things: the server process (``python -m tests.support.http_front --path DIR``) and
:class:`Front`, the handle by which a test starts, kills, restarts and breaks that process. Behind
the interface is a real engine, so stock clickhouse-connect and dbt-clickhouse run against it.

It refuses to listen anywhere but on 127.0.0.1, and never pretends: what the engine in the process
cannot do (users, row policies, ``system.query_log``) fails with the engine's own error, and what
the front leaves out (external data, ``compress=1``) fails with NOT_IMPLEMENTED (48).

With ``--cluster NAME`` it is a cluster of one: the engine knows NAME as one shard of one replica,
which is itself. It has no Keeper, so ``on cluster NAME`` is read and left out,
``ReplicatedMergeTree`` is ``MergeTree``, and one replica has its quorum and is in step
(``system sync replica``); another cluster's name is refused.

Known differences to a server: results are sent when they are complete, ``client_protocol_version``
is ignored (as on any server that does not know it), ``queryID()`` is the engine's own
(``system.processes`` and ``kill query`` do go by the client's), ``currentUser()`` is always
``default``, and what follows the semicolon of an ``insert … values`` is passed over where a server
raises an error.
"""

from __future__ import annotations

import argparse
import base64
import email
import email.message
import gzip
import hmac
import io
import json
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import parse_qsl, urlsplit

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parents[2]

# Query parameters that steer the HTTP interface itself; every other one is a setting.
INTERFACE_PARAMETERS = frozenset(
    [
        *("query", "database", "default_format", "user", "password", "session_id"),
        *("session_timeout", "session_check", "close_session", "query_id", "quota_key"),
        *("stacktrace", "role", "buffer_size", "wait_end_of_query", "compress", "decompress"),
        "client_protocol_version",
    ]
)

# As ClickHouse maps them (src/Server/HTTP/exceptionCodeToHTTPStatus.cpp); all others are 500.
STATUS_BY_CODE = {
    code: status
    for status, codes in {
        400: (
            *(6, 8, 15, 25, 26, 27, 36, 37, 38, 41, 44, 53, 62, 72, 117, 123, 167, 168, 223),
            *(321, 376, 427, 441, 675, 676),
        ),
        401: (194,),
        403: (192, 193, 497, 512, 516),
        404: (46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 152, 336, 511),
        408: (159,),
        413: (229,),
        501: (48,),
        503: (76, 209, 439),
    }.items()
    for code in codes
}

RETURNS_ROWS = frozenset(
    ("select", "with", "show", "describe", "desc", "exists", "explain", "check")
)
READING = RETURNS_ROWS | {"use", "set"}
TOKEN = re.compile(
    rb"/\*.*?\*/|--[^\n]*|'(?:[^'\\]|\\.)*'|`(?:[^`\\]|\\.)*`|\"(?:[^\"\\]|\\.)*\"|\w+|[^\s\w]",
    re.DOTALL,
)
DATA_FORMAT = re.compile(rb"\s+(\w+)[ \t\f]*\r?\n?")
TRAILING_FORMAT = re.compile(rb"\bformat\s+(\w+)\s*;?\s*$", re.IGNORECASE)
# The engine names its queries itself; the client's name travels with the query as its comment.
QUERY_ID = b"if(Settings['log_comment'] = '', query_id, Settings['log_comment'])"
PROCESSES = re.compile(rb"\b(from|join)\s+system\.processes\b", re.IGNORECASE)
NAMED_PROCESSES = b"\\1 (select * replace (" + QUERY_ID + b" as query_id) from system.processes)"
INPUT_FUNCTION = re.compile(rb"\binput\s*\(", re.IGNORECASE)
SYNCING = re.compile(rb"\s+sync\s+replica\b", re.IGNORECASE)
DEFINING = frozenset(
    ("create", "alter", "drop", "rename", "exchange", "truncate", "optimize", "attach", "detach")
)
CLUSTER_OF_ONE = """<clickhouse>
    <remote_servers><{name}><shard><replica>
        <host>127.0.0.1</host><port>9000</port>
    </replica></shard></{name}></remote_servers>
    <tcp_port>9000</tcp_port>
</clickhouse>
"""


class QueryError(Exception):
    """An answer that is a ClickHouse exception: its code, its text, the HTTP status of the code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = STATUS_BY_CODE.get(code, 500)

    @classmethod
    def of(cls, error: Exception) -> QueryError:
        """Read the code out of what chDB raised."""
        text = str(error)
        text = text[max(text.find("Code: "), 0) :].strip()
        found = re.match(r"Code: (\d+)", text)
        return cls(int(found.group(1)) if found else 1001, text)

    @classmethod
    def make(cls, code: int, name: str, text: str) -> QueryError:
        """Word an exception of the front's own as a server words it."""
        return cls(code, f"Code: {code}. DB::Exception: {text}. ({name})")


def words(statement: bytes) -> Iterable[tuple[str, int]]:
    """Yield each token of a statement, lower case, with its end; comments are passed over."""
    for match in TOKEN.finditer(statement):
        if not match.group().startswith((b"/*", b"--")):
            yield match.group()[:64].decode(errors="replace").lower(), match.end()


def first_word(statement: bytes) -> str:
    """Return the keyword a statement begins with."""
    return next((word for word, _ in words(statement) if word != "("), "")


def split_insert(statement: bytes) -> tuple[bytes, str, bytes] | None:
    """Split an INSERT that carries data into its head, the format and the data.

    Returns
    -------
    tuple or None
        None when the statement has no data of its own (``insert … select`` from a table).
    """
    selects, depth = False, 0
    for word, end in words(statement):
        depth += {"(": 1, ")": -1}.get(word, 0)
        if depth:  # a column may be called format or values
            continue
        if word == "values" and not selects:
            return statement[: end - len(word)], "Values", statement[end:]
        if word in ("select", "with"):
            selects = True
        if word == "format" and (found := DATA_FORMAT.match(statement, end)):
            head = statement[: end - len(word)]
            if selects and not INPUT_FUNCTION.search(head):
                return None
            return head, found.group(1).decode(), statement[found.end() :]
    return None


def on_a_cluster_of_one(statement: bytes, cluster: str) -> bytes:
    """Leave out of a definition what only servers that share a Keeper can do.

    Raises
    ------
    QueryError
        It names another cluster.
    """
    kept, skipped = bytearray(), 0
    found = TOKEN.finditer(statement)
    tokens = [match for match in found if match.group()[:2] not in (b"/*", b"--")]
    for index, match in enumerate(tokens):
        following = [token.group().lower() for token in tokens[index : index + 2]]
        if following == [b"on", b"cluster"] and index + 2 < len(tokens):
            named = tokens[index + 2].group().decode(errors="replace").strip("`'\"")
            if named != cluster:
                text = f"Requested cluster {quoted(named)} not found"
                raise QueryError.make(701, "CLUSTER_DOESNT_EXIST", text)
            kept += statement[skipped : match.start()]
            skipped = tokens[index + 2].end()
        elif following[0] == b"replicatedmergetree":
            kept += statement[skipped : match.start()] + b"MergeTree"
            skipped = match.end()
    return bytes(kept) + statement[skipped:]


def quoted(text: str) -> str:
    """Quote a string literal for ClickHouse SQL."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def quoted_name(name: str) -> str:
    """Quote an identifier for ClickHouse SQL."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


@dataclass
class Answer:
    """What a statement gave: its bytes, their format (empty when it returns no rows), counts."""

    body: bytes
    format: str
    summary: dict[str, str]


class Session:
    """One engine handle with its own settings, database and temporary tables."""

    def __init__(self, engine: Engine) -> None:
        self.connection = engine.connect()
        self.engine = engine
        self.lock = threading.Lock()
        self.database = "default"
        self.expires = 0.0

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """Run a query of the front's own and return its rows."""
        text = self.connection.query(sql, "JSONEachRow").bytes()
        return [json.loads(line) for line in text.splitlines()]

    def run(
        self,
        statement: bytes,
        *,
        settings: dict[str, str],
        parameters: dict[str, str],
        database: str,
        default_format: str,
        delay: float,
        keep: bool,
    ) -> Answer:
        """Run one statement under settings and a database that hold for it alone.

        Parameters
        ----------
        keep
            Whether the session lives on, so that its own settings must be put back.
        delay
            Seconds to be running before anything is done.

        Raises
        ------
        QueryError
            Whatever the engine says.
        """
        word = first_word(statement)
        if word == "set" and keep:
            settings = {}
        if self.engine.cluster and word in DEFINING:
            spread = on_a_cluster_of_one(statement, self.engine.cluster)
            if spread == statement:
                self.engine.defined_apart.append(statement.decode(errors="replace"))
            statement = spread
        if self.engine.cluster and SYNCING.match(statement[next(words(statement))[1] :]):
            return Answer(b"", "", summary(time.perf_counter_ns()))
        restore = self.settings_now(settings) if keep and settings else ""
        try:
            if database and database != self.database:
                self.connection.query(f"use {quoted_name(database)}")
            if settings:
                self.connection.query("set " + assignments(settings))
            return self.execute(statement, word, parameters, default_format, delay)
        except QueryError:
            raise
        except Exception as error:
            raise QueryError.of(error) from error
        finally:
            if keep:
                if restore:
                    self.connection.query(restore)
                if word == "use":
                    self.database = self.rows("select currentDatabase() as name")[0]["name"]
                elif database and database != self.database:
                    self.connection.query(f"use {quoted_name(self.database)}")

    def settings_now(self, settings: dict[str, str]) -> str:
        """Return the statement that puts the named settings back to their present values."""
        names = ", ".join(map(quoted, settings))
        found = self.rows(
            f"select name, value, changed from system.settings where name in ({names})"
        )
        present = (
            f"{row['name']} = {quoted(row['value']) if row['changed'] else 'default'}"
            for row in found
        )
        return "set " + ", ".join(present) if found else ""

    def execute(
        self,
        statement: bytes,
        word: str,
        parameters: dict[str, str],
        default_format: str,
        delay: float,
    ) -> Answer:
        """Run one statement as it stands."""
        carried = split_insert(statement) if word == "insert" else None
        if carried and not (carried[1] == "Values" and parameters):
            return self.insert(*carried, delay)
        time.sleep(delay)
        self.refuse_many(statement)
        if word == "kill":
            statement = re.sub(rb"\bquery_id\b", QUERY_ID, statement)
        elif word in RETURNS_ROWS:
            statement = PROCESSES.sub(NAMED_PROCESSES, statement)
        started = time.perf_counter_ns()
        result = self.connection.query(statement, default_format, params=parameters)
        body = result.bytes() or b""
        named = TRAILING_FORMAT.search(statement)
        chosen = named.group(1).decode() if named else default_format
        return Answer(
            body,
            chosen if body or word in RETURNS_ROWS else "",
            summary(
                started,
                read_rows=result.storage_rows_read(),
                read_bytes=result.storage_bytes_read(),
                written_rows=result.rows_written(),
                written_bytes=result.bytes_written(),
                result_rows=result.rows_read(),
                result_bytes=len(body),
            ),
        )

    def insert(self, head: bytes, data_format: str, data: bytes, delay: float) -> Answer:
        """Insert data that came with its statement.

        The data never goes into the query text: chDB ends inline data at an empty line.
        """
        started = time.perf_counter_ns()
        if INPUT_FUNCTION.search(head):
            time.sleep(delay)
            with tempfile.NamedTemporaryFile() as file:
                file.write(data)
                file.flush()
                source = f"file({quoted(file.name)}, {quoted(data_format)}, ".encode()
                result = self.connection.query(INPUT_FUNCTION.sub(lambda _: source, head))
            rows, size = result.rows_written(), result.bytes_written()
        else:
            with self.connection.send_insert(head.decode(), data_format) as inserter:
                time.sleep(delay)
                inserter.append(data)
                done = inserter.finish()
            rows, size = done.rows_written, done.bytes_written
        counts = summary(
            started, read_rows=rows, read_bytes=size, written_rows=rows, written_bytes=size
        )
        return Answer(b"", "", counts)

    def refuse_many(self, statement: bytes) -> None:
        """Refuse several statements in one request, which chDB would run one after another."""
        if b";" not in statement.rstrip(b"; \r\n\t"):
            return
        escaped = statement.decode(errors="replace").replace("\\", "\\\\")
        escaped = escaped.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
        try:
            self.connection.query("select formatQuery({q:String})", params={"q": escaped})
        except Exception as error:
            if "Multi-statements" in str(error):
                text = "Syntax error (Multi-statements are not allowed)"
                raise QueryError.make(62, "SYNTAX_ERROR", text) from error


def assignments(settings: dict[str, str]) -> str:
    """Return the list of a SET statement, names checked and values quoted."""
    for name in settings:
        if not name.isidentifier():
            raise QueryError.make(115, "UNKNOWN_SETTING", f"Unknown setting {quoted(name)}")
    return ", ".join(f"{name} = {quoted(value)}" for name, value in settings.items())


def summary(started: int, **counts: int) -> dict[str, str]:
    """Return X-ClickHouse-Summary: every count, as text."""
    names = "read_rows read_bytes written_rows written_bytes result_rows result_bytes"
    found = {name: str(counts.get(name, 0)) for name in names.split()}
    return {**found, "elapsed_ns": str(time.perf_counter_ns() - started)}


class Engine:
    """The one chDB engine of the process and the sessions open on it."""

    def __init__(self, path: str, cluster: str = "") -> None:
        import chdb

        self.cluster = cluster
        self.defined_apart: list[str] = []
        if cluster:
            Path(path).mkdir(parents=True, exist_ok=True)
            config = Path(path, "cluster.xml")
            config.write_text(CLUSTER_OF_ONE.format(name=cluster))
            path = f"{path}?config-file={config}"
        self._connect: Callable[[str], Any] = chdb.connect
        self._path = path
        self._root = chdb.connect(path)
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}
        texts = self._root.query("select version(), timezone(), hostName()", "TabSeparated")
        self.version, self.timezone, self.hostname = texts.bytes().decode().strip().split("\t")

    def connect(self) -> Any:
        """Open a handle that parses as a server does (chDB takes bare expressions too)."""
        connection = self._connect(self._path)
        connection.query("set implicit_select = 0")
        return connection

    def run(self, session_id: str, query: dict[str, str], **arguments: Any) -> Answer:
        """Run a statement in the named session, or in one of its own when there is no name."""
        if not session_id:
            alone = Session(self)
            try:
                return alone.run(keep=False, **arguments)
            finally:
                alone.connection.close()
        with self._lock:
            self._forget(lambda session: session.expires < time.monotonic())
            session = self._sessions.get(session_id)
            if session is None and query.get("session_check") == "1":
                raise QueryError.make(372, "SESSION_NOT_FOUND", f"Session {session_id} not found")
            if session is None:
                session = self._sessions[session_id] = Session(self)
            if not session.lock.acquire(blocking=False):
                text = f"Session {session_id} is locked by a concurrent client"
                raise QueryError.make(373, "SESSION_IS_LOCKED", text)
        try:
            return session.run(keep=True, **arguments)
        finally:
            session.expires = time.monotonic() + float(query.get("session_timeout", "60"))
            session.lock.release()

    def forget_sessions(self) -> None:
        """Close every session that no request is using."""
        with self._lock:
            self._forget(lambda session: True)

    def _forget(self, doomed: Callable[[Session], bool]) -> None:
        for name, session in list(self._sessions.items()):
            if session.lock.acquire(blocking=False):
                if doomed(session):
                    del self._sessions[name]
                    session.connection.close()
                session.lock.release()

    def close(self) -> None:
        """Close every handle that is idle, and the engine with the last one."""
        self.forget_sessions()
        self._root.close()


@dataclass
class Fault:
    """One way to misbehave, and which requests it strikes.

    Parameters
    ----------
    kind
        ``hang`` (no answer for ``seconds``, then the connection ends), ``drop`` (the connection
        ends without an answer), ``answer`` (``status`` and ``text``, with ``code`` as its
        ClickHouse code if not zero), ``slow`` (it runs for ``seconds`` more), ``truncate`` (run
        it, send half of the answer), ``restart`` (the process replaces itself without a clean end,
        on the same path and port), ``lose_session`` (forget all sessions, then run it).
    effect
        For hang, drop, answer and restart: ``none`` the statement never runs, ``done`` it ran
        before, ``late`` it goes on running for ``seconds`` after the client was let go, as
        ``system.processes`` shows of inserts that carry data (not for restart).
    count, skip
        Strike at most ``count`` requests (None: no limit), after passing over ``skip``.
    inserts, contains
        Strike only INSERTs; only statements that hold this text.
    probability, seed
        Strike at random; the same seed strikes the same requests.
    """

    kind: str
    effect: str = "none"
    count: int | None = 1
    skip: int = 0
    inserts: bool = False
    contains: str = ""
    probability: float = 1.0
    seed: int = 0
    seconds: float = 0.0
    status: int = 503
    code: int = 0
    text: str = "told to fail"
    seen: int = 0
    done: int = 0

    def __post_init__(self) -> None:
        kinds = ("hang", "drop", "answer", "slow", "truncate", "restart", "lose_session")
        if self.kind not in kinds:
            raise ValueError(f"kind {self.kind!r} is none of {', '.join(kinds)}")
        effects = ("none", "done") if self.kind == "restart" else ("none", "done", "late")
        if self.effect not in effects:
            raise ValueError(f"effect {self.effect!r} is none of {', '.join(effects)}")

    def strikes(self, statement: bytes) -> bool:
        """Tell whether this request is struck, and count it."""
        if self.count is not None and self.done >= self.count:
            return False
        if self.inserts and first_word(statement) != "insert":
            return False
        if self.contains.encode() not in statement:
            return False
        self.seen += 1
        if self.seen <= self.skip:
            return False
        if random.Random(f"{self.seed}:{self.seen}").random() >= self.probability:
            return False
        self.done += 1
        return True


def decompressed(data: bytes, encoding: str) -> bytes:
    """Undo a Content-Encoding; the frames of one body may be many."""
    if encoding in ("", "identity"):
        return data
    if encoding == "gzip":
        return gzip.decompress(data)
    if encoding == "deflate":
        return zlib.decompress(data)
    if encoding == "lz4":
        import lz4.frame  # type: ignore[import-untyped]

        with lz4.frame.open(io.BytesIO(data)) as file:
            return bytes(file.read())
    if encoding == "zstd":
        import zstandard

        with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
            return reader.read()
    raise QueryError.make(48, "NOT_IMPLEMENTED", f"Content-Encoding {encoding} is not supported")


def compressed(data: bytes, accepted: str) -> tuple[bytes, str]:
    """Compress with the first encoding of ClickHouse's own order that the client accepts."""
    names = {part.split(";")[0].strip() for part in accepted.split(",")}
    if "lz4" in names:
        import lz4.frame

        return bytes(lz4.frame.compress(data)), "lz4"
    if "gzip" in names:
        return gzip.compress(data, 1), "gzip"
    if "deflate" in names:
        return zlib.compress(data, 1), "deflate"
    if "zstd" in names:
        import zstandard

        return zstandard.ZstdCompressor(level=1).compress(data), "zstd"
    return data, ""


class Handler(BaseHTTPRequestHandler):
    """One connection: reads requests, runs them, and breaks what it was told to break."""

    server: Listener
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: payloads stay out of every log."""

    def do_GET(self) -> None:
        self.respond()

    def do_POST(self) -> None:
        self.respond()

    def respond(self) -> None:
        """Answer one request, as a server or as the fault that strikes it."""
        body = self.read_body()
        url = urlsplit(self.path)
        if url.path in ("/ping", "/replicas_status"):
            self.send(200, b"Ok.\n", {})
            return
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        query_id = query.get("query_id") or str(uuid.uuid4())
        headers = {"X-ClickHouse-Query-Id": query_id}
        try:
            if url.path not in ("", "/"):
                raise QueryError.make(48, "NOT_IMPLEMENTED", f"There is no handle {url.path}")
            self.authenticate(query)
            statement = self.statement(query, body)
        except QueryError as error:
            self.send_error_answer(error, headers)
            return
        fault = self.server.front.struck(statement)
        if fault and self.break_off(fault, query, statement):
            return
        delay = fault.seconds if fault and fault.kind == "slow" else 0.0
        try:
            answer = self.run(query, statement, delay)
        except QueryError as error:
            self.send_error_answer(error, headers)
            return
        engine = self.server.front.engine
        headers["X-ClickHouse-Summary"] = json.dumps(answer.summary)
        headers["X-ClickHouse-Timezone"] = engine.timezone
        headers["X-ClickHouse-Server-Display-Name"] = engine.hostname
        if answer.format:
            headers["X-ClickHouse-Format"] = answer.format
        sent, encoding = answer.body, ""
        if sent and query.get("enable_http_compression", "1") in ("1", "true"):
            sent, encoding = compressed(sent, self.headers.get("Accept-Encoding", ""))
        if encoding:
            headers["Content-Encoding"] = encoding
        self.send(200, sent, headers, truncate=fault is not None and fault.kind == "truncate")

    def read_body(self) -> bytes:
        """Read the whole body; half of one is never run.

        Raises
        ------
        ConnectionError
            The client went away in the middle.
        """
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.read_exactly(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.read_line().split(b";")[0], 16):
            parts.append(self.read_exactly(size))
            self.read_line()
        while self.read_line().strip():
            pass
        return b"".join(parts)

    def read_line(self) -> bytes:
        line = self.rfile.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError("the client closed the connection in the middle of a body")
        return line

    def read_exactly(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) != size:
            raise ConnectionError("the client closed the connection in the middle of a body")
        return data

    def authenticate(self, query: dict[str, str]) -> None:
        """Check who asks, in the three ways ClickHouse knows."""
        front = self.server.front
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        if kind == "Basic":
            user, _, password = base64.b64decode(token).decode(errors="replace").partition(":")
        else:
            user = self.headers.get("X-ClickHouse-User", query.get("user", "default"))
            password = self.headers.get("X-ClickHouse-Key", query.get("password", ""))
        right = not front.password or hmac.compare_digest(
            password.encode(), front.password.encode()
        )
        if user != front.user or not right:
            text = f"{user}: Authentication failed: password is incorrect, or there is no such user"
            raise QueryError.make(516, "AUTHENTICATION_FAILED", text)

    def statement(self, query: dict[str, str], body: bytes) -> bytes:
        """Put the statement together: the query parameter, then the body, or a form's fields."""
        for name in ("compress", "decompress", "role", "close_session"):
            if query.get(name, "0") != "0":
                raise QueryError.make(48, "NOT_IMPLEMENTED", f"{name} is not supported")
        content_type = self.headers.get("Content-Type", "")
        if content_type.startswith("multipart/form-data"):
            head = b"Content-Type: " + content_type.encode() + b"\r\n\r\n"
            for part in email.message_from_bytes(head + body).walk():
                if part.is_multipart():
                    continue
                name = str(part.get_param("name", "", "content-disposition"))
                if part.get_filename() is not None:
                    raise QueryError.make(48, "NOT_IMPLEMENTED", "No external data here")
                value = part.get_payload(decode=True)
                query[name] = value.decode() if isinstance(value, bytes) else ""
            body = b""
        else:
            body = decompressed(body, self.headers.get("Content-Encoding", ""))
        statement = query.get("query", "").encode()
        statement = statement + b"\n" + body if statement and body else statement or body
        if self.command == "GET" and first_word(statement) not in READING:
            text = "Cannot execute query in readonly mode: method GET implies readonly, use POST"
            raise QueryError.make(164, "READONLY", text)
        return statement

    def run(self, query: dict[str, str], statement: bytes, delay: float = 0.0) -> Answer:
        """Run a statement under the parameters of its request."""
        if "query_id" in query:
            query.setdefault("log_comment", query["query_id"])
        database = query.get("database") or self.headers.get("X-ClickHouse-Database", "")
        chosen = query.get("default_format") or self.headers.get("X-ClickHouse-Format", "")
        own = {name: value for name, value in query.items() if name.startswith("param_")}
        return self.server.front.engine.run(
            query.get("session_id", ""),
            query,
            statement=statement,
            settings={
                name: value
                for name, value in query.items()
                if name not in INTERFACE_PARAMETERS and name not in own
            },
            parameters={name.removeprefix("param_"): value for name, value in own.items()},
            database=database,
            default_format=chosen or "TabSeparated",
            delay=delay,
        )

    def break_off(self, fault: Fault, query: dict[str, str], statement: bytes) -> bool:
        """Do what a fault asks; return whether the request has been dealt with."""
        if fault.kind == "lose_session":
            self.server.front.engine.forget_sessions()
        if fault.kind in ("slow", "lose_session", "truncate"):
            return False

        def take_effect(delay: float = 0.0) -> None:
            with suppress(QueryError):
                self.run(query, statement, delay)

        if fault.effect == "done":
            take_effect()
        elif fault.effect == "late":
            threading.Thread(target=take_effect, args=(fault.seconds,), daemon=True).start()
        if fault.kind == "restart":
            self.server.front.replace()
        if fault.kind == "answer":
            text = f"Code: {fault.code}. DB::Exception: {fault.text}" if fault.code else fault.text
            headers = {"X-ClickHouse-Exception-Code": str(fault.code)} if fault.code else {}
            self.send(fault.status, text.encode(), headers)
            return True
        if fault.kind == "hang":
            self.wait_for_hangup(fault.seconds or 3600)
        self.close_connection = True
        return True

    def wait_for_hangup(self, seconds: float) -> None:
        """Sit on the request until the client leaves or the time is up."""
        until = time.monotonic() + seconds
        with suppress(OSError):
            while (left := until - time.monotonic()) > 0:
                ready, _, _ = select.select([self.connection], [], [], left)
                if ready and not self.connection.recv(1, socket.MSG_PEEK):
                    return

    def send_error_answer(self, error: QueryError, headers: dict[str, str]) -> None:
        """Answer with a ClickHouse exception."""
        headers["X-ClickHouse-Exception-Code"] = str(error.code)
        text = f"{error} (version {self.server.front.engine.version})\n"
        self.send(error.status, text.encode(), headers)

    def send(
        self, status: int, body: bytes, headers: dict[str, str], truncate: bool = False
    ) -> None:
        """Send an answer, or as much of it as a dying server would have sent."""
        if truncate and not body:
            # ClickHouse sends progress headers first and finishes the others at the end.
            self.send_response_only(status)
            self.send_header("X-ClickHouse-Progress", "{}")
            self.flush_headers()
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "text/plain; charset=UTF-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if truncate else body)
        self.close_connection = self.close_connection or truncate


class Listener(ThreadingHTTPServer):
    """The listening socket and the connections it took."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(self, front: Process, port: int) -> None:
        self.front = front
        self.connections: set[socket.socket] = set()
        super().__init__((HOST, port), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over peers that went away; show everything else."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Process:
    """The server process: engine, listener, and the faults it was told to do."""

    def __init__(self, path: str, port: int, cluster: str = "") -> None:
        self.user = os.environ.get("FRONT_USER", "default")
        self.password = os.environ.get("FRONT_PASSWORD", "")
        self.path = path
        self.engine = Engine(path, cluster)
        self._lock = threading.Lock()
        self._requests = 0
        self._faults = [Fault(**each) for each in json.loads(os.environ.get("FRONT_FAULTS", "[]"))]
        self._listener: Listener | None = None
        self.port = port
        self.accept()

    def struck(self, statement: bytes) -> Fault | None:
        """Count a request and return the first fault that strikes it."""
        with self._lock:
            self._requests += 1
            return next((fault for fault in self._faults if fault.strikes(statement)), None)

    def accept(self) -> None:
        """Listen."""
        if self._listener is None:
            self._listener = Listener(self, self.port)
            self.port = self._listener.server_address[1]
            threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True).start()

    def refuse(self) -> None:
        """Refuse new connections and end those that are open."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown()
            listener.server_close()
            for connection in list(listener.connections):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def replace(self) -> None:
        """Become a fresh process on the same path and port, with no clean end before."""
        left = json.dumps([asdict(fault) for fault in self._faults])
        os.environ.update(FRONT_FAULTS=left, FRONT_RESUMED="1")
        own = [sys.executable, __file__, "--path", self.path, "--port", str(self.port)]
        os.execv(sys.executable, [*own, *(["--control"] if "--control" in sys.argv else [])])

    def stop(self) -> None:
        """End cleanly."""
        self.refuse()
        self.engine.close()
        os._exit(0)

    def obey(self, order: dict[str, Any]) -> Any:
        """Do one order of the control channel and return what to reply."""
        what = order.pop("do")
        if what == "misbehave":
            with self._lock:
                self._faults.append(Fault(**order))
        elif what == "behave":
            with self._lock:
                self._faults.clear()
        elif what == "refuse":
            self.refuse()
        elif what == "accept":
            self.accept()
        elif what == "lose_sessions":
            self.engine.forget_sessions()
        elif what == "stats":
            with self._lock:
                faults = [asdict(fault) for fault in self._faults]
            apart = self.engine.defined_apart
            return {"requests": self._requests, "faults": faults, "defined_apart": apart}
        return {}


def main() -> None:
    """Serve until stdin ends (with ``--control``) or SIGTERM comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--path", required=True, help="chDB directory")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--control", action="store_true", help="obey JSON lines on stdin")
    parser.add_argument("--cluster", default="", help="be the one server of a cluster of this name")
    options = parser.parse_args()
    front = Process(options.path, options.port, options.cluster)
    signal.signal(signal.SIGTERM, lambda *_: front.stop())
    if not os.environ.pop("FRONT_RESUMED", ""):
        print(front.port, flush=True)
    if not options.control:
        signal.pause()
    for line in iter(sys.stdin.readline, ""):
        try:
            reply = front.obey(json.loads(line))
        except (KeyError, TypeError, ValueError, OSError) as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)
    front.stop()


class Front:
    """A front in a process of its own, for tests.

    Parameters
    ----------
    path
        The chDB directory; it outlives every restart.
    user, password
        The one user that may ask; an empty password lets any password pass, as on a server.
    cluster
        The cluster whose one server this is; empty for none.

    Examples
    --------
    >>> with Front(tmp_path / "db") as front:  # doctest: +SKIP
    ...     front.misbehave("drop", effect="done", inserts=True, count=2)
    ...     client = clickhouse_connect.get_client(host=front.host, port=front.port)
    """

    host = HOST

    def __init__(
        self, path: Path | str, *, user: str = "default", password: str = "", cluster: str = ""
    ) -> None:
        self.path = Path(path)
        self.user = user
        self.password = password
        self.cluster = cluster
        # Held, never listened on: the port stays ours while the process is away.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind((HOST, 0))
        self.port: int = self._reserved.getsockname()[1]
        self._process: subprocess.Popen[str] | None = None

    @property
    def endpoint(self) -> str:
        """The URL of the server."""
        return f"http://{self.host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process, or None while there is none."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def env(self, database: str = "llm") -> dict[str, str]:
        """Return the variables that point loader and dbt at this server."""
        return {
            "CLICKHOUSE_ENDPOINT": self.endpoint,
            "CLICKHOUSE_USERNAME": self.user,
            "CLICKHOUSE_PASSWORD": self.password,
            "CLICKHOUSE_DATABASE": database,
            **({"CLICKHOUSE_CLUSTER": self.cluster} if self.cluster else {}),
        }

    def start(self) -> Self:
        """Start the process and wait until it listens.

        Raises
        ------
        RuntimeError
            It ended before; its own words are on stderr.
        """
        own = [sys.executable, __file__, "--path", str(self.path), "--port", str(self.port)]
        self._process = subprocess.Popen(
            [*own, "--cluster", self.cluster, "--control"],
            cwd=ROOT,
            env={**os.environ, "FRONT_USER": self.user, "FRONT_PASSWORD": self.password},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._pipe(self._process.stdout).readline().strip() != str(self.port):
            self.kill()
            raise RuntimeError(f"the front on {self.path} did not start")
        return self

    def stop(self) -> None:
        """End the process cleanly, or by force when it does not end."""
        process, self._process = self._process, None
        if process is not None:
            self._pipe(process.stdin).close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._pipe(process.stdout).close()

    def kill(self) -> None:
        """End the process with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self.stop()

    def restart(self, *, kill: bool = False) -> None:
        """End the process, cleanly or not, and start it again on the same path and port."""
        if kill:
            self.kill()
        else:
            self.stop()
        self.start()

    def misbehave(self, kind: str, **fault: Any) -> None:
        """Add a fault; its fields are those of :class:`Fault`. The first that strikes wins."""
        self._order("misbehave", **asdict(Fault(kind, **fault)))

    def behave(self) -> None:
        """Forget all faults and listen again."""
        self._order("behave")
        self._order("accept")

    def refuse(self) -> None:
        """Refuse connections until :meth:`behave`."""
        self._order("refuse")

    def lose_sessions(self) -> None:
        """Forget all sessions: their settings, databases and temporary tables."""
        self._order("lose_sessions")

    def stats(self) -> dict[str, Any]:
        """Return what there was since the start.

        Returns
        -------
        dict
            ``requests``, their number; ``faults`` with what they did; ``defined_apart``, the
            definitions that named no cluster where there is one.
        """
        return self._order("stats")

    def _order(self, what: str, **arguments: Any) -> dict[str, Any]:
        if self._process is None:
            raise RuntimeError("the front is not running")
        stdin = self._pipe(self._process.stdin)
        stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        stdin.flush()
        reply: dict[str, Any] = json.loads(self._pipe(self._process.stdout).readline())
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._reserved.close()


if __name__ == "__main__":
    main()
