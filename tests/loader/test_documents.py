"""Statements of two runs at once: the outcome is that of one run after the other."""

from __future__ import annotations

import gzip
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loader import billing, bills
from loader.documents import read_text
from loader.errors import SourceError
from loader.settings import Settings
from loader.sources import Source, find_sources
from loader.store import Store
from tests.support.http_front import Front
from tests.support.project import Project


@dataclass(frozen=True)
class Verb:
    """A verb that lands statements, an old one about two places and a correction of the first."""

    name: str
    table: str
    model: str
    old: str
    new: str
    said: str
    in_force: str
    land: Callable[[Store, Path], None]


def land_bill(store: Store, file: Path) -> None:
    ((source,), _) = find_sources([str(file)])
    periods = bills.read_bill(source, store.settings, bills.read_formats())
    bills.land_periods(store, source.name, periods)


def land_subscriptions(store: Store, file: Path) -> None:
    ((source,), _) = find_sources([str(file)])
    found = list(billing.read_subscriptions(source, store.settings, []))
    billing.land_subscriptions(store, source.name, found)


HEADER = "date,provider,amount_usd\n"
TERMS = "organization_id,valid_from,plan_type\n"
VERBS = {
    "bills": Verb(
        name="bills",
        table="raw_provider_bills",
        model="stg_bills__lines",
        old=HEADER + "2026-10-18,p,1\n2026-10-18,p,2\n2026-10-19,p,3\n",
        new=HEADER + "2026-10-18,p,9\n",
        said="toString(sum(amount_usd))",
        in_force="amount_text from {table} where (provider, account, starts_at, content_hash) in"
        " (select provider, account, starts_at, argMax(content_hash, (known_at, content_hash))"
        " from {table} group by provider, account, starts_at) order by starts_at",
        land=land_bill,
    ),
    "billing": Verb(
        name="billing",
        table="raw_billing_accounts",
        model="stg_billing__accounts",
        old=TERMS + "o,2026-10-01,one\no,2026-10-01,two\no,2026-11-01,three\n",
        new=TERMS + "o,2026-10-01,nine\n",
        said="arrayStringConcat(groupArray(assumeNotNull(plan_type)), ' ')",
        in_force="argMax(plan_type, (known_at, landed_at, line, content_hash)) from {table}"
        " group by organization_id, valid_from order by valid_from",
        land=land_subscriptions,
    ),
}
HOLDS = {"bills": ["9", "3"], "billing": ["nine", "three"]}


@pytest.mark.parametrize("name", VERBS)
def test_what_is_not_there_after_an_insert_is_not_landed(
    front: Front, server: Project, name: str, tmp_path: Path
) -> None:
    verb = VERBS[name]
    file = tmp_path / "old.csv"
    file.write_text(verb.old)
    front.misbehave("answer", status=200, text="", inserts=True, contains=verb.table)
    assert "does not hold" in server.loader(name, str(file), expect=3).stderr
    front.behave()
    assert "landed" in server.loader(name, str(file)).stdout
    assert server.value(f"select count() from {verb.table}") > 0


@pytest.fixture(params=VERBS)
def verb(request: pytest.FixtureRequest) -> Verb:
    return VERBS[request.param]


@pytest.fixture
def files(verb: Verb, tmp_path: Path) -> tuple[Path, Path]:
    """Write the old document and the correction."""
    for name in ("old", "new"):
        (tmp_path / f"{name}.csv").write_text(getattr(verb, name))
    return tmp_path / "old.csv", tmp_path / "new.csv"


@pytest.fixture
def store(opened_store: Store) -> Iterator[Store]:
    opened_store.ensure_tables("landing/billing_tables.sql", "billing_tables_ddl", billing.TABLES)
    for table in billing.TABLES:
        opened_store.command(f"truncate table {opened_store.table(table)}")
    return opened_store


@pytest.fixture
def server(front: Front, tmp_path: Path) -> Project:
    return Project(tmp_path / "project", front.env("llm"))


@pytest.mark.parametrize("moment", range(3))
def test_an_old_document_that_lands_with_its_correction_does_not_undo_it(
    store: Store,
    verb: Verb,
    files: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    moment: int,
) -> None:
    """On another machine, that is: it lands both between two statements of a run."""
    old, new = files
    query, insert_rows = store.query, store.insert_rows
    seen: list[str] = []

    def meanwhile(what: str) -> None:
        seen.append(what)
        if len(seen) == moment + 1:
            with monkeypatch.context() as own:
                own.setattr(store, "query", query)
                own.setattr(store, "insert_rows", insert_rows)
                verb.land(store, old)
                verb.land(store, new)

    def asked(sql: str, *rest: Any) -> Any:
        meanwhile(sql)
        return query(sql, *rest)

    def inserted(table: str, *rest: Any) -> None:
        meanwhile(table)
        insert_rows(table, *rest)

    with monkeypatch.context() as watched:
        watched.setattr(store, "query", asked)
        watched.setattr(store, "insert_rows", inserted)
        verb.land(store, old)
    assert moment < len(seen)
    rows = store.query("select distinct " + verb.in_force.format(table=store.table(verb.table)))
    assert [row[0] for row in rows] == HOLDS[verb.name]


@pytest.mark.parametrize("moment", [{"contains": "argMax("}, {"inserts": True}], ids=str)
def test_a_second_run_on_one_machine_waits_for_the_first(
    front: Front, server: Project, verb: Verb, files: tuple[Path, Path], moment: dict[str, Any]
) -> None:
    old, new = map(str, files)
    server.loader(verb.name, stdin=verb.new.splitlines()[0] + "\n")
    front.misbehave("slow", seconds=4, **moment)
    first = server.start_loader(verb.name, old, "--json")
    wait_until(lambda: front.stats()["faults"][0]["done"])
    second = server.start_loader(verb.name, old, new, "--json")
    said, stderr = second.communicate(timeout=60)
    assert stderr.startswith("another run lands too: waiting up to 60 s for the file")
    assert second.returncode == 0
    summary = json.loads(said)
    assert sum(count for name, count in summary.items() if "already" in name) > 0, "of the old"
    said, stderr = first.communicate(timeout=60)
    # The package is one for all tests: one beside this may have had its turn before.
    assert stderr == "" or stderr.startswith("another run lands too: waiting")
    assert first.returncode == 0
    table = f"llm.{verb.table}"
    assert server.value(f"select count() from {table}") == 4, "each is landed once"
    rows = server.query("select distinct " + verb.in_force.format(table=table))
    assert [next(iter(row.values())) for row in rows] == HOLDS[verb.name]


def test_an_insert_that_takes_effect_late_undoes_and_doubles_nothing(
    front: Front, server: Project, verb: Verb, files: tuple[Path, Path]
) -> None:
    """Its answer was lost; it is landed again meanwhile, and corrected, by a slow clock."""
    old, new = map(str, files)
    server.loader(verb.name, stdin=verb.new.splitlines()[0] + "\n")
    front.misbehave("drop", effect="late", inserts=True, contains=verb.table, seconds=8)
    server.loader(verb.name, old, expect=3)
    past = server.start(
        sys.executable, "-m", "tests.server.past", "3600", "loader", verb.name, old, new
    )
    past.communicate(timeout=60)
    assert past.returncode == 0
    count = f"select count() from {verb.table}"
    assert server.value(count) == 4
    wait_until(lambda: server.value(count) == 7)
    rows = server.query("select distinct " + verb.in_force.format(table=verb.table))
    assert [next(iter(row.values())) for row in rows] == HOLDS[verb.name]
    if verb.name == "bills":
        server.dbt("seed", "--select", "bill_units")
    server.dbt("run", "--select", verb.model)
    said = server.value(f"select {verb.said} from (select * from {verb.model} order by all)")
    assert said == {"bills": "12", "billing": "nine three"}[verb.name]


def wait_until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("verb", ["billing", "bills"])
def test_a_folder_is_refused(embedded: Project, tmp_path: Path, verb: str) -> None:
    """Of a folder the files of traces are read, and others would be passed over."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.csv").write_text("x")
    done = embedded.loader(verb, str(folder), expect=2)
    assert f"{folder}: is a folder: name its files" in done.stderr


@pytest.mark.parametrize("damage", ["cut", "check"])
def test_of_a_broken_document_nothing_is_said_to_be_landed(tmp_path: Path, damage: str) -> None:
    packed = gzip.compress(b"date,provider,amount_usd\n" * 1000)
    file = tmp_path / "a.csv.gz"
    file.write_bytes(packed[:-20] if damage == "cut" else packed[:-8] + bytes(8))
    with pytest.raises(SourceError, match=r"damaged\. Nothing of it was landed"):
        read_text(Source(str(file), str(file), True), Settings())
