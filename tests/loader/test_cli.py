"""The command line, as a process: what it prints, where, and how it exits."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loader.cli import _Output
from loader.settings import Settings
from tests.support.project import ROOT, Project

TRACES = [
    '{"id":"provider_trace-1","org_id":"o","step_id":"s1","request_json":{ "a" : 1.0 },'
    '"response_json":{"b":"é"},"created_at":"2026-11-01T00:00:00Z"}',
    '{"protocol_version":3,"provider_trace_id":"2","request":{"z":1,"a":[]},"response":null}',
    '{"request_json":{"x":NaN},"response_json":[]}',
]
BAD = ["nope", "[1]", '{"a":1}']


def write(path: Path, lines: list[str], end: str = "\n") -> Path:
    path.write_text("\n".join(lines) + end)
    return path


def land(project: Project, *arguments: object, expect: int = 0) -> dict[str, Any]:
    done = project.loader(*map(str, arguments), "--json", expect=expect)
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def test_what_a_name_says_to_a_terminal_is_escaped(embedded: Project, tmp_path: Path) -> None:
    folder = tmp_path / "traces"
    folder.mkdir()
    for name in ("a", "b"):
        forged = folder / f"{name}\x1b[31m\x9b\nFAKE: landed.ndjson.gz"
        forged.write_bytes(b"\x1f\x8b no gzip")
    done = embedded.loader(str(folder), expect=2)
    assert len(done.stderr.splitlines()) == 2
    for verb in ("billing", "bills"):
        done = embedded.loader(verb, str(forged), expect=2)
        assert len(done.stderr.splitlines()) == 1
        assert "\\u001b[31m\\u009b\\u000aFAKE" in done.stderr


def test_lands_once_on_each_kind_of_store(project: Project, tmp_path: Path) -> None:
    file = write(tmp_path / "a.ndjson", [TRACES[0], *BAD, "", TRACES[1], TRACES[2]])
    first = land(project, file, expect=1)
    assert (first["rows"], first["rejects"], first["rows_already"]) == (3, 3, 0)
    assert first["reasons"] == {"not_json": 1, "not_an_object": 1, "unknown_format": 1}
    assert (first["without_id"], first["repaired"]) == (1, 1)
    again = land(project, file)
    assert (again["rows"], again["rejects"]) == (0, 0)
    assert (again["rows_already"], again["rejects_already"]) == (3, 3)
    with file.open("a") as grown:
        grown.write(TRACES[0] + "\n")
    assert land(project, file)["rows"] == 1
    database = project.env.get("CLICKHOUSE_DATABASE", "llm")
    rows = project.query(
        "select position, format, request_json, response_json, envelope_json, repairs"
        f" from {database}.raw_traces where batch_id in"
        f" (select batch_id from {database}.raw_batches where start_offset = 0) order by position"
    )
    assert [list(row.values()) for row in rows] == [
        [
            *(0, "provider_trace", '{ "a" : 1.0 }', '{"b":"é"}'),
            '{"id":"provider_trace-1","org_id":"o","step_id":"s1",'
            '"created_at":"2026-11-01T00:00:00Z"}',
            [],
        ],
        [
            *(4, "provider_trace_socket_v3", '{"z":1,"a":[]}', "null"),
            '{"protocol_version":3,"provider_trace_id":"2"}',
            [],
        ],
        [5, "provider_trace", '{"x":null}', "[]", "{}", ["non_finite_number"]],
    ]
    status = json.loads(project.loader("status", "--json").stdout)
    assert status["landed"] | {"last_landed_at": None} == {
        **{"batches": 2, "rows": 4, "rejects": 3},
        "last_landed_at": None,
    }
    assert (status["pending"]["rows"], status["transformed"]["rows"]) == (4, 0)
    assert status["unfinished_batches"] == 0
    assert status["rejected_by_reason"] == first["reasons"]


def test_the_summary_is_one_line_on_stdout(embedded: Project, tmp_path: Path) -> None:
    file = write(tmp_path / "a.ndjson", [*TRACES, *BAD])
    done = embedded.loader(str(file), expect=1)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
    for words in ("landed 3 traces in 1 batch", "0 already there", "3 rejected", "1 not_json"):
        assert words in done.stdout
    assert f"llm.raw_traces at {embedded.env['CHDB_PATH']}" in done.stdout


def test_rejects_are_listed_without_their_text(project: Project, tmp_path: Path) -> None:
    file = write(tmp_path / "a.ndjson", [TRACES[0], '{"secret":1}', "\x1b[31m" + "é" * 500])
    land(project, file, expect=1)
    plain = project.loader("rejects").stdout
    assert f"{file}:2: unknown_format: " in plain
    assert f"{file}:3: not_json: " in plain
    assert "secret" not in plain
    shown = project.loader("rejects", "--show").stdout
    assert "secret" in shown
    assert "\x1b" not in shown
    (newest,) = project.loader("rejects", "--json", "--show", "--limit", "1").stdout.splitlines()
    assert len(json.loads(newest)["head"]) <= 200
    assert len(project.loader("rejects", "--json").stdout.splitlines()) == 2
    raw = project.value("select raw from raw_rejects where line = 3")
    assert raw == "\x1b[31m" + "é" * 500


def test_standard_input_needs_no_argument(project: Project) -> None:
    lines = "\n".join(TRACES) + "\n"
    assert "landed 3 traces" in project.loader(stdin=lines).stdout
    assert "3 already there" in project.loader("-", stdin=lines).stdout
    assert project.query("select source from raw_batches") == [{"source": "stdin"}]


def test_nothing_to_land_is_no_error(project: Project, tmp_path: Path) -> None:
    (tmp_path / "empty.ndjson").write_bytes(b"")
    assert land(project, tmp_path / "empty.ndjson")["batches"] == 0
    assert "landed 0 traces" in project.loader(stdin="").stdout


def test_a_folder_with_packed_files(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "a.ndjson", TRACES[:1])
    (folder / "b.ndjson.gz").write_bytes(gzip.compress((TRACES[1] + "\r\n").encode()))
    (folder / "c.ndjson").symlink_to(folder / "a.ndjson")
    (folder / "more").symlink_to(tmp_path)
    (folder / "\x1b[2J\n.ndjson").symlink_to(tmp_path)
    done = project.loader(str(folder))
    assert "landed 2 traces" in done.stdout
    assert done.stderr.splitlines() == [
        f"skipped {folder / name}: a link or no regular file"
        for name in ("\\u001b[2J\\n.ndjson", "more", "c.ndjson")
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all")
def test_a_folder_that_cannot_be_read_keeps_no_other_from_being_landed(
    project: Project, tmp_path: Path
) -> None:
    closed = tmp_path / "in" / "closed"
    closed.mkdir(parents=True)
    write(tmp_path / "in" / "a.ndjson", TRACES[:1])
    closed.chmod(0)
    done = project.loader(str(tmp_path / "in"), expect=2)
    closed.chmod(0o700)
    assert "landed 1 trace" in done.stdout
    assert f"{closed}: cannot be opened: Permission denied." in done.stderr


@pytest.mark.parametrize("is_missing", [False, True])
def test_messages_that_nobody_hears_change_nothing(
    embedded: Project, tmp_path: Path, is_missing: bool
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.ndjson").write_text('{"request_json": {}, "response_json": {}}\n')
    (folder / "link.ndjson").symlink_to("a.ndjson")
    if is_missing:
        (folder / "b.ndjson.gz").write_bytes(b"\x1f\x8bbroken")
    heard, said = os.pipe()
    os.close(heard)
    process = embedded.start_loader(str(folder), stderr=said)
    os.close(said)
    process.communicate()
    assert process.returncode == (2 if is_missing else 0)
    assert embedded.value("select count() from raw_traces") == 1


@pytest.mark.parametrize("closed", ["2>/dev/full", "2>&-", "<&-", ">&- 2>&-"])
@pytest.mark.parametrize("source", ["a.ndjson", "b.ndjson.gz", "missing.ndjson"])
def test_a_full_or_closed_stream_changes_no_exit_code(
    embedded: Project, tmp_path: Path, closed: str, source: str
) -> None:
    write(tmp_path / "a.ndjson", TRACES)
    (tmp_path / "b.ndjson.gz").write_bytes(gzip.compress(TRACES[0].encode() + b"\n")[:-9])
    wanted = 0 if source == "a.ndjson" else 2
    command = f"exec {sys.executable} -m loader {tmp_path / source} {closed}"
    assert embedded.start("bash", "-c", command).wait() == wanted
    if wanted == 0:
        assert embedded.value("select count() from raw_traces") == 3


def test_a_closed_stream_is_given_to_no_file() -> None:
    """What the engine says there would be written into it."""
    script = (
        "import os, sys; from loader.cli import main; main(['--version']);"
        "sys.exit([os.readlink(f'/proc/self/fd/{n}') for n in range(3)] != ['/dev/null'] * 3)"
    )
    command = f'exec {sys.executable} -c "{script}" <&- >&- 2>&-'
    assert subprocess.run(["bash", "-c", command], cwd=ROOT, check=False).returncode == 0


def test_what_nobody_reads_hides_no_error(embedded: Project, tmp_path: Path) -> None:
    """The summary finds no reader; that a source broke off is said all the same."""
    write(tmp_path / "a.ndjson", [*TRACES, "x"])
    (tmp_path / "b.ndjson.gz").write_bytes(gzip.compress(TRACES[0].encode() + b"\n")[:-9])
    for source, wanted in (("a.ndjson", 1), ("b.ndjson.gz", 2)):
        heard, said = os.pipe()
        os.close(heard)
        process = embedded.start(
            *(sys.executable, "-u", "-m", "loader", str(tmp_path / source)), stdout=said
        )
        os.close(said)
        _, errors = process.communicate()
        assert process.returncode == wanted
        assert ("ends early" in errors) == (wanted == 2)
    for verb in ("status", "--help", "--version"):
        command = f"exec {sys.executable} -m loader {verb} >/dev/full"
        process = embedded.start("bash", "-c", command)
        _, errors = process.communicate()
        assert process.returncode == 2
        said = "python -m loader: the output cannot be written: No space left on device.\n"
        assert errors == said


def test_a_letter_that_cannot_be_printed_is_escaped(embedded: Project, tmp_path: Path) -> None:
    file = tmp_path / "ключ.ndjson"
    file.write_text("x\n")
    embedded.loader(str(file), expect=1)
    embedded.env["PYTHONIOENCODING"] = "latin-1"
    done = embedded.loader("rejects")
    assert "\\u043a\\u043b" in done.stdout
    assert "1 reject" in done.stdout or "not_json" in done.stdout


def test_a_stream_that_was_full_for_a_while_is_written_to_again() -> None:
    class Full(io.StringIO):
        is_full = True

        def write(self, text: str) -> int:
            if self.is_full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(text)

    stream = Full()
    output = _Output(stream, is_flushed=True)
    print("lost", file=output)
    stream.is_full = False
    print("said", file=output)
    assert (stream.getvalue(), output.failure) == ("said\n", "No space left on device")


def test_a_file_that_has_no_name_any_more_is_read(embedded: Project, tmp_path: Path) -> None:
    file = write(tmp_path / "a.ndjson", TRACES)
    command = f"exec 7<{file}; rm {file}; exec {sys.executable} -m loader /dev/fd/7"
    assert embedded.start("bash", "-c", command).wait() == 0
    assert embedded.value("select count() from raw_traces") == 3


def test_a_record_above_the_limit_is_kept_as_a_reject(project: Project, tmp_path: Path) -> None:
    long = '{"request_json":"' + "é" * 1_000_000 + '"}'
    file = write(tmp_path / "a.ndjson", [TRACES[0], long, TRACES[1]])
    summary = land(project, file, "--max-record-mb", 1, expect=1)
    assert (summary["rows"], summary["reasons"]) == (2, {"too_large": 1})
    kept = project.query("select raw = {long:String} as same, detail from raw_rejects", long=long)
    assert kept[0]["same"] == 1
    assert kept[0]["detail"] == "2000019 bytes, more than the limit of 1048576"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.ndjson"], "missing.ndjson: No such file or directory. Nothing was landed."),
        (["good.ndjson", "missing.ndjson"], "Nothing was landed."),
        (["nothing-here"], "no files to land in this folder"),
        (["--max-record-mb", "0", "good.ndjson"], "--max-record-mb"),
        (["rejects", "--limit", "0"], "--limit"),
        (["status"], "there is no store at"),
        (["get", "s", "--organization", "o"], "there is no store at"),
        (["explain", "t", "--organization", "o"], "there is no store at"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(
    embedded: Project, tmp_path: Path, arguments: list[str], words: str
) -> None:
    write(tmp_path / "good.ndjson", TRACES)
    (tmp_path / "nothing-here").mkdir()
    paths = [
        str(tmp_path / name) if "." in name or name == "nothing-here" else name
        for name in arguments
    ]
    done = embedded.loader(*paths, expect=2)
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not Path(embedded.env["CHDB_PATH"]).exists()


def test_an_unknown_option_is_a_usage_error(embedded: Project) -> None:
    assert "--nonsense" in embedded.loader("--nonsense", expect=2).stderr


def test_a_file_that_ends_early_fails_after_landing_what_there_is(
    project: Project, tmp_path: Path
) -> None:
    packed = gzip.compress(("\n".join(TRACES) + "\n").encode())
    (tmp_path / "a.ndjson.gz").write_bytes(packed[:-4])
    write(tmp_path / "b.ndjson", TRACES[:1])
    done = project.loader(str(tmp_path / "a.ndjson.gz"), str(tmp_path / "b.ndjson"), expect=2)
    assert "landed 4 traces" in done.stdout
    assert "a.ndjson.gz: the gzip stream ends early" in done.stderr
    assert "Traceback" not in done.stderr


def test_get_before_dbt_says_what_to_do(project: Project, tmp_path: Path) -> None:
    land(project, write(tmp_path / "a.ndjson", TRACES))
    done = project.loader("get", "s1", "--organization", "o", expect=2)
    assert "run `dbt build` first" in done.stderr


def test_a_locked_store_is_named_with_its_holder(embedded: Project, tmp_path: Path) -> None:
    land(embedded, write(tmp_path / "a.ndjson", TRACES))
    code = (
        "import sys\nfrom loader.settings import Settings\nfrom loader.store import open_store\n"
        "store = open_store(Settings.from_environment())\nprint('open', flush=True)\n"
        "sys.stdin.read()\nstore.close()\n"
    )
    holder = embedded.start(sys.executable, "-c", code, stdin=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        embedded.env["TOKENLEDGER_LOCK_TIMEOUT"] = "0.3"
        done = embedded.loader(str(tmp_path / "a.ndjson"), expect=3)
        assert str(holder.pid) in done.stderr
        assert "Traceback" not in done.stderr
        waiting = embedded.start_loader(
            str(tmp_path / "a.ndjson"),
        )
        waiting.kill()
        waiting.wait()
        embedded.env["TOKENLEDGER_LOCK_TIMEOUT"] = "30"
        waiting = embedded.start_loader(str(tmp_path / "a.ndjson"))
        assert waiting.stderr is not None
        assert "waiting up to 30 s" in waiting.stderr.readline()
    finally:
        holder.communicate("")
    stdout, stderr = waiting.communicate(timeout=60)
    assert (waiting.returncode, stderr.strip()) == (0, "")
    assert "3 already there" in stdout


def test_an_unreachable_server_exits_3_without_the_password(
    tmp_path: Path, embedded: Project
) -> None:
    embedded.env |= {
        "CLICKHOUSE_ENDPOINT": "http://127.0.0.1:9",
        "CLICKHOUSE_PASSWORD": "hunter2-secret",
    }
    done = embedded.loader(str(write(tmp_path / "a.ndjson", TRACES)), expect=3)
    assert "http://127.0.0.1:9" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "hunter2" not in done.stdout + done.stderr


def test_a_wrong_password_exits_3_without_it(tmp_path: Path, server: Project) -> None:
    if "CLICKHOUSE_ENDPOINT" in os.environ:
        pytest.skip("the user of a real server may have no password")
    server.env["CLICKHOUSE_PASSWORD"] = "hunter2-secret"
    done = server.loader(str(write(tmp_path / "a.ndjson", TRACES)), expect=3)
    assert "hunter2" not in done.stdout + done.stderr
    assert done.stderr.count("\n") == 1


def test_a_folder_that_was_there_is_written_for_no_stranger_to_read(
    embedded: Project, tmp_path: Path
) -> None:
    store = Path(embedded.env["CHDB_PATH"])
    store.mkdir(mode=0o755)
    land(embedded, write(tmp_path / "a.ndjson", TRACES))
    for path in store.iterdir():
        assert stat.S_IMODE(path.lstat().st_mode) & 0o007 == 0, path


def test_the_store_is_for_its_owner_only(embedded: Project, tmp_path: Path) -> None:
    land(embedded, write(tmp_path / "a.ndjson", TRACES))
    assert stat.S_IMODE(Path(embedded.env["CHDB_PATH"]).stat().st_mode) == 0o700


def test_init_makes_the_tables_and_may_be_repeated(project: Project) -> None:
    for _ in range(2):
        project.loader("init")
    assert json.loads(project.loader("status", "--json").stdout)["landed"]["rows"] == 0
    assert project.value(
        "select groupArray(name) from (select name from system.tables"
        " where database = currentDatabase() order by name)"
    ) == ["raw_batches", "raw_lost_batches", "raw_rejects", "raw_traces"]


def test_every_verb_has_help_with_examples(embedded: Project) -> None:
    from loader.cli import VERBS

    overview = embedded.loader("--help").stdout
    for verb in VERBS:
        assert f"\n  {verb} " in overview
        text = embedded.loader(verb, "--help").stdout
        assert f"  python -m loader{'' if verb == 'land' else ' ' + verb}" in text
        assert "examples:" in text


def test_landing_does_not_import_dbt() -> None:
    code = (
        "import sys, loader.cli, loader.verbs.land\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('dbt', 'pandas', 'yaml')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_settings_do_not_show_the_password() -> None:
    settings = Settings.from_environment({"CLICKHOUSE_PASSWORD": "hunter2"})
    assert settings.password == "hunter2"
    assert "hunter2" not in repr(settings) + str(settings)
