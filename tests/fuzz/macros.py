"""Render the project's macros outside dbt.

Owns the few names of dbt's context that the parsing macros use (`return`, `fromyaml`,
`modules.re`). Refuses to know any macro by name: what they mean is theirs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import yaml

MACROS = Path(__file__).resolve().parents[2] / "macros"
MACRO = re.compile(r"\{%-?\s*macro\s+(\w+)\(.*?endmacro\s*-?%\}", re.DOTALL)


class _Returned(Exception):
    """Carries the value of `return(value)` out of a macro."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def render(template: str, folders: tuple[str, ...] = ("json", "usage", "errors")) -> str:
    """Render a template that calls macros.

    Parameters
    ----------
    template : str
        Jinja text, for example ``{{ parse_responses('bodies') }}``.
    folders : tuple of str
        Folders under ``macros/`` whose macros are known.

    Returns
    -------
    str
        The SQL text.
    """
    environment = jinja2.Environment(
        extensions=["jinja2.ext.do"], undefined=jinja2.StrictUndefined, autoescape=False
    )

    def give_back(value: Any) -> None:
        raise _Returned(value)

    environment.globals.update(
        {"return": give_back, "fromyaml": yaml.safe_load, "modules": SimpleNamespace(re=re)}
    )
    for folder in folders:
        for path in sorted((MACROS / folder).glob("*.sql")):
            for match in MACRO.finditer(path.read_text()):
                name = match.group(1)
                environment.globals[name] = _callable(environment, match.group(0), name)
    return environment.from_string(template).render()


def _callable(environment: jinja2.Environment, source: str, name: str) -> Callable[..., Any]:
    """Give a function that calls one macro and gives what it returns, remembered by arguments."""
    template = environment.from_string(source)
    known: dict[str, Any] = {}

    def call(*arguments: Any, **named: Any) -> Any:
        key = repr((arguments, named))
        if key not in known:
            try:
                known[key] = getattr(template.module, name)(*arguments, **named)
            except _Returned as returned:
                known[key] = returned.value
        return known[key]

    return call
