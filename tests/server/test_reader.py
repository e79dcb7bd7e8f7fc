"""Reading back: by step, id and agent, usage, within one organization, before and after dbt."""

from __future__ import annotations

import asyncio
import datetime
import enum
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loader.errors import StoreError, UsageError
from loader.reader import Reader, payload_object
from loader.settings import Settings
from loader.store import Store
from tests.support.http_front import Front
from tests.support.project import ROOT, Project

HOSTILE = [
    "org-1' or 1 = 1 --",
    "org-%",
    "org_1",
    "org-\\1",
    'org-"1',
    "org-1\0",
    "ORG-1",
    " org-1",
]


def record(number: int, **changes: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 10 * number, "completion_tokens": 1, "total_tokens": 10 * number + 1}
    return {
        "id": f"provider_trace-{number:04d}",
        "org_id": "org-1",
        "agent_id": f"agent-{number % 2}",
        "step_id": f"step-{number}",
        "call_type": "agent_step",
        "request_json": {"text": "x" * number, "n": 1.0},
        "response_json": {"usage": usage},
        "llm_config": {"model": "gpt-4o", "model_endpoint_type": "openai"},
        "created_at": f"2026-10-{1 + number // 10:02d}T{number % 10:02d}:30:00.000001Z",
    } | changes


RECORDS = [
    *(record(number) for number in range(1, 31)),
    record(31, org_id="org-2", step_id="step-1", response_json={"secret": True}),
    record(32, agent_id="agent-e", response_json={"error": {"message": "no", "type": "bad"}}),
    record(33, agent_id="agent-e", response_json=[1, 2]),
    record(34, agent_id="agent-e", call_type="summarization"),
]
LATE = [
    record(40, agent_id="agent-late"),
    record(41, step_id="step-2", created_at="2026-11-01T00:00:00Z"),
]
# An id that is known already, under another step and organization: it stays what it was.
REPEATED = [record(5, step_id="step-repeated"), record(6, org_id="org-2", step_id="step-6")]


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Give an embedded store with traces that dbt has seen, and two that it has not."""
    folder = tmp_path_factory.mktemp("reader")
    project = Project(folder / "project", {"CHDB_PATH": str(folder / "warehouse")})
    for name, records in (("first", RECORDS), ("late", LATE + REPEATED)):
        file = folder / f"{name}.ndjson"
        file.write_text("".join(json.dumps(each) + "\n" for each in records))
        project.loader(str(file))
        if name == "first":
            project.dbt("run", "--select", "+llm_traces_live", "+transformed_batches")
    return project


@pytest.fixture(scope="module", params=["embedded", "server"])
def store(
    request: pytest.FixtureRequest, warehouse: Project, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    """Give that store, and the same behind a server."""
    if request.param == "embedded":
        yield warehouse
        return
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(warehouse.env["CHDB_PATH"], folder / "server", symlinks=True)
    with Front(folder / "server", user="ledger", password="secret") as front:
        yield Project(folder / "project", front.env())


@pytest.fixture
def reader(store: Project) -> Iterator[Reader]:
    with Reader(Settings.from_environment(store.env)) as found:
        yield found


class Number(enum.IntEnum):
    """A caller's own kind of number."""

    ONE = 1


def ids(traces: list[dict[str, Any]]) -> list[int]:
    return [int(each["id"]) for each in traces]


def test_a_trace_is_read_by_step_and_by_id(reader: Reader) -> None:
    trace = reader.get_by_step_id("step-3", "org-1")
    assert trace is not None
    assert (trace["id"], trace["prompt_tokens"], trace["provider"]) == ("0003", 30, "openai")
    assert "request_json" not in trace, "payloads only when asked for"
    full = reader.get_by_id("provider_trace-0003", "org-1", payloads=True)
    assert full is not None
    assert full["request_json"] == {"text": "xxx", "n": 1.0}
    assert full["llm_config_json"] == {"model": "gpt-4o", "model_endpoint_type": "openai"}
    assert {name: full[name] for name in trace} == trace
    assert reader.get_by_id("0003", "org-1") == trace
    assert reader.get_by_id("nothing", "org-1") is None


def test_the_originals_reader_gives_the_newest_with_its_prefix(reader: Reader) -> None:
    trace = reader.get_provider_trace_by_step_id("step-2", "org-1")
    assert trace is not None
    assert trace["id"] == "provider_trace-0041", "the newest of the step, and not transformed yet"
    assert trace["created_at"] == datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)
    found = asyncio.run(reader.get_provider_trace_by_step_id_async("step-33", "org-1"))
    assert found is not None
    assert found["response_json"] == {"_value": [1, 2]}


def test_payloads_that_are_no_objects() -> None:
    assert payload_object("") == {}
    assert payload_object('{"a":1}') == {"a": 1}
    assert payload_object("null") == {"_value": None}
    assert payload_object('{"a":') == {"_raw": '{"a":'}
    assert payload_object(b"\xff") == {"_raw": "\ufffd"}
    assert payload_object("[" * 100_000) == {"_raw": "[" * 100_000}


def test_an_agents_traces_come_page_by_page(reader: Reader) -> None:
    seen: list[int] = []
    after = None
    for _ in range(10):
        page = reader.list_by_agent("agent-1", "org-1", limit=4, after=after)
        seen += ids(page.traces)
        after = page.next
        if after is None:
            break
    assert seen == [41, *range(29, 0, -2)]
    for after in (
        "nonsense",
        "--5:x",
        "9" * 5000 + ":x",
        "9" * 19 + ":x",
        "\u0663:x",
        "5:",
        "5",
        "",
    ):
        with pytest.raises(UsageError, match="after is not the next of a page"):
            reader.list_by_agent("agent-1", "org-1", after=after)
    assert reader.list_by_agent("agent-1", "org-1", after="-" + "9" * 18 + ":x").traces == []
    assert len(reader.list_by_agent("agent-1", "org-1", after="9" * 18 + ":\n").traces) == 16
    with pytest.raises(UsageError, match="limit"):
        reader.list_by_agent("agent-1", "org-1", limit=0)


def test_an_agents_traces_by_time_error_and_type(reader: Reader) -> None:
    since = datetime.datetime(2026, 10, 2, 1, 30, 0, 1, tzinfo=datetime.UTC)
    until = datetime.datetime(2026, 10, 2, 7, 30, 0, 1)
    page = reader.list_by_agent("agent-1", "org-1", since=since, until=until)
    assert ids(page.traces) == [15, 13, 11]
    page = reader.list_by_agent("agent-e", "org-1", errors_only=True)
    assert ids(page.traces) == [32]
    assert page.traces[0]["error_message"] == "no"
    page = asyncio.run(reader.list_by_agent_async("agent-e", "org-1", call_type="summarization"))
    assert ids(page.traces) == [34]


def test_usage_by_each_group(reader: Reader) -> None:
    (model,) = reader.usage("org-1", since=None)
    assert (model["model"], model["requests"], model["errors"]) == ("gpt-4o", 35, 1)
    billed = [*range(1, 31), 34, 40, 41]
    assert model["prompt_tokens"] == 10 * sum(billed)
    assert model["cached_input_tokens"] is None, "what nobody reported is unknown, not zero"
    assert model["average_latency_ms"] is None
    agents = {each["agent"]: each["requests"] for each in reader.usage("org-1", "agent")}
    assert agents == {"agent-0": 15, "agent-1": 16, "agent-e": 3, "agent-late": 1}
    assert [each["organization"] for each in reader.usage("org-2", "organization")] == ["org-2"]
    days = asyncio.run(reader.usage_async("org-1", "day"))
    named = [str(each["day"]) for each in days]
    assert named == sorted(named)
    assert named[0] == "2026-10-01"
    assert named[-1] == "2026-11-01"
    shifted = reader.usage("org-1", "day", time_zone="America/Los_Angeles")
    assert [each["requests"] for each in shifted] != [each["requests"] for each in days]
    for group in ("provider", "call_type"):
        assert sum(each["requests"] for each in reader.usage("org-1", group)) == 35
    with pytest.raises(UsageError, match="group_by"):
        reader.usage("org-1", "model; drop table x")
    with pytest.raises(UsageError, match="time_zone"):
        reader.usage("org-1", "day", time_zone="Nowhere/At All")


def test_the_largest_requests(reader: Reader) -> None:
    assert ids(reader.largest_requests("org-1", limit=3)) == [41, 40, 34]
    smallest = reader.get_by_id("0040", "org-1")
    assert smallest is not None
    found = reader.largest_requests("org-1", min_bytes=smallest["request_size_bytes"])
    assert ids(found) == [41, 40]


@pytest.mark.parametrize("organization", [*HOSTILE, "org-3"])
def test_nothing_is_read_across_organizations(reader: Reader, organization: str) -> None:
    assert reader.get_by_step_id("step-3", organization) is None
    assert reader.get_by_id("0003", organization) is None
    assert reader.get_provider_trace_by_step_id("step-3", organization) is None
    assert reader.list_by_agent("agent-1", organization).traces == []
    assert reader.usage(organization) == []
    assert reader.largest_requests(organization) == []


def test_every_name_gives_what_the_live_view_holds(store: Project, reader: Reader) -> None:
    """Also where something else is pending, and the answer is taken from llm_traces."""
    live = store.query("select id, organization_id, step_id, created_at from llm_traces_live")
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sorted(live, key=lambda row: str(row["created_at"])):
        newest[row["organization_id"], row["step_id"]] = row
    assert len(live) == len(RECORDS) + len(LATE)
    late = {"0040", "0041"}
    for row in (each for each in live if each["id"] in late or int(each["id"]) % 8 == 0):
        found = reader.get_by_id(row["id"], row["organization_id"])
        assert found is not None
        assert found["step_id"] == row["step_id"]
    for organization, step in (("org-1", "step-1"), ("org-2", "step-1"), ("org-1", "step-2")):
        row = newest[organization, step]
        found = reader.get_by_step_id(step, organization)
        assert found is not None
        assert found["id"] == row["id"]


# An embedded store is read in a process of its own, which cannot be listened to.
@pytest.mark.parametrize("store", ["server"], indirect=True)
def test_responses_are_read_only_where_what_is_pending_matters(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    query = Store.query

    def listen(self: Store, sql: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        asked.append(sql)
        return query(self, sql, parameters)

    monkeypatch.setattr(Store, "query", listen)

    def reads_live(call: Callable[[], object]) -> bool:
        asked.clear()
        call()
        return any("llm_traces_live" in sql for sql in asked)

    assert not reads_live(lambda: reader.get_by_step_id("step-3", "org-1"))
    assert not reads_live(lambda: reader.get_provider_trace_by_step_id("nothing", "org-1"))
    assert not reads_live(lambda: reader.list_by_agent("agent-0", "org-1"))
    assert not reads_live(lambda: reader.usage("org-3"))
    assert reads_live(lambda: reader.get_by_step_id("step-2", "org-1"))
    assert reads_live(lambda: reader.get_by_id("0040", "org-1"))
    assert reads_live(lambda: reader.list_by_agent("agent-late", "org-1"))


def test_the_originals_reader_gives_what_the_live_view_holds(
    store: Project, reader: Reader
) -> None:
    """It reads what is pending by a shorter way, which must lead to the same traces."""
    live = store.query(
        "select id, organization_id, step_id, request_json from llm_traces_live"
        " order by created_at desc, landed_at desc, id desc limit 1 by organization_id, step_id"
    )
    wanted = {"0040", "0041", "0031", "0003", "0006"}
    chosen = [row for row in live if row["id"] in wanted]
    assert {row["id"] for row in chosen} == wanted
    for row in chosen:
        found = reader.get_provider_trace_by_step_id(row["step_id"], row["organization_id"])
        assert found is not None
        assert found["id"] == f"provider_trace-{row['id']}"
        assert found["request_json"] == json.loads(row["request_json"])
    assert reader.get_provider_trace_by_step_id("step-repeated", "org-1") is None
    assert reader.get_provider_trace_by_step_id("step-6", "org-2") is None
    assert reader.get_by_step_id("step-repeated", "org-1") is None


def test_another_organizations_step_of_the_same_name(reader: Reader) -> None:
    first = reader.get_provider_trace_by_step_id("step-1", "org-1")
    second = reader.get_provider_trace_by_step_id("step-1", "org-2")
    assert first is not None
    assert second is not None
    assert (first["id"], second["id"]) == ("provider_trace-0001", "provider_trace-0031")


class OutOfTime(Exception):
    """What a worker's time limit raises in the middle of a call."""


def out_of_time(*_: Any) -> None:
    raise OutOfTime


def test_an_interrupted_read_leaves_no_answer_to_the_next(reader: Reader) -> None:
    """Two queries are a call: two answers left would be another organization's trace, whole."""
    before = signal.signal(signal.SIGALRM, out_of_time)
    interrupted = 0
    try:
        for seconds in (0.002, 0.005, 0.01, 0.02, 0.04, 0.08):
            for _ in range(2):
                try:
                    signal.setitimer(signal.ITIMER_REAL, seconds)
                    reader.get_by_step_id("step-1", "org-1")
                except (OutOfTime, StoreError):  # of a server's client
                    interrupted += 1
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            for organization in ("org-2", "org-1"):
                trace = reader.get_by_step_id("step-1", organization)
                assert trace is not None
                assert trace["organization_id"] == organization
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 2


def test_an_answer_to_another_question_is_none(warehouse: Project) -> None:
    """A forked child that ends may send what its parent was about to ask a second time."""
    with Reader(Settings.from_environment(warehouse.env)) as reader:
        assert reader.get_by_id("0003", "org-1") is not None
        helper = reader._embedded
        assert helper is not None
        assert helper._helper is not None
        assert helper._helper.stdin is not None
        pickle.dump((0, helper.settings, "select 'of another'", {}), helper._helper.stdin)
        with pytest.raises(StoreError, match="read again"):
            reader.get_by_id("0004", "org-1")
        trace = reader.get_by_id("0004", "org-1")
        assert trace is not None
        assert trace["id"] == "0004"


def test_a_forked_worker_reads_by_a_connection_of_its_own(reader: Reader, store: Project) -> None:
    """Two processes on one connection would get each other's answers."""
    assert reader.get_by_step_id("step-1", "org-1") is not None
    kept, helper = list(reader._kept.queue), reader._embedded
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            is_new = reader._kept.empty() and reader._embedded is None
            trace = reader.get_by_step_id("step-1", "org-2")
            code = not (is_new and trace is not None and trace["organization_id"] == "org-2")
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (list(reader._kept.queue), reader._embedded) == (kept, helper)
    trace = reader.get_by_step_id("step-1", "org-1")
    assert trace is not None
    assert trace["organization_id"] == "org-1"


def test_a_package_of_the_same_name_in_the_working_directory_is_not_imported(
    warehouse: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loader").mkdir()
    (tmp_path / "loader" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    with Reader(Settings.from_environment(warehouse.env)) as reader:
        assert reader.get_by_id("0003", "org-1") is not None


def test_no_organization_no_reading(reader: Reader) -> None:
    for call in (
        lambda: reader.get_by_step_id("step-3", ""),
        lambda: reader.usage(None),  # type: ignore[arg-type]
        lambda: reader.get_provider_trace_by_step_id("step-3", ""),
    ):
        with pytest.raises(UsageError, match="organization"):
            call()


def test_a_callers_own_kind_of_text_is_taken_as_its_text(reader: Reader) -> None:
    """No other process has its class, and what it says of itself may be something else."""

    class Name(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "something else"

    class Known(str, enum.Enum):  # noqa: UP042 (what servers have)
        ORGANIZATION = "org-1"
        AGENT = "agent-e"
        TYPE = "summarization"

    trace = reader.get_by_id("0003", "org-1")
    assert trace is not None
    assert reader.get_by_id(Name("provider_trace-0003"), Known.ORGANIZATION) == trace
    assert reader.get_by_step_id(Name("step-3"), Known.ORGANIZATION) == trace
    found = reader.get_provider_trace_by_step_id(Name("step-3"), Known.ORGANIZATION)
    assert found is not None
    assert found["id"] == "provider_trace-0003"
    first = reader.list_by_agent(Known.AGENT, Known.ORGANIZATION, limit=1)
    assert first.next is not None
    page = reader.list_by_agent(
        Known.AGENT, Name("org-1"), call_type=Known.TYPE, limit=Number.ONE, after=None
    )
    assert ids(page.traces) == ids(first.traces) == [34]
    page = reader.list_by_agent(Known.AGENT, Name("org-1"), after=Name(first.next))
    assert ids(page.traces) == [33, 32]
    days = reader.usage(Name("org-1"), Name("day"), time_zone=Name("UTC"))
    assert days == reader.usage("org-1", "day")
    assert type(next(iter(days[0]))) is str
    assert reader.largest_requests(Name("org-1"), min_bytes=Number.ONE)


@pytest.mark.parametrize("least", [-1, 2**64, 1.5, None])
def test_a_size_or_a_group_that_cannot_be_is_an_error_of_usage(reader: Reader, least: Any) -> None:
    with pytest.raises(UsageError, match="min_bytes is"):
        reader.largest_requests("org-1", min_bytes=least)
    with pytest.raises(UsageError, match="group_by is"):
        reader.usage("org-1", [least])  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [None, "1", 1.5, 0, 10_001])
def test_a_limit_that_cannot_be_is_an_error_of_usage(reader: Reader, limit: Any) -> None:
    with pytest.raises(UsageError, match="limit"):
        reader.list_by_agent("agent-0", "org-1", limit=limit)
    with pytest.raises(UsageError, match="limit"):
        reader.largest_requests("org-1", limit=limit)


@pytest.mark.parametrize("after", [1, "", "x", b"1:0001"])
def test_a_cursor_that_cannot_be_is_an_error_of_usage(reader: Reader, after: Any) -> None:
    with pytest.raises(UsageError, match="after"):
        reader.list_by_agent("agent-0", "org-1", after=after)


def test_threads_read_side_by_side(reader: Reader) -> None:
    async def all_at_once() -> list[Any]:
        return await asyncio.gather(
            *(reader.get_by_id_async(f"{number:04d}", "org-1") for number in range(1, 31))
        )

    assert ids(asyncio.run(all_at_once())) == list(range(1, 31))


def test_before_dbt_has_run_the_message_says_what_to_do(tmp_path: Path) -> None:
    with Front(tmp_path / "server", user="ledger", password="secret") as front:
        project = Project(tmp_path / "project", front.env())
        project.loader("init")
        with Reader(Settings.from_environment(project.env)) as reader:
            with pytest.raises(UsageError, match="dbt build"):
                reader.get_by_step_id("step-1", "org-1")
            front.kill()
            with pytest.raises(StoreError):
                reader.get_by_step_id("step-1", "org-1")


def test_an_embedded_store_is_left_after_each_read(warehouse: Project) -> None:
    script = (
        "import subprocess, sys\n"
        "from loader.reader import Reader\n"
        "reader = Reader()\n"
        "print(reader.get_by_step_id('step-3', 'org-1')['id'])\n"
        "subprocess.run([sys.executable, '-m', 'loader', 'status'], check=True)\n"
        "print(reader.get_by_step_id('step-3', 'org-1')['id'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=warehouse.env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[0] == done.stdout.split()[-1] == "0003"


def test_a_handler_within_a_read_is_refused(tmp_path: Path) -> None:
    """It would wait for the read that it has interrupted."""
    reader = Reader(Settings(chdb_path=tmp_path / "warehouse"))
    for call in (reader.close, lambda: reader.get_by_id("id", "org")):
        with (
            reader._in_turn(),
            pytest.raises(StoreError, match="from within a call of the same thread"),
        ):
            call()
    reader.close()
