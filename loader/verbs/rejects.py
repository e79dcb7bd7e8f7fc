"""List the lines that were rejected: why, and where they stood; or land them again.

What was replayed, or was the beginning of a line that has come whole since, is no longer listed. A
line's own text is shown only when asked for, and then its head: it may hold what nobody else is to
see. It is kept whole in raw_rejects.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from loader.errors import UsageError
from loader.formats import Framer
from loader.replay import LINE, is_open, replay_rejects
from loader.settings import Settings
from loader.store import RAW_TABLES, Store, open_existing_store
from loader.verbs import as_line, printable

EXAMPLES = """\
examples:
  python -m loader rejects                the newest 20
  python -m loader rejects --limit 1000   more of them
  python -m loader rejects --show         with the first 200 characters of each line
  python -m loader rejects --json         one JSON object a line
  python -m loader rejects --all          those too that were landed since
  python -m loader rejects --replay       land again what a format added since can read
"""

_SHOWN_CHARACTERS = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object a reject, or the replay's summary",
    )
    parser.add_argument(
        "--all", action="store_true", help="list those too that were replayed or have come whole"
    )
    parser.add_argument(
        "--replay",
        action="store_true",
        help="land the rejected lines that are records now: a format was added, a limit was raised",
    )
    parser.add_argument(
        "--limit", type=int, default=20, metavar="N", help="list the newest N (default 20)"
    )
    parser.add_argument(
        "--show",
        action="store_true",
        help=f"print the first {_SHOWN_CHARACTERS} characters of each line too",
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print the rejects, newest first; or replay them: 1 then, if some stay rejected."""
    if args.limit < 1:
        raise UsageError("--limit is to be a whole number above 0.")
    if args.replay:
        return _replay(args, settings)
    with open_existing_store(settings) as store:
        rejects = list_rejects(store, args.limit, args.show, args.all)
    for reject in rejects:
        if args.json:
            print(json.dumps(reject))
            continue
        source = printable(reject["source"])
        print(f"{source}:{reject['line']}: " + as_line(f"{reject['reason']}: {reject['detail']}"))
        if args.show:
            print(f"    {json.dumps(reject['head'])}")
    return 0


def _replay(args: argparse.Namespace, settings: Settings) -> int:
    with open_existing_store(settings) as store:
        summary = replay_rejects(store, Framer.from_file(), settings)
        left = count_open(store)
    if args.json:
        counts = {"batches": summary.batches, "rows": summary.rows, "rejects": left}
        print(json.dumps(counts | {"database": settings.database, "store": settings.store_name}))
    else:
        print(f"landed {summary.rows:,} lines that were rejected; {left:,} stay rejected")
    return 1 if left else 0


def count_open(store: Store) -> int:
    """Count the rejects that are listed by default."""
    if not set(RAW_TABLES) <= store.tables():
        return 0
    count: int = store.query(
        f"select uniqExact({LINE}) from {store.table('raw_rejects')} where {is_open(store)}"
    )[0][0]
    return count


def list_rejects(
    store: Store, limit: int, with_head: bool = False, with_closed: bool = False
) -> list[dict[str, Any]]:
    """Return the newest rejects, each once.

    Parameters
    ----------
    store : Store
        The store; without raw tables there are none.
    limit : int
        The most to return.
    with_head : bool
        Whether `head`, the first characters of the line, is there too.
    with_closed : bool
        Whether those too that were replayed, or have come whole since.
    """
    if not set(RAW_TABLES) <= store.tables():
        return []
    names = ["reason", "source", "line", "byte_offset", "detail", "batch_id", "position"]
    text = f"toValidUTF8(left(raw, {4 * _SHOWN_CHARACTERS}))"
    head = f", leftUTF8({text}, {_SHOWN_CHARACTERS}) as head" if with_head else ""
    rows = store.query(
        f"select {', '.join(names)}, toString(landed_at){head}"
        f" from {store.table('raw_rejects')}"
        f" where {'true' if with_closed else is_open(store)}"
        " order by landed_at desc, source, line"
        f" limit 1 by {'batch_id, position' if with_closed else LINE}"
        " limit {limit:UInt64}",
        {"limit": limit},
    )
    names += ["landed_at", "head"] if with_head else ["landed_at"]
    return [dict(zip(names, map(_text, row), strict=True)) for row in rows]


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
