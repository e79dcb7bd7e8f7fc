"""No organization reads another's traces: every reader call and verb, under hostile names.

Each organization has traces of the same step, the same agent and the same call type, with a secret
of its own in request and response. Whatever is asked for, what comes back is the asker's.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader.cli import VERBS
from loader.errors import LoaderError
from loader.reader import GROUPS, Reader
from loader.settings import Settings
from tests.operations.test_reparse import operation
from tests.support.http_front import Front
from tests.support.project import Project
from tests.test_pipeline import record, write

ORGANIZATIONS = [
    *("org-1", "org-1 ", " org-1", "ORG-1", "org-%", "%", "_", "org_1", "*", "org-1*"),
    *("org-1' or '1'='1", "' or 1 = 1 --", "org-1'", "''", "\\", "org-1\\", "\\'", "org-1\\' --"),
    *('org-"1', "`org`", "{organization_id:String}", "%(organization)s", "$org", "org-1;--"),
    *(
        "org\n1",
        "org\t1",
        "org\\n1",
        "\u00f6rg",
        "o\u0308rg",
        "org-1\u200b",
        "null",
        "NULL",
        "0",
        "[]",
    ),
    *("org-1\u0000", "/*", "*/ union all select * from llm_traces --", "😀"),
]
STEP, AGENT = "step-shared", "agent-shared"
SPECIAL = "'\"\\%_*{}:();-`\n\t\x00 org1"


def secret(organization: str) -> str:
    return f"secret-{ORGANIZATIONS.index(organization):03d}!"


def records(first: int) -> list[dict[str, object]]:
    return [
        record(
            first + index,
            org_id=organization,
            step_id=STEP,
            agent_id=AGENT,
            request_json={"text": secret(organization)},
            response_json={"text": secret(organization), "usage": {"prompt_tokens": 1}},
        )
        for index, organization in enumerate(ORGANIZATIONS)
    ]


@pytest.fixture(scope="module", params=["embedded", "server"])
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    """Give a store with a trace an organization, and for three of them one more, unseen by dbt."""
    folder = tmp_path_factory.mktemp("organizations")

    def filled(variables: dict[str, str]) -> Project:
        project = Project(folder / "project", variables)
        first = write(folder / "first.ndjson", records(0))
        late = write(folder / "late.ndjson", records(1000)[5:8])
        project.loader(str(first))
        project.dbt(
            "run", "--select", "+llm_traces_live", "+transformed_batches", "+costed_batches"
        )
        project.loader(str(late))
        return project

    if request.param == "embedded":
        yield filled({"CHDB_PATH": str(folder / "warehouse")})
        return
    with Front(folder / "server", user="ledger", password="secret") as front:
        yield filled(front.env())


@pytest.fixture(scope="module")
def reader(store: Project) -> Iterator[Reader]:
    with Reader(Settings.from_environment(store.env)) as found:
        yield found


CALLS: dict[str, Callable[[Reader, str, str], Any]] = {
    "get_provider_trace_by_step_id": lambda reader, organization, name: (
        reader.get_provider_trace_by_step_id(name, organization)
    ),
    "get_by_step_id": lambda reader, organization, name: reader.get_by_step_id(
        name, organization, payloads=True
    ),
    "get_by_id": lambda reader, organization, name: reader.get_by_id(
        name, organization, payloads=True
    ),
    "list_by_agent": lambda reader, organization, name: reader.list_by_agent(
        name, organization, payloads=True, call_type="agent_step"
    ),
    "usage": lambda reader, organization, name: [
        reader.usage(organization, "organization"),
        reader.usage(organization, name if name in GROUPS else "agent"),
    ],
    "largest_requests": lambda reader, organization, name: reader.largest_requests(
        organization, payloads=True
    ),
}


def asked(reader: Reader, call: str, organization: str, name: str) -> str:
    """Return what a call gives as text; a refusal gives nothing."""
    try:
        return repr(CALLS[call](reader, organization, name))
    except LoaderError as error:
        return str(error)


def check(text: str, organization: str) -> None:
    for other in ORGANIZATIONS:
        if other != organization:
            assert secret(other) not in text, f"{organization!r} reads what is {other!r}'s"


def test_every_call_and_verb_of_one_organization_is_looked_at() -> None:
    """A call that is added is added here."""
    calls = {
        name.removesuffix("_async")
        for name, member in inspect.getmembers(Reader, inspect.isfunction)
        if not name.startswith("_")
    }
    assert calls - {"close"} == CALLS.keys()
    of_one = set()
    for verb, (module, _) in VERBS.items():
        parser = argparse.ArgumentParser()
        importlib.import_module(module).add_arguments(parser)
        options = {option for action in parser._actions for option in action.option_strings}
        if "--organization" in options:
            of_one.add(verb)
    assert of_one == {"get", "explain"}


def test_each_reads_its_own(reader: Reader) -> None:
    # The embedded store is opened anew for each answer.
    for organization in ORGANIZATIONS[:: 6 if reader.settings.endpoint is None else 1]:
        for call, name in (
            ("get_by_step_id", STEP),
            ("get_by_id", f"{ORGANIZATIONS.index(organization):06d}"),
            ("list_by_agent", AGENT),
        ):
            text = asked(reader, call, organization, name)
            assert secret(organization) in text, (call, organization)
            check(text, organization)


@settings(max_examples=25)
@given(
    organization=st.sampled_from(ORGANIZATIONS)
    | st.text(SPECIAL, max_size=12)
    | st.text(max_size=8),
    name=st.sampled_from([STEP, AGENT, *(f"{n:06d}" for n in range(len(ORGANIZATIONS)))])
    | st.text(SPECIAL, max_size=12),
    call=st.sampled_from(sorted(CALLS)),
)
def test_nothing_of_another_comes_back(
    reader: Reader, organization: str, name: str, call: str
) -> None:
    check(asked(reader, call, organization, name), organization)


@pytest.mark.parametrize(
    "after",
    ["'", "' or 1=1", "{}", "[]", "eyJ9", "0:' or 1=1 --", "\x00", "99999999999999999999:0", "ü"],
)
def test_a_cursor_leads_nowhere_else(reader: Reader, after: str) -> None:
    try:
        found = repr(reader.list_by_agent(AGENT, "org-1", after=after, payloads=True))
    except LoaderError as error:
        found = str(error)
    check(found, "org-1")


def test_the_verbs_give_nothing_of_another(store: Project) -> None:
    foreign = f"{ORGANIZATIONS.index('ORG-1'):06d}"
    for organization in ("org-1", "%", "' or 1 = 1 --", "\\'", "nobody", "\udcff"):
        for arguments in (
            ("get", STEP, f"--organization={organization}", "--json"),
            ("explain", foreign, f"--organization={organization}", "--json"),
        ):
            done = store.loader(*arguments, expect=None)
            assert done.returncode in (0, 1, 2), done.stderr
            assert "Traceback" not in done.stderr
            check(done.stdout + done.stderr, organization)
            if done.returncode == 0:
                assert json.loads(done.stdout).get("id") != f"provider_trace-{foreign}"


@pytest.mark.parametrize("organization", ["org-1\\' --", "%"])
def test_erasing_one_leaves_every_other(
    project: Project, tmp_path: Path, organization: str
) -> None:
    project.loader(str(write(tmp_path / "a.ndjson", records(0))))
    project.dbt("run", "--select", "+llm_traces_live", "+transformed_batches")
    project.loader(str(write(tmp_path / "b.ndjson", [record(999, org_id="late")])))
    said = operation(project, "erase", json.dumps({"organization": organization}))
    assert "erased" in said
    left = project.query("select organization_id as o from llm_traces_live")
    want = [each for each in [*ORGANIZATIONS, "late"] if each != organization]
    assert sorted(row["o"] for row in left) == sorted(want)
