"""The verbs of the command line, one module each."""

from __future__ import annotations

import json
import re

__all__ = ["printable"]


def printable(text: str) -> str:
    """Escape what a terminal would obey, line ends too, in a path or a name that is printed."""
    text = json.dumps(text, ensure_ascii=False)[1:-1]
    # What JSON leaves: some terminals obey the controls behind ASCII as they do ESC.
    return re.sub(r"[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)
