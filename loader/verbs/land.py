"""Land traces from files, folders or standard input, byte for byte and exactly once.

Owns the arguments, the progress line and the summary. Landing itself is loader.landing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time

from loader.errors import LoaderError, SourceError, SourceTakenError, StoreError, UsageError
from loader.formats import Framer
from loader.landing import Summary, land_source
from loader.settings import MEBIBYTE, Settings
from loader.sources import STDIN, find_sources
from loader.store import open_store
from loader.verbs import as_line, printable

EXAMPLES = """\
examples:
  python -m loader traces.ndjson          land a file; again: only what is new in it
  python -m loader traces/ more.ndjson.gz land a folder (*.ndjson, *.jsonl, .gz, .zst) and a file
  my-server | python -m loader            land standard input
  python -m loader traces.ndjson --json   print the summary as JSON
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="file or folder; - or nothing: standard input"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument(
        "--max-record-mb",
        type=int,
        metavar="N",
        help="reject records above N MiB (default 64, or TOKENLEDGER_MAX_RECORD_BYTES)",
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Land, print the summary, and return 0, or 1 if records were rejected.

    A source that breaks off or that another process holds does not keep those after it from being
    landed.
    """
    if args.max_record_mb is not None:
        if args.max_record_mb < 1:
            raise UsageError("--max-record-mb is to be a whole number above 0.")
        settings = dataclasses.replace(settings, max_record_bytes=args.max_record_mb * MEBIBYTE)
    sources, skipped = find_sources(args.files or [STDIN])
    for path in skipped:
        print(f"skipped {printable(path)}: a link or no regular file", file=sys.stderr)
    framer = Framer.from_file()
    summary = Summary()
    broken: list[LoaderError] = []
    progress = _Progress()

    def tell(text: str) -> None:
        progress.clear()
        print(as_line(text), file=sys.stderr)

    with open_store(settings, tell) as store:
        store.ensure_raw_tables()
        for source in sources:
            try:
                land_source(store, source, framer, settings, summary, progress.show, tell)
            except (SourceError, SourceTakenError) as error:
                broken.append(error)
            except StoreError as error:
                broken.append(error)
                break
    progress.clear()
    print(_as_json(summary, settings) if args.json else _as_text(summary, settings))
    if broken:
        # What a run again would mend goes last: its exit code says so.
        *earlier, last = sorted(broken, key=lambda one: isinstance(one, StoreError))
        for one in earlier:
            print(as_line(f"python -m loader: {one}"), file=sys.stderr)
        raise last
    return 1 if summary.rejects else 0


def _as_text(summary: Summary, settings: Settings) -> str:
    parts = [
        f"landed {_count(summary.rows, 'trace')} in {_count(summary.batches, 'batch')}",
        f"{summary.rows_already:,} already there",
        f"{summary.rejects:,} rejected",
    ]
    if summary.reasons:
        reasons = ", ".join(f"{count:,} {word}" for word, count in summary.reasons.most_common())
        parts[-1] += f" ({reasons}; see: python -m loader rejects)"
    if summary.without_id:
        parts.append(f"{summary.without_id:,} without an id (one is derived)")
    if summary.repaired:
        parts.append(f"{summary.repaired:,} repaired (NaN or Infinity became null)")
    if summary.redacted:
        parts.append(f"{summary.redacted:,} redacted")
    where = f"{settings.database}.raw_traces at {settings.store_name}"
    return f"{'; '.join(parts)}; in {where}"


def _as_json(summary: Summary, settings: Settings) -> str:
    return json.dumps(
        {
            **vars(summary),
            "database": settings.database,
            "store": settings.store_name,
        }
    )


def _count(number: int, noun: str) -> str:
    plural = "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"


class _Progress:
    """One line on the terminal, a few times a second; nothing where there is no terminal."""

    def __init__(self) -> None:
        self._is_on = sys.stderr.isatty()
        self._began = self._shown = time.monotonic()

    def show(self, summary: Summary) -> None:
        now = time.monotonic()
        if not self._is_on or now - self._shown < 0.2:
            return
        self._shown = now
        rate = summary.bytes / MEBIBYTE / (now - self._began)
        print(
            f"\r\x1b[K{summary.rows:,} landed, {summary.rows_already:,} already there, "
            f"{summary.rejects:,} rejected, {rate:,.0f} MiB/s",
            end="",
            file=sys.stderr,
            flush=True,
        )

    def clear(self) -> None:
        if self._is_on:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
