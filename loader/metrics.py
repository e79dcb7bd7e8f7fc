"""The status as Prometheus text, for a node exporter's textfile collector or a small server.

Owns names, types and escaping of the exposition format. Refuses to look at a store or a spool
itself: it is given what `loader status` found.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

__all__ = ["prometheus_text"]

_SPOOL = (
    ("records", "Records waiting in the spool."),
    ("bytes", "Bytes of the spool's segments."),
    ("segments_open", "Segments that a live process writes."),
    ("segments_ready", "Finished segments waiting for a drainer."),
    ("segments_stale", "Segments of dead processes, waiting for a drainer."),
    ("batches", "Batches claimed by a drainer and not landed yet."),
    ("damaged", "Segments with a torn or corrupt place, not landed yet."),
    ("foreign", "Entries of the spool directory that are not the spool's."),
    ("oldest_age_seconds", "Age of the oldest segment with records; 0 when there is none."),
)


def prometheus_text(
    status: Mapping[str, Any] | None, spool: Mapping[str, Any] | None, now: datetime
) -> str:
    """Write the status in Prometheus' text format.

    Parameters
    ----------
    status : mapping or None
        What the store holds, as `collect_status` returns it; None when it cannot be reached:
        ``tokenledger_store_up`` is 0 then, and its other metrics are absent.
    spool : mapping or None
        What :func:`loader.spool.spool_status` returns; None when no spool is named.
    now : datetime
        The time of asking, with zone: lags are counted to it.

    Returns
    -------
    str
        Lines with HELP and TYPE, ending in a line feed. What never happened has no line.
    """
    lines: list[str] = []

    def add(name: str, help_: str, value: Any, **labels: str) -> None:
        full = f"tokenledger_{name}"
        if f"# TYPE {full} gauge" not in lines:
            lines.extend((f"# HELP {full} {help_}", f"# TYPE {full} gauge"))
        text = ",".join(f'{key}="{_escape(each)}"' for key, each in labels.items())
        lines.append(f"{full}{{{text}}} {value}" if text else f"{full} {value}")

    add("store_up", "1 if the store could be read.", int(status is not None))
    if status is not None:
        for part in ("landed", "pending", "transformed"):
            for name in ("batches", "rows", "rejects"):
                if name in status[part]:
                    add(f"{part}_{name}", f"{part.capitalize()} {name}.", status[part][name])
        add(
            "unfinished_batches",
            "Batches with rows and no ledger row: a loader is at work, or was stopped.",
            status["unfinished_batches"],
        )
        add(
            "lost_batches",
            "Batches of which raw rows are lost: their sources are to be landed again.",
            status["lost_batches"],
        )
        for part, name in (
            ("landed", "last_landed_at"),
            ("transformed", "last_transformed_at"),
        ):
            moment = status[part].get(name)
            if moment:
                add(
                    f"{name.removesuffix('_at')}_timestamp_seconds",
                    f"When anything was {part} last, in seconds since 1970.",
                    round(datetime.fromisoformat(moment).timestamp(), 3),
                )
        oldest = status["pending"].get("oldest_landed_at")
        lag = (now - datetime.fromisoformat(oldest)).total_seconds() if oldest else 0
        add(
            "lag_seconds",
            "How long the oldest landed batch waits for dbt; 0 when none does.",
            round(max(0.0, lag), 3),
        )
        for reason, count in status["rejected_by_reason"].items():
            add("rejected", "Rejected records by reason.", count, reason=reason)
    if spool is not None:
        for name, help_ in _SPOOL:
            add(f"spool_{name}", help_, spool[name] or 0, spool=str(spool["path"]))
    return "\n".join(lines) + "\n"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
