"""What a variable brings into SQL: a time zone is a name, or nothing is run."""

from __future__ import annotations

import json
from typing import Any

import jinja2
import pytest

from tests.support.project import ROOT, Project

HOSTILE = "UTC') or 1 = 1 --"


def reporting_time_zone(value: object) -> str:
    """Render the macro for a value of the variable."""
    environment = jinja2.Environment(autoescape=False)

    def refuse(words: str) -> None:
        raise ValueError(words)

    environment.globals |= {
        "var": lambda name, default: value if name == "reporting_time_zone" else default,
        "return": lambda result: result,
        "exceptions": {"raise_compiler_error": refuse},
    }
    source = (ROOT / "macros" / "rollups" / "daily_rollup.sql").read_text()
    module: Any = environment.from_string(source).module
    return str(module.reporting_time_zone())


@pytest.mark.parametrize("name", ["UTC", "Europe/Berlin", "America/Port-au-Prince", "Etc/GMT+5"])
def test_a_name_of_a_time_zone_is_taken(name: str) -> None:
    assert reporting_time_zone(name) == name


@pytest.mark.parametrize(
    "name", [HOSTILE, "'", "UTC\\", "UTC`", "UTC\n", "Europe Berlin", "UTC;", "{{ x }}", ["UTC"]]
)
def test_what_is_no_name_of_a_time_zone_is_refused(name: object) -> None:
    with pytest.raises(ValueError, match="it has to be a name such as Europe/Berlin"):
        reporting_time_zone(name)


def test_dbt_runs_nothing_with_a_hostile_time_zone(embedded: Project) -> None:
    variables = json.dumps({"reporting_time_zone": HOSTILE})
    done = embedded.dbt("compile", "--select", "llm_budgets", "--vars", variables, expect=2)
    assert "it has to be a name such as Europe/Berlin" in done.stdout
