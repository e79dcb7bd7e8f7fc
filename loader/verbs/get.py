"""Print the newest stored trace of a step as JSON.

It is readable as soon as it is landed, once dbt has made the tables. Exit code 1 means that the
organization has no such step.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime

from loader.reader import get_provider_trace_by_step_id
from loader.settings import Settings
from loader.store import open_existing_store

EXAMPLES = """\
examples:
  python -m loader get step-1 --organization org-1
  python -m loader get step-1 --organization org-1 --json | jq .response_json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("step_id", metavar="STEP_ID", help="the step, as the trace names it")
    parser.add_argument(
        "--organization", required=True, metavar="ORG", help="the organization that it belongs to"
    )
    parser.add_argument("--json", action="store_true", help="print it on one line")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print the trace; 1 if there is none."""
    with open_existing_store(settings) as store:
        trace = get_provider_trace_by_step_id(store, args.step_id, args.organization)
    if trace is None:
        print(
            f"no trace of step {args.step_id} in organization {args.organization}", file=sys.stderr
        )
        return 1
    trace["created_at"] = as_utc(trace["created_at"]).isoformat()
    # ASCII, so that a lone surrogate in a payload can be printed too.
    print(json.dumps(trace, indent=None if args.json else 2))
    return 0


def as_utc(moment: datetime) -> datetime:
    """Say that a time is in UTC: the store's are, and the client hands them over without a zone."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
