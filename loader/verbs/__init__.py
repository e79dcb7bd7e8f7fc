"""The verbs of the command line, one module each."""

from __future__ import annotations

import json
import re

__all__ = ["as_line", "printable"]

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def printable(text: str) -> str:
    """Escape what a terminal would obey, line ends too, in a path or a name that is printed."""
    # JSON leaves some: terminals may obey the controls behind ASCII as they do ESC.
    return as_line(json.dumps(text, ensure_ascii=False)[1:-1])


def as_line(text: object) -> str:
    """Escape the same in a message that may quote a path or a name, and nothing else of it."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", str(text))
