"""Read traces back, always within one organization.

Owns the queries on `llm_traces_live`, which holds a trace as soon as its batch is landed, and
turning payload text into objects. Refuses to read without an organization; values are bound, and
payload columns are read only when they are asked for.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import operator
import os
import pickle
import queue
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from loader.errors import LoaderError, StoreError, UsageError
from loader.settings import Settings
from loader.store import Store, open_existing_store, plain_value, plain_values

__all__ = [
    "GROUPS",
    "ID_PREFIX",
    "Page",
    "Reader",
    "get_provider_trace_by_step_id",
    "payload_object",
    "require_organization",
]

ID_PREFIX = "provider_trace-"
GROUPS = {
    "model": "model",
    "provider": "provider",
    "agent": "agent_id",
    "organization": "organization_id",
    "call_type": "call_type",
    "day": "toDate(created_at, {time_zone:String})",
}
"""What usage can be grouped by, and the expression that is grouped by."""

_UNKNOWN_TABLE = 60
_UNKNOWN_DATABASE = 81
_MOST_ROWS = 10_000
# Microseconds since 1970, which fit an Int64, and an id.
_CURSOR = re.compile(r"(-?[0-9]{1,18}):(.+)", re.DOTALL)
_KEPT_STORES = 8
_HELPER_QUERIES = 32
_Result = TypeVar("_Result")

_PAYLOADS = ("request_json", "response_json", "llm_config_json")

_COLUMNS = (
    "id",
    "organization_id",
    "project_id",
    "agent_id",
    "agent_tags",
    "run_id",
    "step_id",
    "trace_id",
    "call_type",
    "provider",
    "model",
    "is_byok",
    "request_size_bytes",
    "response_size_bytes",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "latency_ms",
    "is_error",
    "error_type",
    "error_message",
    "billing_plan_type",
    "billing_cost_source",
    "billing_customer_id",
    "created_at",
    "usage_status",
    "response_model",
    "service_tier",
    "error_class",
    "finish_reason",
    "landed_at",
)

_STEP_COLUMNS = (
    "id",
    "organization_id",
    "project_id",
    "agent_id",
    "agent_tags",
    "run_id",
    "step_id",
    "trace_id",
    "call_type",
    "provider",
    "model",
    "created_at",
    "request_json",
    "response_json",
)

_USAGE_SUMS = (
    ("requests", "count()"),
    ("errors", "countIf(is_error)"),
    ("prompt_tokens", "sum(prompt_tokens)"),
    ("completion_tokens", "sum(completion_tokens)"),
    ("total_tokens", "sum(total_tokens)"),
    ("cached_input_tokens", "sum(cached_input_tokens)"),
    ("cache_write_tokens", "sum(cache_write_tokens)"),
    ("reasoning_tokens", "sum(reasoning_tokens)"),
    ("average_latency_ms", "avgOrNullIf(latency_ms, latency_ms > 0)"),
    ("request_bytes", "sum(request_size_bytes)"),
    ("response_bytes", "sum(response_size_bytes)"),
)


@dataclass(frozen=True)
class Page:
    """Some traces of a longer list.

    Attributes
    ----------
    traces : list of dict
        Column name to value, the newest first.
    next : str or None
        Give it as `after` to get what follows; None at the end.
    """

    traces: list[dict[str, Any]]
    next: str | None


_READERS: weakref.WeakSet[Reader] = weakref.WeakSet()


class Reader:
    """Reads from the store that the settings name; for threads and asyncio alike.

    Each method has a twin ending in ``_async``, which runs it in a thread. An embedded store is
    opened for each call and closed after it, so that loader and dbt get their turn; a process of
    its own does that, since the engine leaves descriptors behind in a process that opens it again
    and again. Connections to a server are kept.

    Parameters
    ----------
    settings : Settings, optional
        By default read from the environment.

    Notes
    -----
    Every method raises UsageError if the organization is empty, an argument cannot be, or dbt has
    not made the view yet; and StoreError if the store fails.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings.from_environment()
        self._is_embedded = self.settings.endpoint is None
        self._inherited: list[object] = []
        self._begin()
        _READERS.add(self)

    def _begin(self) -> None:
        self._kept: queue.LifoQueue[Store] = queue.LifoQueue(_KEPT_STORES)
        self._turn = threading.RLock()  # which tells who holds it
        self._embedded: _EmbeddedStore | None = None

    def _begin_in_child(self) -> None:
        """Leave to the parent what is its own: two that share a connection get each other's rows.

        It is not closed either, which would be said on that connection.
        """
        self._inherited += (self._kept, self._embedded)
        self._begin()

    def close(self) -> None:
        """Close kept connections."""
        with self._in_turn():
            if self._embedded is not None:
                self._embedded.close()
        while True:
            try:
                self._kept.get_nowait().close()
            except queue.Empty:
                return

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------ by name

    def get_provider_trace_by_step_id(
        self, step_id: str, organization_id: str
    ) -> dict[str, Any] | None:
        """Return the newest trace of a step with its payloads as objects.

        See :func:`get_provider_trace_by_step_id`.
        """
        with self._store() as store:
            return get_provider_trace_by_step_id(store, step_id, organization_id)

    def get_by_step_id(
        self, step_id: str, organization_id: str, *, payloads: bool = False
    ) -> dict[str, Any] | None:
        """Return the newest trace of a step, None if there is none.

        Parameters
        ----------
        step_id, organization_id : str
            Compared exactly.
        payloads : bool
            Read request, response and model configuration too, as objects.
        """
        return self._one("step_id", step_id, organization_id, payloads)

    def get_by_id(
        self, trace_id: str, organization_id: str, *, payloads: bool = False
    ) -> dict[str, Any] | None:
        """Return a trace by its id, with or without its prefix; None if there is none."""
        return self._one(
            "id", plain_value(trace_id).removeprefix(ID_PREFIX), organization_id, payloads
        )

    def list_by_agent(
        self,
        agent_id: str,
        organization_id: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        errors_only: bool = False,
        call_type: str | None = None,
        limit: int = 100,
        after: str | None = None,
        payloads: bool = False,
    ) -> Page:
        """Return an agent's traces, the newest first, page by page.

        Parameters
        ----------
        agent_id, organization_id : str
            Compared exactly.
        since, until : datetime, optional
            From (inclusive) and to (exclusive); without a zone they are UTC.
        errors_only : bool
            Failed calls only.
        call_type : str, optional
            Only calls of this type.
        limit : int
            Traces of a page, 10,000 at most.
        after : str, optional
            The `next` of the page before. Traces that arrive meanwhile shift nothing.
        payloads : bool
            Read the payloads too, as objects.
        """
        conditions = []
        parameters: dict[str, Any] = {"agent_id": agent_id, "limit": _rows(limit) + 1}
        if errors_only:
            conditions.append("is_error")
        if call_type is not None:
            conditions.append("call_type = {call_type:String}")
            parameters["call_type"] = call_type
        if after is not None:
            micros, last_id = _read_cursor(after)
            conditions.append(
                "(created_at, id) < (fromUnixTimestamp64Micro({after_at:Int64}, 'UTC'),"
                " {after_id:String})"
            )
            parameters |= {"after_at": micros, "after_id": last_id}
        traces = self._select(
            organization_id,
            conditions,
            parameters,
            "order by created_at desc, id desc limit {limit:UInt32}",
            payloads,
            since,
            until,
            name="agent_id = {agent_id:String}",
        )
        more = len(traces) > limit
        traces = traces[:limit]
        return Page(traces, _write_cursor(traces[-1]) if more else None)

    def usage(
        self,
        organization_id: str,
        group_by: str = "model",
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        time_zone: str = "UTC",
    ) -> list[dict[str, Any]]:
        """Sum up an organization's usage, the most tokens first (days in order).

        Parameters
        ----------
        organization_id : str
            Compared exactly.
        group_by : str
            One of :data:`GROUPS`; it is also the name of the group's column.
        since, until : datetime, optional
            From (inclusive) and to (exclusive).
        time_zone : str
            Where days begin, with ``group_by="day"``.

        Returns
        -------
        list of dict
            Requests, errors, tokens, bytes and the mean latency in ms of calls that have one;
            what no call of a group reported is None, not 0.
        """
        group_by, time_zone = plain_value(group_by), plain_value(time_zone)
        if not isinstance(group_by, str) or group_by not in GROUPS:
            raise UsageError(f"group_by is {group_by!r}: use one of {', '.join(GROUPS)}.")
        parameters: dict[str, Any] = {}
        if group_by == "day":
            try:
                ZoneInfo(time_zone)
            except (ZoneInfoNotFoundError, ValueError, OSError):
                raise UsageError(f"time_zone is {time_zone!r}: give a name like UTC.") from None
            parameters["time_zone"] = time_zone
        where = _where(organization_id, [], parameters, since, until)
        sums = ", ".join(f"{sum_} as {name}_" for name, sum_ in _USAGE_SUMS)
        order = "group_" if group_by == "day" else "total_tokens_ desc, group_"
        rows = self._run(
            lambda store: store.query(
                f"select {GROUPS[group_by]} as group_, {sums}"
                f" from {_traces(store, None, parameters)} where {where}"
                f" group by group_ order by {order}",
                parameters,
            )
        )
        names = (group_by, *(name for name, _ in _USAGE_SUMS))
        return [dict(zip(names, row, strict=True)) for row in rows]

    def largest_requests(
        self,
        organization_id: str,
        *,
        min_bytes: int = 0,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 100,
        payloads: bool = False,
    ) -> list[dict[str, Any]]:
        """Return the traces with the largest requests, in bytes, the largest first."""
        if not isinstance(min_bytes, int) or not 0 <= min_bytes < 2**63:
            raise UsageError(f"min_bytes is {min_bytes!r}: it must be a number from 0 on.")
        return self._select(
            organization_id,
            ["request_size_bytes >= {min_bytes:UInt64}"],
            {"min_bytes": min_bytes, "limit": _rows(limit)},
            "order by request_size_bytes desc, id limit {limit:UInt32}",
            payloads,
            since,
            until,
        )

    # ------------------------------------------------------------------------ from asyncio

    async def get_provider_trace_by_step_id_async(
        self, step_id: str, organization_id: str
    ) -> dict[str, Any] | None:
        """Do as `get_provider_trace_by_step_id`, in a thread."""
        return await asyncio.to_thread(self.get_provider_trace_by_step_id, step_id, organization_id)

    async def get_by_step_id_async(
        self, step_id: str, organization_id: str, **options: Any
    ) -> dict[str, Any] | None:
        """Do as `get_by_step_id`, in a thread."""
        return await asyncio.to_thread(self.get_by_step_id, step_id, organization_id, **options)

    async def get_by_id_async(
        self, trace_id: str, organization_id: str, **options: Any
    ) -> dict[str, Any] | None:
        """Do as `get_by_id`, in a thread."""
        return await asyncio.to_thread(self.get_by_id, trace_id, organization_id, **options)

    async def list_by_agent_async(
        self, agent_id: str, organization_id: str, **options: Any
    ) -> Page:
        """Do as `list_by_agent`, in a thread."""
        return await asyncio.to_thread(self.list_by_agent, agent_id, organization_id, **options)

    async def usage_async(
        self, organization_id: str, group_by: str = "model", **options: Any
    ) -> list[dict[str, Any]]:
        """Do as `usage`, in a thread."""
        return await asyncio.to_thread(self.usage, organization_id, group_by, **options)

    async def largest_requests_async(
        self, organization_id: str, **options: Any
    ) -> list[dict[str, Any]]:
        """Do as `largest_requests`, in a thread."""
        return await asyncio.to_thread(self.largest_requests, organization_id, **options)

    # --------------------------------------------------------------------------- the store

    def _one(
        self, column: str, value: str, organization_id: str, payloads: bool
    ) -> dict[str, Any] | None:
        found = self._select(
            organization_id,
            [],
            {"value": value},
            "order by created_at desc, landed_at desc, id desc limit 1",
            payloads,
            name=f"{column} = {{value:String}}",
        )
        return found[0] if found else None

    def _select(
        self,
        organization_id: str,
        conditions: Sequence[str],
        parameters: dict[str, Any],
        tail: str,
        payloads: bool,
        since: datetime | None = None,
        until: datetime | None = None,
        name: str | None = None,
    ) -> list[dict[str, Any]]:
        columns = _COLUMNS + (_PAYLOADS if payloads else ())
        named = [name] if name is not None else []
        where = _where(organization_id, [*named, *conditions], parameters, since, until)
        rows = self._run(
            lambda store: store.query(
                f"select {', '.join(columns)}"
                f" from {_traces(store, name, parameters)}"
                f" where {where} {tail}",
                parameters,
            )
        )
        traces = [_named(columns, row) for row in rows]
        if payloads:
            for trace in traces:
                for name in _PAYLOADS:
                    trace[name] = payload_object(trace[name])
        return traces

    def _run(self, action: Callable[[Store], _Result]) -> _Result:
        with self._store() as store:
            try:
                return action(store)
            except StoreError as error:
                raise _explained(store, error) from None

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Wait for the calls of other threads; refuse who is within one, as they would for ever."""
        if self._turn._is_owned():  # type: ignore[attr-defined]
            raise StoreError(
                "the reader was called from within a call of the same thread, by a signal's "
                "handler or a __del__: do it afterwards, or give it to another thread."
            )
        with self._turn:
            yield

    @contextmanager
    def _store(self) -> Iterator[Store]:
        """Give a store for one call."""
        if self._is_embedded:
            with self._in_turn():
                if self._embedded is None:
                    self._embedded = _EmbeddedStore(self.settings)
                yield self._embedded
            return
        try:
            store = self._kept.get_nowait()
        except queue.Empty:
            store = open_existing_store(self.settings)
        try:
            yield store
        except BaseException:
            # Whatever is wrong with it, and an answer that nobody waited for: begin anew.
            store.close()
            raise
        try:
            self._kept.put_nowait(store)
        except queue.Full:
            store.close()


def _after_fork_in_child() -> None:
    for reader in list(_READERS):
        reader._begin_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)


class _EmbeddedStore(Store):
    """The embedded store as far as reading goes, opened in a helper process for each query."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = settings.database
        self.is_embedded = True
        self._helper: subprocess.Popen[bytes] | None = None
        self._queries = 0
        self._numbers = itertools.count()

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Do as `Store.query`."""
        if self._queries >= _HELPER_QUERIES:
            self.close()
        if self._helper is None:
            root = str(Path(__file__).resolve().parents[1])
            path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
            self._helper = subprocess.Popen(
                # -P: nothing is imported from the directory that the server happens to be in.
                [sys.executable, "-P", "-m", "loader.reader"],
                env=os.environ | {"PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            self._queries = 0
        self._queries += 1
        helper = self._helper
        assert helper.stdin is not None
        assert helper.stdout is not None
        number = next(self._numbers)
        try:
            pickle.dump((number, self.settings, sql, plain_values(parameters)), helper.stdin)
            helper.stdin.flush()
            answered, answer = pickle.load(helper.stdout)
            if answered != number:
                raise EOFError
        except (OSError, EOFError, pickle.UnpicklingError):
            self.close()
            raise StoreError(
                f"the process that read the store {self.settings.store_name} ended: read again."
            ) from None
        except BaseException:
            # A time limit, say, of whoever called: the answer to come is not that of the next call.
            self.close()
            raise
        if isinstance(answer, LoaderError):
            raise answer
        rows: list[tuple[Any, ...]] = answer
        return rows

    def close(self) -> None:
        """End the helper."""
        helper, self._helper = self._helper, None
        self._queries = 0
        if helper is not None:
            helper.kill()
            for pipe in (helper.stdin, helper.stdout):
                with suppress(OSError):
                    if pipe is not None:
                        pipe.close()
            helper.wait()


def _help() -> None:
    """Answer queries on standard input until it ends: the helper process."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            number, settings, sql, parameters = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer: list[tuple[Any, ...]] | LoaderError
        try:
            with open_existing_store(settings) as store:
                answer = store.query(sql, parameters)
        except LoaderError as error:
            answer = error
        pickle.dump((number, answer), answers)
        answers.flush()


def get_provider_trace_by_step_id(
    store: Store, step_id: str, organization_id: str
) -> dict[str, Any] | None:
    """Return the newest trace of a step in an organization.

    Parameters
    ----------
    store : Store
        Where dbt has made llm_traces_live.
    step_id, organization_id : str
        Compared exactly.

    Returns
    -------
    dict or None
        The trace's names and payloads: `id` with its prefix, `created_at` an aware time,
        `request_json` and `response_json` as objects (see `payload_object`). None if the
        organization has no such step.

    Raises
    ------
    UsageError
        If the view does not exist yet.
    StoreError
        If the store fails.
    """
    parameters: dict[str, Any] = {"step_id": step_id}
    name = "step_id = {step_id:String}"
    where = _where(organization_id, [name], parameters)
    try:
        rows = store.query(
            f"select {', '.join(_STEP_COLUMNS)}"
            f" from {_traces(store, name, parameters, _STEP_COLUMNS)}"
            f" where {where}"
            " order by created_at desc, landed_at desc, id desc"
            " limit 1",
            parameters,
        )
    except StoreError as error:
        raise _explained(store, error) from None
    if not rows:
        return None
    trace = _named(_STEP_COLUMNS, rows[0])
    trace["id"] = ID_PREFIX + trace["id"]
    trace["request_json"] = payload_object(trace["request_json"])
    trace["response_json"] = payload_object(trace["response_json"])
    return trace


def payload_object(text: str | bytes) -> dict[str, Any]:
    """Turn a stored payload into an object.

    Returns
    -------
    dict
        The object itself; `{}` for no text at all; `{"_value": x}` for JSON that is no object;
        `{"_raw": text}` for text that is no JSON.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    if not text:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {"_raw": text}
    return value if isinstance(value, dict) else {"_value": value}


def require_organization(organization_id: object) -> None:
    """Refuse to go on without the name of an organization.

    Raises
    ------
    UsageError
        If it is empty or no text.
    """
    if not isinstance(organization_id, str) or not organization_id:
        raise UsageError("no organization: traces are read within one organization only.")


def _where(
    organization_id: str,
    conditions: Sequence[str],
    parameters: dict[str, Any],
    since: datetime | None = None,
    until: datetime | None = None,
) -> str:
    """Write the conditions, the organization always among them, and bind their values."""
    require_organization(organization_id)
    parameters["organization_id"] = organization_id
    written = ["organization_id = {organization_id:String}", *conditions]
    for name, sign, moment in (("since", ">=", since), ("until", "<", until)):
        if moment is not None:
            written.append(f"created_at {sign} fromUnixTimestamp64Micro({{{name}:Int64}}, 'UTC')")
            parameters[name] = _micros(moment)
    return " and ".join(written)


def _micros(moment: datetime) -> int:
    """Count microseconds since 1970; a time without a zone is UTC."""
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    since = aware - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _rows(limit: int) -> int:
    try:
        rows = operator.index(limit)
    except TypeError:
        rows = 0
    if not 1 <= rows <= _MOST_ROWS:
        raise UsageError(f"limit is {limit!r}: it must be a number from 1 to {_MOST_ROWS}.")
    return rows


def _write_cursor(trace: dict[str, Any]) -> str:
    return f"{_micros(trace['created_at'])}:{trace['id']}"


def _read_cursor(text: str) -> tuple[int, str]:
    found = _CURSOR.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise UsageError("after is not the next of a page: give it as it was returned.")
    return int(found[1]), found[2]


def _named(columns: Sequence[str], row: Sequence[Any]) -> dict[str, Any]:
    """Give a row's values their names; a time has its zone, UTC, which the client leaves out."""
    return {
        name: value.replace(tzinfo=UTC)
        if isinstance(value, datetime) and value.tzinfo is None
        else value
        for name, value in zip(columns, row, strict=True)
    }


def _traces(
    store: Store,
    name: str | None,
    parameters: Mapping[str, Any],
    columns: Sequence[str] | None = None,
) -> str:
    """Say what to read: `llm_traces_live`, or `llm_traces` where the two give the same answer.

    The live view reads the responses of what is pending, which costs the engine seconds of
    planning even for one row, or for none. So what is pending is asked first whether any of it is
    the organization's and of that name, which its envelopes tell. Looking into `llm_traces` first
    would be as quick and wrong: a step's newest trace may be the one that is pending.

    Parameters
    ----------
    store : Store
        The store.
    name : str or None
        A condition on one id column, beside that on the organization.
    parameters : mapping
        The values bound in the conditions.
    columns : sequence of str, optional
        If none of what is read comes from the parsing of responses: what is read. Then a trace
        that is pending is read without it, several times as quickly.

    Notes
    -----
    A batch that lands after this look is read by the next call. One that is transformed after it
    is in `llm_traces` already when it ceases to be pending.
    """
    conditions = ["organization_id = {organization_id:String}", *([name] if name else [])]
    where = " and ".join(conditions)
    transformed, pending = store.table("llm_traces"), store.table("int_traces__pending")
    is_pending = store.query(
        f"select 1 from {store.table('int_traces__unioned')}"
        f" where batch_id in (select batch_id from {store.table('int_batches__pending')})"
        f" and {where} limit 1",
        parameters,
    )
    if not is_pending:
        return transformed
    if columns is None:
        return store.table("llm_traces_live")
    # As the live view has it: an id that was transformed stays what it was.
    wanted = ", ".join((*columns, "landed_at"))
    known = f"select id from {transformed} where id in (select id from {pending} where {where})"
    return (
        f"(select {wanted} from {transformed} where {where} union all"
        f" select {wanted} from {pending} where {where} and id not in ({known}))"
    )


def _explained(store: Store, error: StoreError) -> StoreError | UsageError:
    """Say what to do where the view is missing."""
    if error.code in (_UNKNOWN_TABLE, _UNKNOWN_DATABASE):
        return UsageError(
            f"{store.database}.llm_traces_live does not exist in {store.settings.store_name}: "
            "run `dbt build` first; it makes the tables to read from."
        )
    return error


if __name__ == "__main__":
    _help()
