"""Make the database and the raw tables, where they are missing.

Landing does so by itself; this verb is for setting up a store before anything is landed.
"""

from __future__ import annotations

import argparse

from loader.settings import Settings
from loader.store import open_store

EXAMPLES = """\
examples:
  python -m loader init
  CHDB_PATH=/var/lib/tokenledger python -m loader init
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments: there are none."""


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Make the tables and say where they are."""
    with open_store(settings) as store:
        store.ensure_raw_tables()
    print(f"raw tables are in {settings.database} at {settings.store_name}")
    return 0
