"""What README.md and docs/integrate.md tell a newcomer to do: it runs, and traces can be read."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

from tests.support.project import ROOT, Project


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ask(port: int, prompt: str) -> str:
    """Post a prompt, once the server listens; return the step's id."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/", prompt.encode(), {"x-billing-plan-type": "pro"}
    )
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                step_id: str = json.load(answer)["step_id"]
                return step_id
        except urllib.error.URLError:
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.1)


def test_the_documented_server_is_wired_in(project: Project, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "integrate.md").read_text()
    found = re.search(r"<!-- server.py -->\n```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    (tmp_path / "server.py").write_text(found[1])
    spool, port = tmp_path / "spool", free_port()
    variables = {"PYTHONPATH": str(ROOT), "TOKENLEDGER_SPOOL": str(spool), "PORT": str(port)}
    server = subprocess.Popen(
        [sys.executable, "server.py"],
        cwd=tmp_path,
        env=project.env | variables,
        stderr=subprocess.DEVNULL,
    )
    try:
        good, failed = ask(port, "hi"), ask(port, "please fail")
    finally:
        server.terminate()  # as most servers end: without a word to anybody
        server.wait()
    project.loader("drain", str(spool))
    project.dbt("run", "--select", "+llm_traces_live")
    trace = json.loads(project.loader("get", good, "--organization", "org-1").stdout)
    assert trace["request_json"]["messages"] == [{"role": "user", "content": "hi"}]
    rows = project.query(
        "select step_id, is_error, error_message, total_tokens, billing_plan_type"
        " from llm_traces order by is_error"
    )
    assert [tuple(row.values()) for row in rows] == [
        (good, False, None, 12, "pro"),
        (failed, True, "no answer", 0, "pro"),
    ]


def install(folder: Path, **programs: str) -> None:
    """Make a checkout whose programs do no more than these lines of shell."""
    for name, does in programs.items():
        file = folder / ".venv" / "bin" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/sh\n{does}\n")
        file.chmod(0o755)


def test_the_documented_schedule_transforms_what_landed_beside_rejects(tmp_path: Path) -> None:
    found = re.search(r"^\*/5 \* \* \* \* +(.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert found is not None
    install(tmp_path, python="exit $DRAINED", dbt="echo transformed")
    line = found[1].replace("/opt/tokenledger", str(tmp_path))
    for code, said in ((0, "transformed\n"), (1, "transformed\n"), (2, ""), (3, "")):
        done = subprocess.run(
            ["sh", "-c", line], env={"DRAINED": str(code)}, capture_output=True, text=True
        )
        assert (code, done.stdout) == (code, said)


def test_the_documented_units_have_one_password(tmp_path: Path) -> None:
    """They share a file of variables; the loader reads a password from a file, dbt does not."""
    unit = (ROOT / "deploy" / "systemd" / "tokenledger-dbt.service").read_text()
    found = re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    assert found is not None
    install(tmp_path, dbt='echo "$@ by $CLICKHOUSE_PASSWORD"')
    line = found[1].replace("/srv/tokenledger", str(tmp_path)).replace("$$", "$")
    (tmp_path / "password").write_text("from a file\n")
    file, none = str(tmp_path / "password"), str(tmp_path / "none")
    for variables, said in (
        ({"CLICKHOUSE_PASSWORD_FILE": file}, "--quiet run by from a file\n"),
        ({"CLICKHOUSE_PASSWORD": "it", "CLICKHOUSE_PASSWORD_FILE": file}, "--quiet run by it\n"),
        ({}, "--quiet run by \n"),
        ({"CLICKHOUSE_PASSWORD_FILE": none}, ""),
    ):
        done = subprocess.run(shlex.split(line), env=variables, capture_output=True, text=True)
        assert done.stdout == said
        assert (done.returncode == 0) == bool(said)


def test_the_package_holds_what_a_server_imports_and_no_more() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("loader/**/__init__.py")
    }
    assert set(project["tool"]["setuptools"]["packages"]) == names
    pinned = set((ROOT / "requirements.in").read_text().split("\n"))
    wanted = project["project"]["dependencies"]
    assert all(any(line.startswith(each) for line in pinned) for each in wanted)
    script = (
        "import sys, loader.backend, loader.reader, loader.writer\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {"dbt", "chdb", "jinja2"}.isdisjoint(done.stdout.split()), "not in a server's process"
