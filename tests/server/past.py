"""Run a module as its command does, under a clock that was set back: `past SECONDS MODULE …`."""

from __future__ import annotations

import datetime
import runpy
import sys
import time

import loader.batches
import loader.billing
import loader.documents
import loader.landing
import loader.writer


def set_back(seconds: float) -> None:
    """Let the wall clock be behind; the monotonic one goes on, as it does."""
    real_time, real_ns = time.time, time.time_ns

    class Past(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Past:
            return cls.fromtimestamp(real_time() - seconds, tz)

    time.time = lambda: real_time() - seconds
    time.time_ns = lambda: real_ns() - int(seconds * 1e9)
    clocked = (loader.batches, loader.billing, loader.documents, loader.landing, loader.writer)
    for module in clocked:
        module.datetime = Past  # type: ignore[attr-defined]


if __name__ == "__main__":
    set_back(float(sys.argv[1]))
    name = sys.argv[2]
    sys.argv[:] = [name, *sys.argv[3:]]
    runpy.run_module(name, run_name="__main__", alter_sys=True)
