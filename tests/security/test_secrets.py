"""What nobody is to see: passwords and payloads are in no log, message or --json, at any level."""

from __future__ import annotations

import argparse
import base64
import html
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, StreamFailureError

from loader.cli import VERBS
from loader.settings import Settings
from loader.store import _store_error, _without_password
from tests.support.http_front import Front
from tests.support.project import Project
from tests.test_pipeline import record

PASSWORD = "pa55word-%7B'x"
PAYLOAD = "payload-7f3e9c"

# The command line with every logger of Python turned up to its loudest.
LOUD = (
    "import logging, sys\n"
    "logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)\n"
    "from loader.cli import main\n"
    "sys.exit(main(sys.argv[1:]))\n"
)


@pytest.fixture(params=["embedded", "server"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Project]:
    if request.param == "embedded":
        yield request.getfixturevalue("embedded")
        return
    with Front(tmp_path / "server", user="ledger", password=PASSWORD) as front:
        yield Project(tmp_path / "project", front.env())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Give records and rejects, each of which holds the payload."""
    said = {"messages": [{"role": "user", "content": PAYLOAD}]}
    lines = [
        *(
            json.dumps(record(number, request_json=said, response_json={"text": PAYLOAD}))
            for number in range(20)
        ),
        f'{{"cut": "{PAYLOAD}',
        f'"{PAYLOAD}"',
        f'{{"request_json": {{"{PAYLOAD}": tru}}}}',
        json.dumps({PAYLOAD: 1}),
    ]
    path = tmp_path / "a.ndjson"
    path.write_text("\n".join(lines) + "\n")
    return path


def loud(project: Project, *arguments: str) -> str:
    """Run a verb as loudly as it goes; return all that it said."""
    process = project.start(sys.executable, "-c", LOUD, *arguments)
    stdout, stderr = process.communicate(timeout=300)
    return stdout + stderr


def test_neither_payload_nor_password_is_said(project: Project, file: Path, tmp_path: Path) -> None:
    project.env["TOKENLEDGER_DEBUG"] = "1"
    spool = tmp_path / "spool"
    said = [
        loud(project, str(file), "--json"),
        loud(project, str(file)),
        loud(project, "status", "--json"),
        loud(project, "rejects"),
        loud(project, "rejects", "--json"),
        loud(project, "rejects", "--replay"),
        loud(project, "billing", str(file)),
        loud(project, "bills", str(file)),
        loud(project, "drain", str(spool)),
        loud(project, "get", "nothing", "--organization", "org-1"),
    ]
    assert "DEBUG" in "".join(said) or "CHDB_PATH" in project.env
    assert '"rejects": 4' in said[0]
    dbt = project.dbt(
        *("run", "--select", "+llm_traces", "+transformed_batches"),
        *("--log-level", "debug", "--log-level-file", "debug"),
    )
    said += [dbt.stdout, dbt.stderr]
    assert project.value("select count() from llm_traces") == 20
    logs = b"".join(path.read_bytes() for path in project.folder.rglob("*") if path.is_file())
    text = "".join(said) + logs.decode(errors="replace")
    assert PAYLOAD not in text
    assert PASSWORD not in text


@pytest.mark.parametrize("verb", ["billing", "bills"])
@pytest.mark.parametrize(
    "text",
    [
        json.dumps({PAYLOAD: 1}),
        json.dumps({"organization_id": "o", "valid_from": PAYLOAD}),
        json.dumps({"organization_id": "o", "valid_from": "2026-11-01", "known_at": PAYLOAD}),
        f'{{"{PAYLOAD}": 1, "{PAYLOAD}": 2}}',
        f"organization_id,valid_from,{PAYLOAD}\no,2026-11-01,1\n",
        f"organization_id,valid_from\no,{PAYLOAD}\n",
        f"date,provider,amount_usd\n{PAYLOAD},p,1\n",
        f"date,provider,amount_usd\n2026-11-01,p,{PAYLOAD}\n",
    ],
)
def test_another_file_than_was_meant_is_refused_without_its_text(
    embedded: Project, tmp_path: Path, verb: str, text: str
) -> None:
    path = tmp_path / "a"
    path.write_text(text)
    said = loud(embedded, verb, str(path))
    assert str(path) in said
    assert PAYLOAD not in said


def test_a_failing_server_is_told_of_without_them(tmp_path: Path, file: Path) -> None:
    with Front(tmp_path / "server", user="ledger", password=PASSWORD) as front:
        project = Project(tmp_path / "project", front.env())
        project.env["TOKENLEDGER_DEBUG"] = "1"
        project.loader("init")
        said = []
        for kind, status in (("answer", 500), ("drop", 500), ("truncate", 500)):
            front.misbehave(kind, status=status, inserts=True, count=None)
            said.append(loud(project, str(file), "--json"))
            front.behave()
        again = tmp_path / "b.ndjson"
        again.write_bytes(file.read_bytes())
        # What the engine itself says of rows that it cannot take.
        project.query("alter table raw_traces add constraint no check request_json = ''")
        said.append(loud(project, str(again)))
        assert "Nothing is lost" in said[-1]
        project.query("alter table raw_traces drop constraint no")
        # A server, or a proxy before it, that repeats what it was sent.
        for contains, code in (("INSERT INTO", 194), ("system.columns", 0)):
            echo = {"code": code, "text": f"no {PASSWORD}!"}
            front.misbehave("answer", status=500, contains=contains, count=None, **echo)
            said.append(loud(project, str(again)))
            assert "no ***!" in said[-1]
            front.behave()
        project.env["CLICKHOUSE_PASSWORD"] = PASSWORD + "wrong"
        said.append(loud(project, str(file)))
        done = project.dbt("--log-level", "debug", "run", "--log-level-file", "debug", expect=None)
        assert done.returncode != 0
        said += [done.stdout, done.stderr]
        said += [path.read_text() for path in (project.folder / "logs").glob("*")]
    for text in said:
        assert PAYLOAD not in text
        assert PASSWORD not in text


@pytest.mark.parametrize("pad", [0, 280, 295])
def test_what_a_server_repeats_of_the_login_is_hidden_before_the_text_is_cut(pad: int) -> None:
    settings = Settings(endpoint="http://h:1", username="ledger", password=PASSWORD)
    login = base64.b64encode(f"ledger:{PASSWORD}".encode()).decode()
    for secret in (PASSWORD, login):
        said = str(_store_error("it", settings, OSError("e" * pad + f"{secret} Basic {secret}")))
        assert secret[:3] not in said
        assert "e" * pad + "***" in said


def as_go_does(text: str) -> str:
    """Write JSON as Go does."""
    text = json.dumps(text, ensure_ascii=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def in_case(write: Callable[[str], str], change: Callable[[str], str]) -> Callable[[str], str]:
    """Write hexadecimal digits in a case."""
    return lambda text: re.sub(
        r"(?<=%)..|(?<=\\u)....|(?<=&#).+?;", lambda found: change(found[0]), write(text)
    )


WAYS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "quoted": quote,
    "quoted, small": in_case(quote, str.lower),
    "quoted whole, small": in_case(lambda text: quote(text, ""), str.lower),
    "each byte quoted": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    "form": quote_plus,
    "repr": repr,
    "repr of bytes": lambda text: repr(text.encode()),
    "json": json.dumps,
    "json, text": lambda text: json.dumps(text, ensure_ascii=False),
    "json, large": in_case(json.dumps, str.upper),
    "json, slashes": lambda text: json.dumps(text).replace("/", "\\/"),
    "json, of go": as_go_does,
    "json twice": lambda text: json.dumps(json.dumps(text)),
    "json thrice": lambda text: json.dumps(json.dumps(as_go_does(text))),
    "json of a page": lambda text: as_go_does(html.escape(text)),
    "page": html.escape,
    "page, tags only": lambda text: html.escape(text, quote=False),
    "page, of go": lambda text: (
        html.escape(text).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
    ),
    "page, of xml": lambda text: html.escape(text).replace("&#x27;", "&apos;"),
    "page, numbers": lambda text: "".join(f"&#{ord(each)};" for each in text),
    "page, hex": lambda text: "".join(f"&#x{ord(each):x};" for each in text),
    "page, large hex": lambda text: "".join(f"&#X{ord(each):04X};" for each in text),
    "latin-1": lambda text: text.encode().decode("latin-1"),
    "json of latin-1": lambda text: json.dumps(text.encode().decode("latin-1")),
    "page of latin-1": lambda text: html.escape(text.encode().decode("latin-1")),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "password",
    [
        *("pa\"ss\\wo<rd>'\u00f6 &x/", "\\\\a\\u\u00e9\\", "%25%7Bu0041&amp;\U0001f600\u201c"),
        *("\t'\\\\'\n\x1b", "x\u00ff>>??/ \u00ff\u00fe~", "a%", "a&", "a\u00c3"),
    ],
)
def test_a_password_is_hidden_however_it_is_repeated(way: str, password: str) -> None:
    settings = Settings(endpoint="http://h:1", username="ledger", password=password)
    login = base64.b64encode(f"ledger:{password}".encode()).decode()
    for secret in (password, login, login.rstrip("=")):
        said = str(_store_error("it", settings, OSError(f"before {WAYS[way](secret)} behind")))
        middle = said.split("before")[1].split("behind")[0]
        assert middle.strip("b\"'\\ ") == "***"


@pytest.mark.parametrize("many", ["\\", "%5c", "\\u005c", "%", "&#x0", "&", "p", "pa"])
def test_a_password_is_hidden_behind_any_number_of_the_like(many: str) -> None:
    """In linear time: in quadratic time this goes on for long."""
    for password in ('\\s"p', 'pa\\s"', "%25%25 p", "&amp;&amp;p", "p" * 40 + "a"):
        settings = Settings(endpoint="http://h:1", username="ledger", password=password)
        for way in (str, quote, html.escape, json.dumps):
            said = _without_password(many * 50_000 + f", {way(password)} behind", settings)
            assert re.search(r', "?\*\*\*"? behind$', said)


def test_rows_of_an_answer_that_broke_off_are_in_no_error() -> None:
    """The client takes its last bytes for what the server says, and a number in them for a code."""
    settings = Settings(endpoint="http://h:1")
    rows = f'"tool": "Exit Code: 60", "text": "{PAYLOAD}"'
    error = _store_error("a query", settings, StreamFailureError(rows, code=60))
    assert "failed at a query: the answer broke off. " in str(error)
    assert error.code is None
    refused = DatabaseError(
        f"Code: 469. Constraint `c` is violated. Column values: request_json = '{PAYLOAD}'",
        code=469,
    )
    assert PAYLOAD not in str(_store_error("a query", settings, refused))


def test_a_password_is_on_no_command_line() -> None:
    """No verb takes one, so that none can be seen in the list of processes."""
    for module, _ in VERBS.values():
        parser = argparse.ArgumentParser()
        importlib.import_module(module).add_arguments(parser)
        assert "password" not in parser.format_help().lower()
