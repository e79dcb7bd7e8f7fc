"""The verbs of the command line, one module each."""

from __future__ import annotations

import json

__all__ = ["printable"]


def printable(text: str) -> str:
    """Escape what a terminal would obey, line ends too, in a path or a name that is printed."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
