"""A drop-in provider trace backend for a server: writes to the spool, reads from the ledger.

Owns the interface that such servers call (`create_async`, `create_sync`, `get_by_step_id_async`),
the billing context of a request's headers, and never failing the caller. It refuses to depend on a
server: any object or mapping with the fields of a provider trace will do, and so will any actor
with an ``organization_id``.

``LETTA_STORE_LLM_TRACES=false`` turns writing off. ``TOKENLEDGER_SPOOL`` names the spool.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from loader.errors import UsageError
from loader.writer import Writer, WriterOptions, to_mapping

if TYPE_CHECKING:
    from loader.reader import Reader

__all__ = ["MinimalTrace", "ProviderTraceBackend", "billing_context_from_headers", "is_storing"]

DEFAULT_SPOOL = "spool"
_BILLING_FIELDS = ("plan_type", "cost_source", "customer_id")
_OFF = frozenset({"0", "false", "f", "no", "n", "off"})
_ON = frozenset({"1", "true", "t", "yes", "y", "on"})
_log = logging.getLogger("tokenledger.backend")


@dataclass
class MinimalTrace:
    """What a backend gives back when the server's own class is not known."""

    id: str | None
    step_id: str | None
    request_json: dict[str, Any] = field(default_factory=dict)
    response_json: dict[str, Any] = field(default_factory=dict)

    def model_dump(self) -> dict[str, Any]:
        """Return the fields, as the server's models do."""
        return asdict(self)


def is_storing(environ: Mapping[str, str] | None = None) -> bool:
    """Tell whether ``LETTA_STORE_LLM_TRACES`` allows writing; unset or empty, it does.

    Raises
    ------
    UsageError
        If its value is neither yes nor no.
    """
    text = (os.environ if environ is None else environ).get("LETTA_STORE_LLM_TRACES", "")
    word = text.strip().lower()
    if word in _OFF:
        return False
    if word in _ON or not word:
        return True
    raise UsageError(f"LETTA_STORE_LLM_TRACES={text!r}: write true or false.")


def billing_context_from_headers(headers: Any) -> dict[str, str | None] | None:
    """Read the billing context that a gateway puts into a request's headers.

    Parameters
    ----------
    headers : mapping or iterable of pairs
        A request's headers, as a framework gives them; names in any case, text or bytes.

    Returns
    -------
    dict or None
        ``plan_type``, ``cost_source`` and ``customer_id`` from ``X-Billing-Plan-Type``,
        ``X-Billing-Cost-Source`` and ``X-Billing-Customer-Id``, null where one is missing;
        None when all are.
    """
    pairs = headers.items() if hasattr(headers, "items") else headers or ()
    found = {_text(name).strip().lower(): _text(value).strip() for name, value in pairs}
    context = {
        name: found.get(f"x-billing-{name.replace('_', '-')}") or None for name in _BILLING_FIELDS
    }
    return context if any(context.values()) else None


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


class ProviderTraceBackend:
    """Stores provider traces in the ledger, by way of the spool.

    Parameters
    ----------
    spool : path-like, optional
        The spool directory; by default ``TOKENLEDGER_SPOOL``, else ``./spool``.
    writer_options : WriterOptions, optional
        Fsync policy and limits; by default from the environment.
    reader : Reader, optional
        Reads back; by default one for the store that the environment names, made at the first
        read.
    trace_type : callable, optional
        Makes the traces given back, from ``id, step_id, request_json, response_json`` as keywords:
        the server's own class. By default the class of the trace that was given, and for reads
        that of the last trace written; :class:`MinimalTrace` where there is none.

    Notes
    -----
    Nothing here raises into the caller's path. A failure is logged once until a write succeeds
    again; :attr:`failures` counts them.
    """

    def __init__(
        self,
        spool: str | os.PathLike[str] | None = None,
        writer_options: WriterOptions | None = None,
        reader: Reader | None = None,
        trace_type: Callable[..., Any] | None = None,
    ) -> None:
        self._spool = spool or os.environ.get("TOKENLEDGER_SPOOL") or DEFAULT_SPOOL
        self._options = writer_options
        self._readers = [] if reader is None else [reader]
        self._trace_type = trace_type
        self._seen_type: Callable[..., Any] | None = None
        # The first is used; threads that begin at once make more. By no lock, for which a forked
        # child, or a signal's handler, would wait for ever.
        self._writers: list[Writer] = []
        if os.environ.get("TOKENLEDGER_REDACTION"):
            # The first write reads the rules: a child that is forked within an import waits for it
            # for ever.
            importlib.import_module("yaml")
            importlib.import_module("loader.formats")
        self._is_told = {"write": False, "read": False}
        self._writes: set[asyncio.Future[None]] = set()
        self.failures = 0

    async def create_async(self, actor: Any, provider_trace: Any) -> Any:
        """Store a trace; returns once it is as safe as the fsync policy says.

        Parameters
        ----------
        actor : object or mapping
            Its ``organization_id`` is used when the trace has no ``org_id``.
        provider_trace : object or mapping
            The trace: a pydantic model, a dataclass, a mapping, anything with its fields.

        Returns
        -------
        object
            A minimal trace: ``id``, ``step_id``, ``request_json``, ``response_json``.

        Notes
        -----
        A caller that is cancelled, as when its client hangs up, does not cancel the writing: the
        call was made, and is paid.
        """
        try:
            if is_storing():
                writer = self._open_writer()
                write = asyncio.ensure_future(writer.write_async(_record(actor, provider_trace)))
                self._writes.add(write)
                write.add_done_callback(self._end_write)
                await asyncio.wait([write])
        except Exception as error:
            self._fail("write", error)
        return self._minimal(provider_trace)

    def create_sync(self, actor: Any, provider_trace: Any) -> Any:
        """Store a trace from a thread; parameters and result are those of `create_async`."""
        try:
            if is_storing():
                self._open_writer().write(_record(actor, provider_trace))
                self._is_told["write"] = False
        except Exception as error:
            self._fail("write", error)
        return self._minimal(provider_trace)

    async def get_by_step_id_async(self, step_id: str, actor: Any) -> Any:
        """Read the newest trace of a step in the actor's organization.

        Returns
        -------
        object or None
            The trace with its request and response; None when there is none, or when the store
            cannot be read (which is logged once).
        """
        try:
            organization_id = _get(actor, "organization_id")
            if not organization_id:
                return None
            found = await asyncio.to_thread(self._read, step_id, organization_id)
            self._is_told["read"] = False
        except Exception as error:
            self._fail("read", error)
            return None
        if found is None:
            return None
        make = self._trace_type or self._seen_type
        return _make(make, **{name: found[name] for name in _MINIMAL_FIELDS})

    def close(self) -> None:
        """Flush and close the writer, and close the reader."""
        writers, self._writers = self._writers, []
        for writer in writers:
            writer.close()
        for reader in self._readers:
            reader.close()

    # ------------------------------------------------------------------------------------

    def _open_writer(self) -> Writer:
        writers = self._writers
        if not writers:
            writers.append(Writer(self._spool, self._options))
        return writers[0]

    def _read(self, *names: Any) -> Mapping[str, Any] | None:
        from loader.reader import Reader
        from loader.store import plain_value

        if not self._readers:
            self._readers.append(Reader())
        # As the writer writes them: what is no text or number becomes its text.
        step_id, organization_id = (str(plain_value(name)) for name in names)
        return self._readers[0].get_provider_trace_by_step_id(step_id, organization_id)

    def _end_write(self, write: asyncio.Future[None]) -> None:
        self._writes.discard(write)
        if write.cancelled():  # its event loop has ended
            self.failures += 1
        elif isinstance(error := write.exception(), Exception):
            self._fail("write", error)
        else:
            self._is_told["write"] = False

    def _fail(self, what: str, error: Exception) -> None:
        self.failures += 1
        if self._is_told[what]:
            return
        self._is_told[what] = True
        if what == "write":
            _log.error(
                "an LLM trace could not be stored: %s. Further failures are counted, not told, "
                "until a trace is stored again. See that the spool %s is writable and drained.",
                _describe(error),
                self._spool,
            )
        else:
            _log.error("LLM traces cannot be read back: %s. Told once.", _describe(error))

    def _minimal(self, trace: Any) -> Any:
        """Give back the minimal trace, of the server's own class where that can be made."""
        try:
            values: dict[str, Any] = {
                "id": _get(trace, "id"),
                "step_id": _get(trace, "step_id"),
                "request_json": _get(trace, "request_json") or {},
                "response_json": _get(trace, "response_json") or {},
            }
            if isinstance(trace, Mapping):
                return values if self._trace_type is None else _make(self._trace_type, **values)
            if hasattr(type(trace), "model_fields"):
                self._seen_type = type(trace)
            return _make(self._trace_type or self._seen_type, **values)
        except Exception as error:
            self._fail("write", error)
            return None


_MINIMAL_FIELDS = ("id", "step_id", "request_json", "response_json")


def _describe(error: Exception) -> str:
    """Say what failed without quoting a payload: only our own errors' texts are known not to."""
    from loader.errors import LoaderError

    return str(error) if isinstance(error, LoaderError) else type(error).__name__


def _get(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(name)
    return getattr(value, name, None)


def _make(make: Callable[..., Any] | None, **values: Any) -> Any:
    """Make a trace of the server's class; its checks may refuse (an id's pattern), then ours."""
    if make is not None:
        try:
            return make(**values)
        except Exception:
            _log.debug("the trace class %r does not take the minimal fields", make)
    return MinimalTrace(**values)


def _record(actor: Any, trace: Any) -> dict[str, Any]:
    """Build the record: the trace's fields, its organization, its billing context."""
    record = to_mapping(trace)
    if record is None:
        raise UsageError(f"a {type(trace).__name__} has no fields of a provider trace.")
    if not record.get("org_id"):
        record["org_id"] = _get(actor, "organization_id")
    billing = record.get("billing_context")
    if billing is not None and not isinstance(billing, Mapping):
        record["billing_context"] = to_mapping(billing) or {
            name: getattr(billing, name, None) for name in _BILLING_FIELDS
        }
    return record
