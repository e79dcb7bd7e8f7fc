"""Landing on a server that misbehaves: answers lost, refusals, a restart."""

from __future__ import annotations

import fcntl
import gzip
import json
import subprocess
import time
from pathlib import Path

import pytest

from loader.writer import Writer
from tests.support.http_front import Front
from tests.support.project import ROOT, Project

LINES = 400


@pytest.fixture
def project(front: Front, tmp_path: Path) -> Project:
    return Project(tmp_path / "project", front.env("llm") | {"TOKENLEDGER_BATCH_LINES": "20"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.ndjson"
    lines = [f'{{"request_json":{n}.0}}' if n % 5 else f"bad {n}" for n in range(LINES)]
    path.write_text("\n".join(lines) + "\n")
    return path


def check(project: Project) -> None:
    held = project.query(
        "select (select count() from raw_traces) as traces,"
        " (select uniqExact(request_json) from raw_traces) as texts,"
        " (select count() from raw_rejects) as rejects,"
        " (select count() from raw_batches) as batches,"
        " (select uniqExact(batch_id) from raw_batches) as ids"
    )[0]
    assert list(held.values()) == [LINES * 4 // 5, LINES * 4 // 5, LINES // 5, 20, 20]


@pytest.mark.parametrize("kind", ["drop", "answer"])
@pytest.mark.parametrize("effect", ["none", "done"])
def test_lost_answers_neither_lose_nor_double(
    front: Front, project: Project, file: Path, kind: str, effect: str
) -> None:
    project.loader("init")
    front.misbehave(kind, effect=effect, inserts=True, probability=0.2, count=None, seed=7)
    summary = json.loads(project.loader(str(file), "--json", expect=1).stdout)
    assert (summary["rows"], summary["rejects"]) == (LINES * 4 // 5, LINES // 5)
    assert front.stats()["faults"][0]["done"] >= 3
    front.behave()
    check(project)


@pytest.mark.parametrize("answers_lost", [0, 2])
def test_an_insert_that_takes_effect_after_the_retry_is_waited_for(
    front: Front, project: Project, file: Path, answers_lost: int
) -> None:
    project.loader("init")
    front.misbehave("drop", effect="late", inserts=True, contains="raw_traces", seconds=3)
    front.misbehave("answer", status=500, contains="system.processes", count=answers_lost)
    project.loader(str(file), expect=1)
    assert [fault["done"] for fault in front.stats()["faults"]] == [1, answers_lost]
    while project.value("select count() from system.processes where query ilike 'insert%'"):
        time.sleep(0.2)
    check(project)


def test_a_ledger_row_that_is_not_there_is_written_again(
    front: Front, project: Project, tmp_path: Path
) -> None:
    """Something on the way answers for the server; a spool would be removed."""
    project.loader("init")
    spool = tmp_path / "spool"
    with Writer(spool) as writer:
        writer.write({"request_json": 1, "id": "a"})
    front.misbehave("answer", status=200, text="", inserts=True, contains="raw_batches")
    project.loader("drain", str(spool))
    assert front.stats()["faults"][0]["done"] == 1
    front.behave()
    assert project.value("select count() from raw_batches") == 1
    assert project.value("select count() from raw_traces") == 1


@pytest.mark.parametrize(("kind", "status"), [("answer", 500), ("answer", 200), ("drop", 200)])
def test_what_a_landed_batch_goes_on_with_is_noted_though_the_insert_is_lost(
    front: Front, project: Project, tmp_path: Path, kind: str, status: int
) -> None:
    """The batch is in the ledger already, without that."""
    path, text = tmp_path / "a.ndjson", '{"request_json":1}\n'
    for part, rejects in ((text, 0), (text[:9], 1)):
        path.write_text(part)
        project.loader(str(path), expect=rejects)
    path.write_text(text)
    front.misbehave(
        kind, effect="none", status=status, text="", inserts=True, contains="raw_batches"
    )
    project.loader(str(path))
    assert front.stats()["faults"][0]["done"] == 1
    front.behave()
    noted = "select arrayJoin(continues) from raw_batches"
    assert project.value(f"select count() from raw_rejects where batch_id in ({noted})") == 1


@pytest.mark.parametrize("follow", [False, True])
def test_a_drain_that_is_stopped_says_whether_it_is_done(
    front: Front, project: Project, tmp_path: Path, follow: bool
) -> None:
    project.loader("init")
    spool = tmp_path / "spool"
    for id_ in "abc":
        with Writer(spool) as writer:
            writer.write({"request_json": 1, "id": id_})
    front.misbehave("slow", inserts=True, contains="raw_traces", seconds=2)
    drain = project.start_loader("drain", str(spool), "--max-rows", "1", *["--follow"][:follow])
    while not front.stats()["faults"][0]["done"]:
        time.sleep(0.05)
    drain.terminate()
    _, error = drain.communicate()
    assert drain.returncode == (0 if follow else 3)
    assert ("stopped before all was landed" in error) == (not follow)
    front.behave()
    project.loader("drain", str(spool))
    assert project.value("select count() from raw_traces") == 3


def test_a_book_whose_ledger_row_is_not_there_is_not_landed(front: Front, project: Project) -> None:
    front.misbehave("answer", status=200, text="", inserts=True, contains="raw_price_books")
    assert "after inserting it" in project.loader("prices", expect=3).stderr
    front.behave()
    assert "landed" in project.loader("prices").stdout
    assert project.value("select count() from raw_price_books") == 1


def test_a_book_that_a_killed_run_was_removing_is_landed_anew(project: Project) -> None:
    """Its delete goes on in the server, and takes what was counted."""
    project.loader("prices")
    rules = project.value("select count() from raw_price_rules")
    version = project.value("select price_book_version from raw_price_books")
    project.query(
        "system stop merges llm.raw_price_rules",
        f"alter table llm.raw_price_rules delete where price_book_version = '{version}'"
        " settings mutations_sync = 0",
    )
    landing = project.start_loader("prices")
    while project.value("select count() from system.mutations where not is_done") < 2:
        assert landing.poll() is None, landing.communicate()
        time.sleep(0.1)
    project.query("system start merges llm.raw_price_rules")
    assert "landed" in landing.communicate()[0]
    assert project.value("select count() from raw_price_rules") == rules


@pytest.mark.parametrize("verb", ["", "drain"])
@pytest.mark.parametrize("by", ["rules", "limits"])
def test_what_a_killed_loader_is_about_to_record_is_not_removed(
    front: Front, project: Project, tmp_path: Path, verb: str, by: str
) -> None:
    """Its ledger row takes effect after it, and after it the next one's insert fails once."""
    records = [{"request_json": "x" * (5000 if n == 3 else 10), "id": str(n)} for n in range(10)]
    source = tmp_path / "a.ndjson"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    if verb:
        source = tmp_path / "spool"
        writer = Writer(source)
        for record in records:
            writer.write(record)
        writer.close()
    rules = {"TOKENLEDGER_REDACTION": str(ROOT / "loader" / "redaction.example.yml")}
    project.loader("init")
    front.misbehave("drop", effect="late", inserts=True, contains="raw_batches", seconds=4)
    args = [verb, str(source)] if verb else [str(source)]
    project.env |= rules if by == "rules" else {}
    killed = project.start_loader(*args)
    while not front.stats()["faults"][0]["done"]:
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    front.behave()
    front.misbehave("answer", status=503, inserts=True, contains="raw_traces")
    project.env |= {"TOKENLEDGER_MAX_RECORD_BYTES": "4000"} if by == "limits" else {}
    project.loader(*args)
    front.behave()
    held = project.query("select distinct position from raw_traces order by position")
    assert [row["position"] for row in held] == list(range(10))
    assert project.value("select count() from raw_batches") == 1


RECORDING = "select count() from system.processes where position(query_id, '-ledger-') > 0"


def kill_while_recording(project: Project, process: subprocess.Popen[str]) -> None:
    """Kill a loader while the server inserts its ledger row, which goes on with that."""
    while not project.value(RECORDING):
        time.sleep(0.05)
    process.kill()
    process.wait()


@pytest.mark.parametrize("by", ["growth", "limits", "stream"])
def test_what_a_killed_loader_is_about_to_record_is_not_landed_by_another_cut(
    front: Front, project: Project, tmp_path: Path, by: str
) -> None:
    """The kill frees the file; the ledger row takes effect when the next has begun."""
    lines = [f'{{"request_json":{n}}}\n' for n in range(5)]
    path = tmp_path / "a.ndjson"
    path.write_text("".join(lines[:3]))
    project.loader("init")
    front.misbehave("slow", inserts=True, contains="raw_batches", seconds=4)
    if by == "stream":
        killed = project.start_loader("-", stdin=subprocess.PIPE)
        assert killed.stdin is not None
        killed.stdin.write(path.read_text())
        killed.stdin.close()
    else:
        killed = project.start_loader(str(path))
    kill_while_recording(project, killed)
    if by == "limits":
        project.env["TOKENLEDGER_BATCH_LINES"] = "2"
        lines = lines[:3]
    path.write_text("".join(lines))
    if by == "stream":
        project.loader("-", stdin=path.read_text())
    else:
        project.loader(str(path))
    while project.value(RECORDING):
        time.sleep(0.05)
    landed = "where batch_id in (select batch_id from raw_batches)"
    assert project.value(f"select count() from raw_traces {landed}") == len(lines)
    assert project.value(f"select uniqExact(request_json) from raw_traces {landed}") == len(lines)


def test_a_replay_that_was_killed_is_about_to_be_recorded_and_not_replayed_again(
    front: Front, project: Project, tmp_path: Path
) -> None:
    path = tmp_path / "a.ndjson"
    path.write_text("".join(json.dumps({"request_json": "x" * n}) + "\n" for n in (100, 300)))
    limit = "TOKENLEDGER_MAX_RECORD_BYTES"
    project.env[limit] = "90"
    project.loader(str(path), expect=1)
    front.misbehave("slow", inserts=True, contains="raw_batches", seconds=4)
    project.env[limit] = "250"
    killed = project.start_loader("rejects", "--replay")
    kill_while_recording(project, killed)
    del project.env[limit]
    refused = project.loader("rejects", "--replay", expect=3)
    assert "run it again" in refused.stderr
    project.loader("rejects", "--replay")
    assert project.value("select count() from raw_batches where startsWith(source, 'replay/')") == 2
    landed = "where batch_id in (select batch_id from raw_batches)"
    assert project.value(f"select count() from raw_traces {landed}") == 2
    assert project.loader("rejects").stdout == ""


def test_who_may_not_see_what_runs_inserts_nothing_again(
    front: Front, project: Project, file: Path
) -> None:
    project.loader("init")
    front.misbehave("drop", inserts=True, contains="raw_traces")
    front.misbehave("answer", status=403, code=497, contains="system.processes", count=None)
    done = project.loader(str(file), expect=3)
    assert "grant select(query_id) on system.processes to it" in done.stderr
    assert done.stderr.count("\n") == 1
    front.behave()
    project.loader(str(file), expect=1)
    check(project)


def test_a_part_of_a_batch_is_removed_and_landed_again(project: Project, file: Path) -> None:
    project.loader(str(file), expect=1)
    for what in ("raw_batches delete where 1", "raw_traces delete where position = 1"):
        project.query(f"alter table llm.{what} settings mutations_sync = 2")
    summary = json.loads(project.loader(str(file), "--json", expect=1).stdout)
    assert summary["rows"] == LINES * 4 // 5
    check(project)


def test_a_server_that_goes_away_for_good_exits_3_and_keeps_what_is_landed(
    front: Front, project: Project, file: Path
) -> None:
    project.loader("init")
    front.misbehave("answer", status=500, code=497, inserts=True, skip=15, count=None)
    done = project.loader(str(file), expect=3)
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    front.behave()
    summary = json.loads(project.loader(str(file), "--json", expect=1).stdout)
    assert summary["rows_already"] > 0
    check(project)


def test_a_second_loader_of_a_growing_file_waits_for_the_first(
    front: Front, project: Project, tmp_path: Path
) -> None:
    path = tmp_path / "growing.ndjson"
    path.write_text("".join(f'{{"request_json":{n}}}\n' for n in range(10)))
    project.loader("init")
    front.misbehave("slow", inserts=True, contains="raw_traces", seconds=4)
    first = project.start_loader(str(path))
    deadline = time.monotonic() + 60
    while not front.stats()["faults"][0]["done"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with path.open("a") as file:
        file.write("".join(f'{{"request_json":{n}}}\n' for n in range(10, 15)))
    second = project.start_loader(str(path))
    stdout, stderr = second.communicate(timeout=60)
    assert stderr == f"waiting up to 60 s for the file {path}, held by another process\n"
    assert stdout.startswith("landed 5 traces in 1 batch; 10 already there")
    stdout, stderr = first.communicate(timeout=60)
    assert (stderr, first.returncode, second.returncode) == ("", 0, 0)
    assert stdout.startswith("landed 10 traces in 1 batch")
    held = "select (select count() from raw_traces), (select count() from raw_batches)"
    assert list(project.query(held)[0].values()) == [15, 2]


def test_a_second_landing_of_the_price_book_waits_for_the_first(
    front: Front, project: Project
) -> None:
    front.misbehave("slow", inserts=True, contains="raw_price_rules", seconds=4)
    first = project.start_loader("prices")
    deadline = time.monotonic() + 60
    while not front.stats()["faults"][0]["done"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = project.start_loader("prices")
    stdout, stderr = second.communicate(timeout=60)
    assert stderr.startswith("another run lands too: waiting up to 60 s for the file")
    assert stdout.startswith("already there: price book")
    stdout, stderr = first.communicate(timeout=60)
    # The package is one for all tests: one beside this may have had its turn before.
    assert stderr == "" or stderr.startswith("another run lands too: waiting")
    assert (first.returncode, second.returncode) == (0, 0)
    assert stdout.startswith("landed price book")
    held = "select (select count() from raw_prices), (select count() from raw_price_rules)"
    book = project.query("select prices, rules from raw_price_books")
    assert [list(row.values()) for row in book] == [list(project.query(held)[0].values())]


@pytest.mark.parametrize("table", ["raw_prices", "raw_price_rules", "raw_price_books"])
def test_a_price_book_is_landed_once_though_an_insert_of_it_takes_effect_late(
    front: Front, project: Project, table: str
) -> None:
    front.misbehave("drop", effect="late", inserts=True, contains=table, seconds=4)
    project.loader("prices", expect=3)
    project.loader("prices")
    while project.value("select count() from system.processes where query ilike 'insert%'"):
        time.sleep(0.2)
    assert project.loader("prices").stdout.startswith("already there: price book")
    (book,) = project.query("select prices, rules from raw_price_books")
    held = "select (select count() from raw_prices), (select count() from raw_price_rules)"
    assert list(project.query(held)[0].values()) == list(book.values())


def test_who_may_not_see_what_runs_lands_a_price_book(front: Front, project: Project) -> None:
    front.misbehave("answer", status=403, code=497, contains="system.processes", count=None)
    assert project.loader("prices").stdout.startswith("landed price book")


def test_a_file_that_another_process_keeps_is_left_alone(
    front: Front, project: Project, file: Path
) -> None:
    project.loader("init")
    project.env["TOKENLEDGER_LOCK_TIMEOUT"] = "0.2"
    with file.open("rb") as kept:
        fcntl.flock(kept, fcntl.LOCK_EX)
        done = project.loader(str(file), expect=3)
    assert len(done.stderr.splitlines()) == 2
    assert f"{file}: " in done.stderr.splitlines()[1]
    assert project.value("select count() from raw_batches") == 0
    project.loader(str(file), expect=1)
    check(project)


def test_a_file_that_another_process_keeps_does_not_keep_the_others(
    project: Project, tmp_path: Path
) -> None:
    folder = tmp_path / "traces"
    folder.mkdir()
    for name in ("a", "kept", "z"):
        (folder / f"{name}.ndjson").write_text(f'{{"request_json":"{name}"}}\n')
    (folder / "b.ndjson.gz").write_bytes(gzip.compress(b'{"request_json":"b"}\n')[:12])
    project.env["TOKENLEDGER_LOCK_TIMEOUT"] = "0.2"
    with (folder / "kept.ndjson").open("rb") as kept:
        fcntl.flock(kept, fcntl.LOCK_EX)
        done = project.loader(str(folder), "--json", expect=3)
    assert json.loads(done.stdout)["rows"] == 2
    waiting, damaged, held = done.stderr.splitlines()
    assert waiting.startswith("waiting")
    assert "b.ndjson.gz" in damaged
    assert "kept.ndjson: another process holds this file" in held
    assert json.loads(project.loader(str(folder), "--json", expect=2).stdout)["rows"] == 1


@pytest.mark.parametrize(
    ("verb", "table", "text"),
    [
        (
            "billing",
            "raw_billing_accounts",
            "organization_id,valid_from,plan_type\no,2026-01-01,p\n",
        ),
        (
            "bills",
            "raw_provider_bills",
            "date,amount_usd,provider,model\n2026-01-01,1.5,openai,m\n",
        ),
        ("prices", "raw_price_books", None),
    ],
)
def test_a_few_rows_are_sent_once(
    front: Front,
    project: Project,
    tmp_path: Path,
    verb: str,
    table: str,
    text: str | None,
) -> None:
    """Their insert takes effect, and its answer is lost: the run fails, the next finds them."""
    arguments = [verb]
    if text is not None:
        (tmp_path / "few.csv").write_text(text)
        arguments.append(str(tmp_path / "few.csv"))
    front.misbehave("drop", effect="done", inserts=True, contains=table)
    project.loader(*arguments, expect=3)
    assert [fault["done"] for fault in front.stats()["faults"]] == [1]
    assert project.value(f"select count() from llm.{table}") == 1
    project.loader(*arguments)
    assert project.value(f"select count() from llm.{table}") == 1
