"""One store, several processes: waiting, giving up, letting go; and what a profile may not say."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import clickhouse_connect
import pytest
from chdb_lock import (
    Holder,
    StoreFullError,
    StoreLockedError,
    StorePathError,
    _program,
    find_holder,
    open_store,
    release_store,
    require_space,
)
from chdb_project import Project
from dbt.adapters.chdb import ChdbCredentials
from dbt_common.exceptions import DbtRuntimeError

HOLD = """
import sys, clickhouse_connect
client = clickhouse_connect.get_client(interface="chdb", path=sys.argv[1])
print("open", flush=True)
sys.stdin.readline()
"""


def hold(store: Path) -> subprocess.Popen[str]:
    """Start a process that keeps the store open until its stdin closes."""
    store.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """Read a process's output up to a line with these words."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if words in line:
            return seen
    raise AssertionError(f"{words!r} did not come in:\n{seen}")


def test_dbt_waits_for_another_process_and_goes_on_when_it_ends(project: Project) -> None:
    holder = hold(project.store)
    dbt = project.start("run", "--select", "join_sees_null")
    try:
        seen = read_until(dbt, "Waiting up to 60 s for the chDB store")
        assert f"process {holder.pid} (" in seen
        assert dbt.poll() is None
    finally:
        # Killed, not closed: the kernel frees the lock.
        holder.kill()
        holder.wait()
    output, _ = dbt.communicate(timeout=120)
    # The seed is missing, so the model fails; that dbt got to it is the point.
    assert "START sql view model" in output


def test_dbt_gives_up_with_one_line_that_names_the_holder(project: Project) -> None:
    project.configure(lock_timeout=0.5)
    holder = hold(project.store)
    try:
        dbt = project.start("run")
        output, _ = dbt.communicate(timeout=120)
    finally:
        holder.kill()
        holder.wait()
    assert dbt.returncode != 0
    assert f"is held by process {holder.pid} ({sys.executable})" in output
    assert "gave up after 0.5 s" in output
    assert "Traceback" not in output
    assert "EmbeddedServer" not in output


def test_the_caller_may_have_opened_and_closed_the_store_before(project: Project) -> None:
    project.store.mkdir()
    client = clickhouse_connect.get_client(interface="chdb", path=str(project.store))
    client.command("create database tiny")
    client.close()
    for _ in range(2):
        assert set(project.build("--select", "fruits").values()) == {"success"}
    assert project.rows("select count() from tiny.fruits") == [(3,)]


def test_two_stores_one_after_the_other_in_one_process(project: Project, tmp_path: Path) -> None:
    assert project.build("--select", "fruits") == {"fruits": "success"}
    project.store = tmp_path / "other"
    project.configure()
    assert project.build("--select", "fruits") == {"fruits": "success"}
    assert project.rows("select count() from tiny.fruits") == [(3,)]


def test_a_second_store_at_the_same_time_is_refused_in_one_line(
    project: Project, tmp_path: Path
) -> None:
    other = clickhouse_connect.get_client(interface="chdb", path=str(tmp_path / "other"))
    try:
        result = project.dbt("build", "--select", "fruits")
    finally:
        other.close()
    assert not result.success
    assert "this process has another store open" in str(result.exception)


def test_another_process_opens_the_store_right_after_a_run(project: Project) -> None:
    project.build("--select", "fruits")
    assert find_holder(project.store) is None
    holder = hold(project.store)
    assert find_holder(project.store) == Holder(holder.pid, sys.executable)
    holder.kill()
    holder.wait()
    assert find_holder(project.store) is None


def test_an_interrupt_stops_the_query_that_runs(project: Project) -> None:
    (project.root / "models" / "endless.sql").write_text(
        "{{ config(materialized='table') }}\n"
        "select count() as n from numbers(1000000000000000) where sipHash64(number) = 1\n"
    )
    dbt = project.start("run", "--select", "endless")
    try:
        read_until(dbt, "START sql table model")
        time.sleep(1)
        dbt.send_signal(signal.SIGINT)
        dbt.communicate(timeout=60)
    finally:
        dbt.kill()
    assert dbt.returncode != 0
    assert find_holder(project.store) is None


def test_many_processes_open_one_store_in_turn(tmp_path: Path) -> None:
    script = """
import sys, clickhouse_connect
from chdb_lock import open_store, release_store
def opener():
    return clickhouse_connect.get_client(interface="chdb", path=sys.argv[1])
for _ in range(3):
    client = open_store(sys.argv[1], opener)
    client.command("create table if not exists default.turns (pid UInt32) order by pid")
    client.command("insert into default.turns settings async_insert = 0 values (1)")
    client.close()
    release_store(sys.argv[1])
"""
    store = str(tmp_path / "store")
    command = [sys.executable, "-c", script, store]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    client = clickhouse_connect.get_client(interface="chdb", path=store)
    try:
        assert client.command("select count() from default.turns") == 9
    finally:
        client.close()


def test_nobody_comes_in_between_a_closing_engine_s_last_two_steps(tmp_path: Path) -> None:
    # It frees its lock, then removes the file: what stands at that name then may be another's.
    script = """
import sys, clickhouse_connect
from chdb_lock import find_holder, open_store, release_store
def opener():
    return clickhouse_connect.get_client(interface="chdb", path=sys.argv[1])
first = open_store(sys.argv[1], opener)
second = open_store(sys.argv[1], opener)
first.close()
release_store(sys.argv[1])
print("one is left", flush=True)
sys.stdin.readline()
second.close()
print("the engine is closed", flush=True)
sys.stdin.readline()
release_store(sys.argv[1])
print("released", flush=True)
sys.stdin.readline()
"""
    store = tmp_path / "store"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(store)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        for step in ("one is left", "the engine is closed"):
            assert read_until(process, step)
            assert find_holder(store) == Holder(process.pid, sys.executable)
            with pytest.raises(StoreLockedError, match=rf"held by process {process.pid} \("):
                open_store(store, lambda: None, timeout=0)
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        read_until(process, "released")
        assert find_holder(store) is None
        assert open_store(store, lambda: "opened", timeout=0) == "opened"
        release_store(store)
    finally:
        process.kill()
        process.communicate()


def test_a_lock_without_a_limit_left_is_reported_at_once(tmp_path: Path) -> None:
    holder = hold(tmp_path / "store")
    told: list[Holder] = []
    try:
        with pytest.raises(StoreLockedError, match=rf"held by process {holder.pid} \("):
            open_store(tmp_path / "store", lambda: None, timeout=0, on_wait=told.append)
    finally:
        holder.kill()
        holder.wait()
    assert told == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorePathError, match="cannot make the chDB store"):
        open_store(tmp_path / "file" / "store", lambda: None)


@pytest.mark.parametrize("name", ["chdb.lock", "status"])
def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path, name: str) -> None:
    store = tmp_path / "store"
    store.mkdir()
    for target in (tmp_path / "elsewhere", tmp_path / "other"):
        if target.name == "other":
            target.write_text("")
        (store / name).unlink(missing_ok=True)
        (store / name).symlink_to(target)
        with pytest.raises(StorePathError, match=f"{name} of the chDB store is a symbolic link"):
            open_store(store, lambda: None, timeout=0)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_a_folder_that_everybody_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    store = tmp_path / "store"
    store.mkdir()
    store.chmod(mode)
    with pytest.raises(StorePathError, match="chmod o-w"):
        open_store(store, lambda: None, timeout=0)
    assert not (store / "chdb.lock").exists()
    store.chmod(0o2775)  # a group may, as under umask 002
    assert open_store(store, lambda: "opened", timeout=0) == "opened"
    release_store(store)


def test_a_store_that_the_engine_refuses_is_not_waited_for(tmp_path: Path) -> None:
    def refuse() -> None:
        raise RuntimeError("Code: 36. DB::Exception: Error initializing EmbeddedServer: .")

    with pytest.raises(StorePathError, match="though no process holds it"):
        open_store(tmp_path / "store", refuse)


def test_an_error_that_is_not_the_engine_s_passes_as_it_is(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("setting x is unknown")

    with pytest.raises(ValueError, match="setting x is unknown"):
        open_store(tmp_path / "store", fail)


def test_the_holder_is_found_without_the_kernel_s_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chdb_lock._pid_from_locks", lambda status: None)
    holder = hold(tmp_path / "store")
    try:
        found = find_holder(tmp_path / "store")
    finally:
        holder.kill()
        holder.wait()
    assert found is not None
    assert found.pid == holder.pid

    own = clickhouse_connect.get_client(interface="chdb", path=str(tmp_path / "store"))
    try:
        found = find_holder(tmp_path / "store")
    finally:
        own.close()
    assert found is not None
    assert found.pid == os.getpid()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"schema": "default"}, "other than 'default'"),
        ({"schema": ""}, "other than 'default'"),
        ({"schema": "llm", "chdb_path": ":memory:"}, "not a folder"),
        ({"schema": "llm", "chdb_path": ""}, "not a folder"),
        ({"schema": "llm", "cluster": "c"}, "need a server"),
    ],
)
def test_a_profile_that_cannot_work_is_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(DbtRuntimeError, match=words):
        ChdbCredentials(**keys)


def test_a_profile_without_a_schema_is_refused(project: Project) -> None:
    output = {"chdb_path": str(project.store), "threads": 1}
    with pytest.raises(DbtRuntimeError, match="other than 'default'"):
        ChdbCredentials.from_dict(output | {"schema": None})


def test_a_relative_path_starts_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    credentials = ChdbCredentials(schema="llm", chdb_path="warehouse")
    monkeypatch.chdir("/")
    assert credentials.chdb_path == str(tmp_path / "warehouse")


def test_a_holder_is_named_without_its_options() -> None:
    """An erasure holds the store: whose traces go is not what those who wait are told."""
    erase = ["python", "/bin/dbt", "run-operation", "erase", "--args", "{user: alice}"]
    assert _program(erase) == "python /bin/dbt run-operation erase"
    read = ["python", "-m", "loader", "get", "step-of-alice", "--organization", "alice"]
    assert _program(read) == "python -m loader get"
    assert _program(["python", "-c", "print('alice')", ""]) == "python"
    assert _program([""]) == ""


def test_a_full_disk_is_written_to_by_reading_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dbt.adapters.chdb.client import _WRITES

    require_space(tmp_path / "not" / "there")
    usage = shutil.disk_usage(tmp_path)._replace(free=15 * 2**20)
    monkeypatch.setattr("chdb_lock.shutil.disk_usage", lambda path: usage)
    with pytest.raises(StoreFullError, match=r"15\.0 MiB of space"):
        require_space(tmp_path)
    for sql in ("create table t", "/* a */ /* b\n*/\n  INSERT into t", "-- c\nalter table t"):
        assert _WRITES.match(sql), sql
    for sql in ("select 'create table'", "/* create */ drop table t", "explain insert", "created"):
        assert not _WRITES.match(sql), sql
