"""The loopback front: stock clients work on it, and every fault it knows is the fault it names."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clickhouse_connect
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError, OperationalError
from clickhouse_connect.driver.summary import QuerySummary

from tests.support.http_front import Fault, Front, split_insert

Connect = Callable[..., Client]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """Share one server among the tests, which leave no fault on it."""
    with Front(tmp_path_factory.mktemp("front") / "db", password="se'cret") as front:
        yield front


@pytest.fixture
def front(shared: Front) -> Iterator[Front]:
    """Give a server that behaves, with an empty database."""
    yield shared
    if shared.pid is None:
        shared.start()
    shared.behave()


@pytest.fixture
def connect(front: Front) -> Iterator[Connect]:
    """Give a way to open clients; they are closed at the end."""
    clients = []

    def open_client(**options: Any) -> Client:
        chosen = {"autogenerate_session_id": False, "send_receive_timeout": 20, **options}
        client = clickhouse_connect.get_client(
            host=front.host, port=front.port, username=front.user, password=front.password, **chosen
        )
        clients.append(client)
        return client

    yield open_client
    for client in clients:
        client.close()


@pytest.fixture
def client(connect: Connect) -> Client:
    """Give a client without a session, in a fresh database."""
    client = connect()
    client.command("drop database if exists llm")
    client.command("create database llm")
    client.database = "llm"
    client.command("create table t (a Int64, s String) engine = MergeTree order by a")
    return client


def rows(client: Client) -> list[Any]:
    """Return the whole of the table."""
    return list(client.query("select a, s from t order by a, s").result_rows)


def ask(front: Front, query: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Ask with the standard library, for what the client does not send."""
    own = {"X-ClickHouse-User": front.user, "X-ClickHouse-Key": front.password, **headers}
    request = urllib.request.Request(f"{front.endpoint}/?{query}", body, own)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


# Queries, inserts, settings, errors


def test_query_returns_typed_rows(client: Client) -> None:
    found = client.query("select 1 as n, 'x' as s, toDecimal64('1.10', 2) as d, [1, 2] as l")
    assert found.column_names == ("n", "s", "d", "l")
    assert str(found.result_rows) == "[(1, 'x', Decimal('1.10'), [1, 2])]"


def test_bound_parameters_keep_every_byte(client: Client) -> None:
    nasty = "a'b\\c\td\ne%{}\u00e9`\""
    assert client.query("select {x:String}", parameters={"x": nasty}).result_rows == [(nasty,)]
    long = "y" * 100_000  # too long for a URL: the client sends a form
    got = client.query("select length({x:String})", parameters={"x": long}).result_rows
    assert got == [(100_000,)]


@pytest.mark.parametrize("compress", [False, "lz4", "zstd", "gzip"])
def test_insert_and_query_with_compression(
    connect: Connect, client: Client, compress: str | bool
) -> None:
    other = connect(database="llm", compress=compress)
    data = [[number, "x\n\ny" * 50] for number in range(2570, 5200)]  # 2570 is \n\n in bytes
    written = other.insert("t", data, column_names=["a", "s"])
    assert written.written_rows == len(data)
    assert rows(other) == [tuple(row) for row in data]


def test_a_batch_lands_as_one_part(client: Client) -> None:
    client.insert("t", [[number, "x" * 2000] for number in range(5000)], column_names=["a", "s"])
    parts = client.query("select rows from system.parts where active and table = 't'").result_rows
    assert parts == [(5000,)]


@pytest.mark.parametrize(
    ("fmt", "data"),
    [
        ("JSONEachRow", b'{"a": 1, "s": "x;y\\n\\n"}\n\n{"a": 2, "s": "z"}'),
        ("CSV", b'1,"x;y\n\n"\n2,z\n'),
        ("RowBinary", b"\x01\0\0\0\0\0\0\0\x05x;y\n\n\x02\0\0\0\0\0\0\0\x01z"),
        ("Values", b"(1, 'x;y\n\n'), (2, 'z')"),
    ],
)
@pytest.mark.parametrize("compression", [None, "gzip", "zstd", "lz4"])
def test_raw_insert(client: Client, fmt: str, data: bytes, compression: str | None) -> None:
    if compression == "gzip":
        data = gzip.compress(data)
    elif compression == "zstd":
        data = pytest.importorskip("zstandard").compress(data)
    elif compression == "lz4":
        data = pytest.importorskip("lz4.frame").compress(data)
    client.raw_insert("t", ["a", "s"], data, fmt=fmt, compression=compression)
    assert rows(client) == [(1, "x;y\n\n"), (2, "z")]


def test_insert_with_values_select_and_input(client: Client) -> None:
    client.command("insert into t values (1, 'a;\n\nb'), (2, 'format CSV')")
    client.command("insert into t (a, s) select a + 2, 'values' from t")
    client.command(
        "insert into t select a, upper(s) from input('a Int64, s String') format JSONEachRow",
        data='{"a": 9, "s": "q"}\n\n',
    )
    assert rows(client) == [
        (1, "a;\n\nb"),
        (2, "format CSV"),
        (3, "values"),
        (4, "values"),
        (9, "Q"),
    ]


def test_split_insert_finds_the_data_and_nothing_else() -> None:
    head = b"/* format X */ insert into t (`format`, s) settings a = 'values' "
    assert split_insert(head + b"format CSV\n1,x\n") == (head, "CSV", b"1,x\n")
    head = b"insert into t (format, values) "
    assert split_insert(head + b"values (1, 2)") == (head, "Values", b" (1, 2)")
    assert split_insert(b"insert into t select 1 format Null") is None
    assert split_insert(b"insert into t select * from values('a Int8', 1)") is None


def test_raw_query_stream_and_commands(client: Client) -> None:
    client.insert("t", [[number, str(number)] for number in range(100)], column_names=["a", "s"])
    text = client.raw_query("select a from t order by a limit 2", fmt="JSONEachRow")
    assert text == b'{"a":0}\n{"a":1}\n'
    with client.query_rows_stream("select a from t order by a") as stream:
        assert sum(row[0] for row in stream) == 4950
    with client.raw_stream("select a from t", fmt="RowBinary") as raw:
        assert len(raw.read()) == 800
    assert client.command("exists table t") == 1
    assert client.command("select s from t where a < 0") == ""
    assert client.query("select a, s from t limit 0").column_names == ("a", "s")


def test_summary_and_query_id(client: Client) -> None:
    done = client.command("insert into t select number, 'x' from numbers(7)")
    assert isinstance(done, QuerySummary)
    assert done.written_rows == 7
    asked = client.query("select 1", settings={"query_id": "mine"})
    assert asked.query_id == "mine"


def test_settings_hold_for_one_request(connect: Connect, client: Client) -> None:
    asked = "select toInt64(getSetting('max_block_size'))"
    usual = client.command(asked)
    for one in (client, connect(session_id="settings")):
        assert one.command(asked, settings={"max_block_size": 4321}) == 4321
        assert one.command(asked) == usual
    with pytest.raises(DatabaseError) as caught:
        client.command("select 1", settings={"max_block_size": "x"})
    assert caught.value.code is not None
    session = connect(session_id="settings")
    session.command("set max_block_size = 77")
    assert session.command(asked, settings={"max_block_size": 5}) == 5
    assert session.command(asked) == 77


def test_sessions_keep_tables_and_are_apart(connect: Connect, client: Client) -> None:
    one, two = connect(session_id="one"), connect(session_id="two")
    one.command("create temporary table mine (a Int64)")
    one.command("insert into mine values (5)")
    assert one.command("select a from mine") == 5
    for other in (two, client):
        with pytest.raises(DatabaseError) as caught:
            other.command("select a from mine")
        assert caught.value.code == 60
    assert one.command("select currentDatabase()", settings={"database": "system"}) == "system"
    one.command("use llm")
    assert one.command("select currentDatabase()", use_database=False) == "llm"


def test_a_session_is_locked_while_in_use_and_checked_when_asked(front: Front) -> None:
    busy = "user=default&password=se%27cret&session_id=busy&query=select+sleep(3)"
    slow = threading.Thread(target=urllib.request.urlopen, args=(f"{front.endpoint}/?{busy}",))
    slow.start()
    body = b""
    while slow.is_alive() and b"SESSION_IS_LOCKED" not in body:
        _, body = ask(front, "session_id=busy&session_check=1", b"select 1")
    slow.join()
    assert b"SESSION_IS_LOCKED" in body
    _, body = ask(front, "session_id=nobody&session_check=1", b"select 1")
    assert b"Code: 372" in body


@pytest.mark.parametrize(
    ("sql", "code", "status"),
    [
        ("selec 1", 62, 400),
        ("1 + 1", 62, 400),
        ("select 1; select 2", 62, 400),
        ("select * from nowhere", 60, 404),
        ("select nothing", 47, 404),
        ("select throwIf(1)", 395, 500),
        ("create user u identified by 'x'", 497, 403),
        ("create row policy p on llm.t using a = 1 to all", 497, 403),
        ("select * from system.query_log", 60, 404),
        ("create table x on cluster c (a Int8) engine = Log", 701, 500),
        ('insert into t format JSONEachRow\n{"a": ', 32, 500),
    ],
)
def test_errors_have_code_and_status(
    front: Front, client: Client, sql: str, code: int, status: int
) -> None:
    with pytest.raises(DatabaseError) as caught:
        client.command(sql)
    assert caught.value.code == code
    got, body = ask(front, "database=llm", sql.encode())
    assert got == status
    assert body.startswith(f"Code: {code}. DB::Exception".encode())
    assert rows(client) == []


def test_get_reads_only_and_joins_query_and_body(front: Front, client: Client) -> None:
    assert ask(front, "query=select+1&default_format=JSONEachRow") == (200, b'{"1":1}\n')
    assert ask(front, "query=insert+into+llm.t+values+(1,+'x')")[0] == 500
    assert ask(front, "query=insert+into+llm.t+format+CSV", b"1,x\n")[0] == 200
    assert rows(client) == [(1, "x")]
    assert ask(front, "compress=1", b"select 1")[0] == 501
    assert urllib.request.urlopen(front.endpoint + "/ping").read() == b"Ok.\n"


def test_half_a_body_is_never_run(front: Front, client: Client) -> None:
    head = f"POST /?database=llm&user={front.user}&password=se%27cret HTTP/1.1\r\nHost: x\r\n"
    statement = "insert into t format CSV\n1,x\n"
    for cut in (
        f"Transfer-Encoding: chunked\r\n\r\n{len(statement):x}\r\n{statement}\r\n",
        f"Content-Length: {len(statement) + 4}\r\n\r\n{statement}",
    ):
        with socket.create_connection((front.host, front.port), timeout=20) as connection:
            connection.sendall((head + cut).encode())
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
    assert rows(client) == []


def test_wrong_credentials_give_516(front: Front) -> None:
    for user, password in (("default", "wrong"), ("nobody", front.password), ("default", "")):
        with pytest.raises(DatabaseError) as caught:
            clickhouse_connect.get_client(
                host=front.host, port=front.port, username=user, password=password
            )
        assert caught.value.code == 516


def test_listens_on_loopback_only(front: Front) -> None:
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", front.port), timeout=2):
        pass


def test_async_client(front: Front, client: Client) -> None:
    pytest.importorskip("aiohttp", reason="the async client needs clickhouse-connect[async]")

    async def scenario() -> list[Any]:
        asynchronous = await clickhouse_connect.get_async_client(
            host=front.host,
            port=front.port,
            username=front.user,
            password=front.password,
            database="llm",
        )
        try:
            await asynchronous.insert("t", [[1, "x"], [2, "y"]], column_names=["a", "s"])
            many = [asynchronous.query("select count() from t") for _ in range(8)]
            found = await asyncio.gather(*many)
            with pytest.raises(ClickHouseError):
                await asynchronous.command("select nothing")
        finally:
            await asynchronous.close()
        return [one.result_rows for one in found]

    assert asyncio.run(scenario()) == [[(2,)]] * 8


# Faults


def insert_one(client: Client) -> None:
    """Insert one row, by the one call of the client that never sends it twice."""
    client.command("insert into t format CSV", data="1,x")


def test_the_stock_client_replays_an_insert_whose_answer_was_lost(
    front: Front, client: Client
) -> None:
    """What callers must reckon with: ``insert`` and ``raw_insert`` of bytes land twice."""
    front.misbehave("drop", effect="done", inserts=True)
    client.insert("t", [[1, "x"]], column_names=["a", "s"])
    assert rows(client) == [(1, "x"), (1, "x")]
    front.misbehave("drop", effect="done", inserts=True)
    client.raw_insert("t", insert_block=b"2,y", fmt="CSV")
    front.misbehave("drop", effect="done", inserts=True)
    with pytest.raises(OperationalError):
        client.raw_insert("t", insert_block=io.BytesIO(b"3,z"), fmt="CSV")
    assert rows(client)[2:] == [(2, "y"), (2, "y"), (3, "z")]


@pytest.mark.parametrize("kind", ["drop", "answer", "hang"])
@pytest.mark.parametrize(("effect", "landed"), [("none", 0), ("done", 1)])
def test_no_answer_with_and_without_effect(
    front: Front, client: Client, connect: Connect, kind: str, effect: str, landed: int
) -> None:
    front.misbehave(kind, effect=effect, inserts=True, seconds=0.2)
    with pytest.raises((DatabaseError, OperationalError)):
        insert_one(client)
    assert len(rows(client)) == landed
    insert_one(client)
    assert len(rows(client)) == landed + 1


def test_hang_lasts_until_the_client_gives_up(
    front: Front, client: Client, connect: Connect
) -> None:
    hasty = connect(database="llm", send_receive_timeout=1)
    front.misbehave("hang", inserts=True)
    with pytest.raises(OperationalError):
        insert_one(hasty)
    assert rows(client) == []


def test_a_late_insert_is_seen_running_after_the_error(front: Front, client: Client) -> None:
    front.misbehave("drop", effect="late", inserts=True, seconds=2)
    with pytest.raises(OperationalError):
        client.command("insert into t format CSV", data="1,x", settings={"query_id": "late-one"})
    running = "select count() from system.processes where query_id = {id:String}"
    seen = []
    while (landed := rows(client)) == [] and (1,) not in seen:  # it begins in its own time
        seen += client.query(running, parameters={"id": "late-one"}).result_rows
    assert ((1,) in seen, landed) == (True, [])
    until = time.monotonic() + 20
    while not rows(client) and time.monotonic() < until:
        time.sleep(0.1)
    assert len(rows(client)) == 1
    assert client.query(running, parameters={"id": "late-one"}).result_rows == [(0,)]


def test_a_running_query_is_killed_by_the_clients_name(client: Client, connect: Connect) -> None:
    other = connect()
    failed: list[DatabaseError] = []

    def run() -> None:
        try:
            # A minute of short steps, and no row before the end: it is killed between two of them.
            other.query(
                "select sum(sleep(0.1)) from numbers(600)",
                settings={"query_id": "long-one", "max_block_size": 1},
            )
        except DatabaseError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    # Again, as what is killed while it begins may go on.
    while thread.is_alive():
        client.command("kill query where query_id = 'long-one' async")
        time.sleep(0.1)
    thread.join()
    assert [error.code for error in failed] == [394]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_answers_with_a_status(front: Front, client: Client, status: int) -> None:
    front.misbehave("answer", status=status, code=252, inserts=True)
    with pytest.raises(DatabaseError) as caught:
        insert_one(client)
    assert caught.value.code == 252
    front.misbehave("answer", status=status, inserts=True, effect="done")
    with pytest.raises(DatabaseError) as caught:
        insert_one(client)
    assert caught.value.code is None
    assert len(rows(client)) == 1


def test_slow_answers_come(front: Front, client: Client) -> None:
    front.misbehave("slow", seconds=0.5)
    started = time.monotonic()
    insert_one(client)
    assert time.monotonic() - started >= 0.5
    assert len(rows(client)) == 1


@pytest.mark.parametrize(
    "sql", ["select number from numbers(100000)", "insert into t values (1, '')"]
)
def test_truncated_answers_are_noticed(front: Front, client: Client, sql: str) -> None:
    front.misbehave("truncate", contains=sql)
    with pytest.raises((OperationalError, DatabaseError)):
        client.command(sql)
    assert front.stats()["faults"][0]["done"] == 1
    if sql.startswith("insert"):
        assert len(rows(client)) == 1


def test_a_lost_session_forgets_its_tables(front: Front, connect: Connect) -> None:
    session = connect(session_id="lost")
    session.command("create temporary table mine (a Int64)")
    front.misbehave("lose_session", contains="mine")
    with pytest.raises(DatabaseError) as caught:
        session.command("select a from mine")
    assert caught.value.code == 60


def test_refuses_connections_and_takes_them_again(front: Front, client: Client) -> None:
    front.refuse()
    with pytest.raises(OperationalError):
        rows(client)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((front.host, front.port), timeout=5)
    front.behave()
    assert rows(client) == []


@pytest.mark.parametrize(("effect", "landed"), [("none", 0), ("done", 1)])
def test_restart_in_the_middle_keeps_path_port_and_faults(
    front: Front, client: Client, effect: str, landed: int
) -> None:
    front.misbehave("restart", effect=effect, inserts=True)
    front.misbehave("answer", contains="never asked")
    pid = front.pid
    with pytest.raises(OperationalError):
        insert_one(client)
    until = time.monotonic() + 20
    while not client.ping() and time.monotonic() < until:
        time.sleep(0.05)
    assert len(rows(client)) == landed
    stats = front.stats()
    assert front.pid == pid
    assert [fault["done"] for fault in stats["faults"]] == [1, 0]


def test_kill_and_start_again(front: Front, client: Client) -> None:
    insert_one(client)
    front.kill()
    assert front.pid is None
    with pytest.raises(OperationalError):
        rows(client)
    front.start()
    assert rows(client) == [(1, "x")]
    front.restart()
    assert rows(client) == [(1, "x")]


def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    parent = (
        "import sys\nfrom tests.support.http_front import Front\n"
        "front = Front(sys.argv[1]).start()\nprint(front.pid, flush=True)\nsys.stdin.read()\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", parent, str(tmp_path / "db")],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    until = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_faults_strike_what_they_name() -> None:
    insert, query = b"/* c */ insert into t values (1)", b"select 1"
    fault = Fault("drop", inserts=True, skip=1, count=2)
    assert [fault.strikes(s) for s in (query, insert, insert, query, insert, insert)] == [
        *(False, False, True, False, True, False),
    ]
    named = Fault("drop", contains="into t ", count=None)
    assert [named.strikes(s) for s in (insert, query, insert)] == [True, False, True]
    runs = [
        [fault.strikes(query) for _ in range(200)]
        for fault in (
            Fault("drop", probability=0.3, count=None, seed=7),
            Fault("drop", probability=0.3, count=None, seed=7),
            Fault("drop", probability=0.3, count=None, seed=8),
        )
    ]
    assert runs[0] == runs[1] != runs[2]
    assert 30 < sum(runs[0]) < 90
    with pytest.raises(ValueError, match="none of hang, drop"):
        Fault("explode")


# dbt


PROJECT = {
    "dbt_project.yml": """
        name: mini
        version: "1.0"
        profile: mini
        flags: {send_anonymous_usage_stats: false}
        models: {+materialized: table}
        """,
    "profiles.yml": """
        mini:
          target: server
          outputs:
            server:
              type: clickhouse
              host: "{{ env_var('FRONT_HOST') }}"
              port: "{{ env_var('FRONT_PORT') | int }}"
              user: "{{ env_var('CLICKHOUSE_USERNAME') }}"
              password: "{{ env_var('CLICKHOUSE_PASSWORD') }}"
              schema: mini
              threads: 2
        """,
    "seeds/names.csv": 'id,name\n1,"a;b"\n2,"c\'d"\n3,"e\n\nf"\n',
    "seeds/_seeds.yml": """
        seeds:
          - name: names
            config: {column_types: {id: Int64, name: String}}
        """,
    "models/named.sql": "select id, upper(name) as name from {{ ref('names') }}",
    "models/seen.sql": "{{ config(materialized='view') }} select * from {{ ref('named') }}",
    "models/appended.sql": """
        {{ config(materialized='incremental', incremental_strategy='append', order_by='id') }}
        select id, name from {{ ref('seen') }}
        {% if is_incremental() %} where id not in (select id from {{ this }}) {% endif %}
        """,
    "models/replaced.sql": """
        {{ config(materialized='incremental', incremental_strategy='delete+insert',
                  unique_key='id', order_by='id') }}
        select id, name, rand64() as run from {{ ref('seen') }}
        """,
    "models/_models.yml": """
        models:
          - name: named
            config: {contract: {enforced: true}}
            columns:
              - {name: id, data_type: Int64, data_tests: [unique, not_null]}
              - {name: name, data_type: String}
        unit_tests:
          - name: test_named__is_upper_case
            model: named
            given:
              - {input: ref('names'), rows: [{id: 1, name: x}]}
            expect: {rows: [{id: 1, name: X}]}
        """,
}


def test_stock_dbt_clickhouse_builds_twice(front: Front, tmp_path: Path, client: Client) -> None:
    client.command("drop database if exists mini")
    for name, text in PROJECT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    environment = {
        **os.environ,
        **front.env("mini"),
        "FRONT_HOST": front.host,
        "FRONT_PORT": str(front.port),
        "DBT_PROFILES_DIR": str(tmp_path),
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
    }
    dbt = Path(sys.executable).parent / "dbt"
    for _ in range(2):
        done = subprocess.run(
            [dbt, "build"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        assert "ERROR=0" in done.stdout
    expected = [(1, "A;B"), (2, "C'D"), (3, "E\n\nF")]
    for table in ("named", "seen", "appended", "replaced"):
        found = client.query(f"select id, name from mini.{table} order by id").result_rows
        assert found == expected, table
    left = client.query("select name from system.tables where database = 'mini' order by name")
    assert [row[0] for row in left.result_rows] == [
        "appended",
        "named",
        "names",
        "replaced",
        "seen",
    ]
