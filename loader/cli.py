"""The command line: `python -m loader [FILE…|-]` lands; other verbs are subcommands.

Owns the list of verbs, their help and how an error becomes one line and an exit code. A verb is a
module with `add_arguments(parser)` and `run(args, settings) -> int`, imported only when asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TextIO

from loader import __version__
from loader.errors import LoaderError
from loader.settings import Settings
from loader.verbs import as_line

__all__ = ["VERBS", "main"]

# verb: (module, one line of help). `land` is meant when no verb is named.
VERBS: dict[str, tuple[str, str]] = {
    "land": ("loader.verbs.land", "land files, folders or standard input (the default)"),
    "init": ("loader.verbs.init", "make the raw tables"),
    "status": ("loader.verbs.status", "say what is landed, pending and rejected"),
    "rejects": ("loader.verbs.rejects", "list what was rejected, and why"),
    "drain": ("loader.drain", "land what servers left in a spool"),
    "listen": ("loader.listener", "receive records on a socket, into a spool"),
    "get": ("loader.verbs.get", "print the stored trace of a step as JSON"),
    "prices": ("loader.prices", "land the price book of the installed package"),
    "explain": ("loader.explain", "say what a trace cost, and why"),
    "billing": ("loader.billing", "land subscriptions: who is billed how, from when on"),
    "bills": ("loader.bills", "land what providers charge"),
}

_USAGE = "python -m loader"
_INTERNAL_ERROR = 70


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: done. 1: done, and some records were rejected. 2: an argument, a setting or a source is
    wrong. 3: the store is unreachable or locked, a file is being landed by another loader, or a
    spool or socket cannot be used.
    70: an error of ours. 130: interrupted.
    """
    _fill_closed_descriptors()
    given = list(sys.argv[1:] if arguments is None else arguments)
    said = _Output(sys.stderr, is_flushed=True)
    answer = _Output(sys.stdout, is_flushed=False)
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(answer):
        code = _answer(given)
        answer.end()
        if answer.failure is not None and code in (0, 1):
            print(f"{_USAGE}: the output cannot be written: {answer.failure}.", file=sys.stderr)
            code = 2
        said.end()
    return code


def _answer(given: list[str]) -> int:
    if given[:1] in (["-h"], ["--help"]) or (not given and sys.stdin and sys.stdin.isatty()):
        print(_overview())
        return 0 if given else 2
    if given[:1] == ["--version"]:
        print(__version__)
        return 0
    verb = given.pop(0) if given and given[0] in VERBS else "land"
    return _run(verb, given)


def _fill_closed_descriptors() -> None:
    """Let no file of the store become standard output, on which the engine may write too."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free


class _Output(io.TextIOBase):
    """Stdout or stderr, which may be closed or full: what is said is lost then, and nothing else.

    Attributes
    ----------
    failure : str or None
        Why what was said is lost. None where its reader has gone, which wanted no more.
    """

    def __init__(self, stream: TextIO | None, *, is_flushed: bool) -> None:
        self._stream = stream
        self._is_flushed = is_flushed
        self.failure: str | None = None

    def write(self, text: str) -> int:
        def say(stream: TextIO) -> None:
            try:
                stream.write(text)
            except UnicodeEncodeError:
                encoding = stream.encoding or "ascii"
                stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

        self._do(say)
        if self._is_flushed:
            self.flush()
        return len(text)

    def flush(self) -> None:
        self._do(lambda stream: stream.flush())

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def _do(self, action: Callable[[TextIO], object]) -> None:
        if self._stream is None:
            return
        try:
            action(self._stream)
        except BrokenPipeError:
            self._silence(self._stream)
        except OSError as error:
            # This much is lost; a disk that was full may have room for what comes.
            self.failure = error.strerror or "it cannot be written"
        except ValueError:
            self.failure = "it is closed"
            self._stream = None

    def _silence(self, stream: TextIO) -> None:
        """Send what is still said nowhere, so that closing the stream is no error either."""
        self._stream = None
        with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())

    def end(self) -> None:
        """Say what is left to say, and let the interpreter's end meet no error."""
        self.flush()
        if self.failure is not None and self._stream is not None:
            self._silence(self._stream)


def _parser(verb: str) -> tuple[argparse.ArgumentParser, ModuleType]:
    module = importlib.import_module(VERBS[verb][0])
    parser = argparse.ArgumentParser(
        prog=_USAGE if verb == "land" else f"{_USAGE} {verb}",
        description=(module.__doc__ or "").split("\n\n")[0],
        epilog=getattr(module, "EXAMPLES", None),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    return parser, module


def _run(verb: str, given: Sequence[str]) -> int:
    # The client warns about what it then raises: it is said once, by us.
    logging.getLogger("clickhouse_connect").addHandler(logging.NullHandler())
    try:
        parser, module = _parser(verb)
        return int(module.run(parser.parse_args(given), Settings.from_environment()))
    except SystemExit as ended:  # of argparse, which has said why
        return int(ended.code or 0)
    except LoaderError as error:
        print(as_line(f"{_USAGE}: {error}"), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{_USAGE}: interrupted. Run it again to finish.", file=sys.stderr)
        return 130
    except Exception as error:
        # Ours to mend. Its message is left out: it may quote what was being landed.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        print(
            f"{_USAGE}: internal error {type(error).__name__} at {frame.filename}:{frame.lineno}. "
            "Please report it; set TOKENLEDGER_DEBUG=1 to see where it comes from.",
            file=sys.stderr,
        )
        if os.environ.get("TOKENLEDGER_DEBUG"):
            traceback.print_exc()
        return _INTERNAL_ERROR


def _overview() -> str:
    verbs = "\n".join(f"  {name:<10}{text}" for name, (_, text) in VERBS.items())
    return (
        f"usage: {_USAGE} [FILE...|-] [options]\n"
        f"       {_USAGE} VERB [options]\n\n"
        f"Lands LLM traces, byte for byte and exactly once.\n\nverbs:\n{verbs}\n\n"
        f"examples:\n"
        f"  {_USAGE} traces.ndjson          land a file (plain, gzip or zstd), or a folder\n"
        f"  my-server | {_USAGE}            land standard input\n"
        f"  {_USAGE} VERB --help            what a verb takes\n\n"
        f"exit codes: 0 done, 1 some records rejected, 2 usage, "
        "3 store, spool, socket or file locked or unusable, or a drain stopped"
    )
