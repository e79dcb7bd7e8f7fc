"""The drop-in backend: whatever it is given, it stores or says once that it could not."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import enum
import json
import logging
import os
import signal
import threading
import types
import uuid
from pathlib import Path
from typing import Any

import pytest

from loader.backend import (
    MinimalTrace,
    ProviderTraceBackend,
    billing_context_from_headers,
    is_storing,
)
from loader.errors import StoreError, UsageError
from loader.spool import read_frames
from loader.writer import Writer, WriterOptions

ACTOR = types.SimpleNamespace(id="user-1", organization_id="org-actor")
MINIMAL = {"id": "provider_trace-1", "step_id": "step-1"}


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LETTA_STORE_LLM_TRACES", "TOKENLEDGER_SPOOL"):
        monkeypatch.delenv(name, raising=False)


def stored(spool: Path) -> list[Any]:
    return [
        json.loads(bytes(frame.payload))
        for path in sorted(spool.glob("*"))
        for frame in read_frames(path.read_bytes())
    ]


@dataclasses.dataclass
class Billing:
    plan_type: str | None = None
    cost_source: str | None = None
    customer_id: str | None = None


@dataclasses.dataclass
class Trace:
    id: str = "provider_trace-1"
    step_id: str | None = "step-1"
    request_json: dict[str, Any] = dataclasses.field(default_factory=lambda: {"q": 1})
    response_json: dict[str, Any] = dataclasses.field(default_factory=lambda: {"a": 2})
    org_id: str | None = None
    billing_context: Any = None
    created_at: Any = dataclasses.field(
        default_factory=lambda: datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    )


class Model:
    """A stand-in for a server's own class."""

    model_fields: dict[str, Any] = dict.fromkeys(
        ["id", "step_id", "request_json", "response_json", "org_id", "created_at"]
    )

    def __init__(self, **values: Any) -> None:
        for name in self.model_fields:
            setattr(self, name, values.get(name))


SHAPES: list[Any] = [
    Trace(),
    dataclasses.asdict(Trace()),
    types.SimpleNamespace(**vars(Trace())),
    Model(**vars(Trace())),
]


@pytest.mark.parametrize("trace", SHAPES, ids=["dataclass", "dict", "namespace", "model"])
def test_any_shape_is_stored_and_a_minimal_trace_comes_back(tmp_path: Path, trace: Any) -> None:
    backend = ProviderTraceBackend(tmp_path / "spool")
    given = asyncio.run(backend.create_async(actor=ACTOR, provider_trace=trace))
    again = backend.create_sync(ACTOR, trace)
    backend.close()
    first, second = stored(tmp_path / "spool")
    assert first == second
    assert first["org_id"] == "org-actor"
    assert (first["request_json"], first["response_json"]) == ({"q": 1}, {"a": 2})
    assert first["created_at"].startswith("2026-01-02T00:00:00")
    values = given if isinstance(given, dict) else vars(given)
    for name, value in {**MINIMAL, "request_json": {"q": 1}, "response_json": {"a": 2}}.items():
        assert values[name] == value
    assert type(again) is type(given)
    if isinstance(trace, Model):
        assert isinstance(given, Model)
        assert given.org_id is None, "minimal: no more than the four"


def test_the_traces_own_organization_wins(tmp_path: Path) -> None:
    backend = ProviderTraceBackend(tmp_path / "spool")
    backend.create_sync({"organization_id": "org-dict"}, Trace(org_id="org-own"))
    backend.create_sync({"organization_id": "org-dict"}, Trace())
    backend.create_sync(None, Trace())
    backend.close()
    assert [each["org_id"] for each in stored(tmp_path / "spool")] == ["org-own", "org-dict", None]


@pytest.mark.parametrize(
    "billing",
    [
        Billing("pro", "quota", "c-1"),
        {"plan_type": "pro", "cost_source": "quota", "customer_id": "c-1"},
        types.SimpleNamespace(plan_type="pro", cost_source="quota", customer_id="c-1"),
    ],
)
def test_the_billing_context_comes_along(tmp_path: Path, billing: Any) -> None:
    backend = ProviderTraceBackend(tmp_path / "spool")
    backend.create_sync(ACTOR, Trace(billing_context=billing))
    backend.close()
    (record,) = stored(tmp_path / "spool")
    assert record["billing_context"] == {
        "plan_type": "pro",
        "cost_source": "quota",
        "customer_id": "c-1",
    }


def test_headers_give_the_billing_context() -> None:
    want = {"plan_type": "pro", "cost_source": "credits", "customer_id": "c-1"}
    names = ["X-Billing-Plan-Type", "x-billing-cost-source", "X-BILLING-CUSTOMER-ID"]
    pairs = list(zip(names, want.values(), strict=True))
    assert billing_context_from_headers(dict(pairs)) == want
    assert billing_context_from_headers(pairs) == want
    raw = [(name.encode(), value.encode()) for name, value in pairs]
    assert billing_context_from_headers(raw) == want
    assert billing_context_from_headers(dict(pairs[:1])) == {
        "plan_type": "pro",
        "cost_source": None,
        "customer_id": None,
    }
    for nothing in ({}, None, [], {"X-Billing-Plan-Type": ""}, {"Accept": "*/*"}):
        assert billing_context_from_headers(nothing) is None


@pytest.mark.parametrize("word", ["false", "False", "0", "no", "OFF"])
def test_turned_off_it_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setenv("LETTA_STORE_LLM_TRACES", word)
    backend = ProviderTraceBackend(tmp_path / "spool")
    given = asyncio.run(backend.create_async(ACTOR, Trace()))
    sync = backend.create_sync(ACTOR, Trace())
    assert given == sync == MinimalTrace("provider_trace-1", "step-1", {"q": 1}, {"a": 2})
    assert not (tmp_path / "spool").exists()


def test_the_switch_says_yes_or_no() -> None:
    assert is_storing({})
    assert is_storing({"LETTA_STORE_LLM_TRACES": " true "})
    assert not is_storing({"LETTA_STORE_LLM_TRACES": "f"})
    with pytest.raises(UsageError, match="LETTA_STORE_LLM_TRACES"):
        is_storing({"LETTA_STORE_LLM_TRACES": "perhaps"})


class Hostile:
    """An object that fails at every touch."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("secret payload")


@pytest.mark.parametrize("make", [lambda: None, lambda: 42, Hostile, object, dict, lambda: Hostile])
def test_it_never_raises(tmp_path: Path, make: Any) -> None:
    trace = make()
    backend = ProviderTraceBackend(tmp_path / "spool")
    asyncio.run(backend.create_async(ACTOR, trace))
    backend.create_sync(ACTOR, trace)
    asyncio.run(backend.create_async(Hostile(), Trace()))
    asyncio.run(backend.get_by_step_id_async("step-1", Hostile()))
    backend.close()


def test_a_failure_is_told_once_until_it_works_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    spool = tmp_path / "missing" / "spool"
    backend = ProviderTraceBackend(spool)
    secret = Trace(request_json={"secret": "payload"})

    def lines() -> list[str]:
        return [
            each.getMessage()
            for each in caplog.records
            if each.levelno >= logging.ERROR and each.name == "tokenledger.backend"
        ]

    for _ in range(3):
        given = asyncio.run(backend.create_async(ACTOR, secret))
        assert given.request_json == {"secret": "payload"}
    assert len(lines()) == 1
    assert str(spool) in lines()[0]
    assert backend.failures == 3
    (tmp_path / "missing").mkdir()
    backend.create_sync(ACTOR, secret)
    assert len(stored(spool)) == 1
    for path in spool.iterdir():
        path.unlink()
    backend.close()
    spool.rmdir()
    spool.symlink_to(tmp_path)
    backend.create_sync(ACTOR, secret)
    assert len(lines()) == 2
    assert "payload" not in caplog.text


def test_a_full_spool_is_told_and_the_call_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = WriterOptions(max_spool_bytes=1, on_full="refuse")
    backend = ProviderTraceBackend(tmp_path / "spool", options)
    assert asyncio.run(backend.create_async(ACTOR, Trace())).id == "provider_trace-1"
    assert "drainer" in caplog.text


class FakeReader:
    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str]] = []

    def get_provider_trace_by_step_id(self, step_id: str, organization_id: str) -> Any:
        self.asked.append((step_id, organization_id))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def close(self) -> None:
        pass


class Known(str, enum.Enum):  # noqa: UP042 (what servers have)
    NAME = "name-1"


class Other(enum.Enum):
    NAME = 1


class Number(int, enum.Enum):
    SEVEN = 7


FOUND = {**MINIMAL, "request_json": {"q": 1}, "response_json": {}, "agent_id": "agent-1"}


def test_reading_is_by_the_actors_organization(tmp_path: Path) -> None:
    reader: Any = FakeReader(FOUND)
    backend = ProviderTraceBackend(tmp_path / "spool", reader=reader)
    found = asyncio.run(backend.get_by_step_id_async(step_id="step-1", actor=ACTOR))
    assert found == MinimalTrace("provider_trace-1", "step-1", {"q": 1}, {})
    assert reader.asked == [("step-1", "org-actor")]
    for nobody in (None, {}, types.SimpleNamespace(organization_id=None)):
        assert asyncio.run(backend.get_by_step_id_async("step-1", nobody)) is None
    assert len(reader.asked) == 1, "without an organization nothing is asked"
    backend = ProviderTraceBackend(tmp_path / "spool", reader=reader, trace_type=Model)
    assert isinstance(asyncio.run(backend.get_by_step_id_async("step-1", ACTOR)), Model)


@pytest.mark.parametrize(
    "name",
    [Known.NAME, Other.NAME, Number.SEVEN, 7, uuid.UUID(int=7)],
    ids=lambda name: type(name).__name__,
)
def test_a_name_is_read_as_it_was_written(tmp_path: Path, name: Any) -> None:
    reader: Any = FakeReader(None)
    actor = types.SimpleNamespace(organization_id=name)
    with contextlib.closing(ProviderTraceBackend(tmp_path / "spool", reader=reader)) as backend:
        backend.create_sync(actor, Trace(step_id=name))
        asyncio.run(backend.get_by_step_id_async(name, actor))
    (record,) = stored(tmp_path / "spool")
    assert reader.asked == [(str(record["step_id"]), str(record["org_id"]))]


def test_a_store_that_is_away_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader: Any = FakeReader(StoreError("the store is away"))
    backend = ProviderTraceBackend(tmp_path / "spool", reader=reader)
    for _ in range(3):
        assert asyncio.run(backend.get_by_step_id_async("step-1", ACTOR)) is None
    assert caplog.text.count("the store is away") == 1
    reader.answer = None
    assert asyncio.run(backend.get_by_step_id_async("step-1", ACTOR)) is None


def test_a_storm_of_tasks_keeps_the_loop_alive(tmp_path: Path) -> None:
    backend = ProviderTraceBackend(tmp_path / "spool", WriterOptions(fsync="each"))
    ticks = 0

    async def storm() -> None:
        nonlocal ticks

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        clock = asyncio.create_task(tick())
        await asyncio.gather(
            *(backend.create_async(ACTOR, Trace(id=f"provider_trace-{n}")) for n in range(2000))
        )
        clock.cancel()

    asyncio.run(storm())
    backend.close()
    assert backend.failures == 0
    assert len(stored(tmp_path / "spool")) == 2000
    assert ticks > 1


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_caller_that_is_cancelled_does_not_cancel_the_writing(
    tmp_path: Path, goes_on: bool
) -> None:
    """A client that hangs up has cost what it asked for; a loop that ends is counted."""
    backend = ProviderTraceBackend(tmp_path / "spool", WriterOptions(fsync="each"))

    async def hang_up() -> int:
        calls = [
            asyncio.create_task(backend.create_async(ACTOR, Trace(id=f"provider_trace-{n}")))
            for n in range(2000)
        ]
        await asyncio.sleep(0.02)
        for call in calls:
            call.cancel()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        while goes_on and backend._writes:
            await asyncio.sleep(0.01)
        return sum(isinstance(end, asyncio.CancelledError) for end in ends)

    assert asyncio.run(hang_up()) > 100
    backend.close()
    assert not backend._writes
    if goes_on:
        assert backend.failures == 0
        assert len(stored(tmp_path / "spool")) == 2000
    else:
        assert backend.failures > 0
        assert len(stored(tmp_path / "spool")) + backend.failures >= 2000


def test_a_forked_worker_stores_too(tmp_path: Path) -> None:
    backend = ProviderTraceBackend(tmp_path / "spool")
    backend.create_sync(ACTOR, Trace(id="provider_trace-parent"))
    pid = os.fork()
    if pid == 0:
        backend.create_sync(ACTOR, Trace(id="provider_trace-child"))
        backend.close()
        os._exit(0)
    os.waitpid(pid, 0)
    backend.close()
    assert sorted(each["id"] for each in stored(tmp_path / "spool")) == [
        "provider_trace-child",
        "provider_trace-parent",
    ]


def test_a_child_that_is_forked_within_the_first_write_waits_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_begun, may_go_on = threading.Event(), threading.Event()

    def make(*arguments: Any) -> Writer:
        if threading.current_thread() is not threading.main_thread():
            is_begun.set()
            may_go_on.wait()
        return Writer(*arguments)

    monkeypatch.setattr("loader.backend.Writer", make)
    backend = ProviderTraceBackend(tmp_path / "spool")
    other = threading.Thread(target=backend.create_sync, args=(ACTOR, Trace("provider_trace-p")))
    other.start()
    is_begun.wait()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        backend.create_sync(ACTOR, Trace("provider_trace-c"))
        backend.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    may_go_on.set()
    other.join()
    backend.close()
    assert sorted(each["id"] for each in stored(tmp_path / "spool")) == [
        "provider_trace-c",
        "provider_trace-p",
    ]


def test_writers_that_are_made_at_once_are_all_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a signal's handler writes within the first write."""
    backend = ProviderTraceBackend(tmp_path / "spool")
    is_first = True

    def make(*arguments: Any) -> Writer:
        nonlocal is_first
        if is_first:
            is_first = False
            backend.create_sync(ACTOR, Trace("provider_trace-handler"))
        return Writer(*arguments)

    monkeypatch.setattr("loader.backend.Writer", make)
    backend.create_sync(ACTOR, Trace("provider_trace-main"))
    backend.close()
    assert backend.failures == 0
    assert sorted(each["id"] for each in stored(tmp_path / "spool")) == [
        "provider_trace-handler",
        "provider_trace-main",
    ]
    assert [path.suffix for path in (tmp_path / "spool").iterdir()] == [".ready"]
