"""A server in miniature: writes traces from threads and names each on stdout once it is stored."""

from __future__ import annotations

import argparse
import os
import threading

from loader.spool import SpoolError
from loader.writer import Writer, WriterOptions


def trace(name: str, size: int = 2_000) -> dict[str, object]:
    """Make a trace that says who it is in its id, its step and its payload."""
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    return {
        "id": f"provider_trace-{name}",
        "org_id": "org-1",
        "agent_id": "agent-1",
        "step_id": f"step-{name}",
        "call_type": "agent_step",
        "request_json": {"messages": [{"role": "user", "content": "é" * (size // 2)}]},
        "response_json": {"id": name, "model": "gpt-4o", "usage": usage},
        "llm_config": {"model": "gpt-4o", "model_endpoint_type": "openai"},
        "created_at": "2026-10-05T12:00:00+00:00",
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("spool")
    parser.add_argument("--name", required=True)
    parser.add_argument("--count", type=int, default=10**9)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--fsync", default="never")
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--tolerant", action="store_true", help="go on when a trace is refused")
    args = parser.parse_args()
    options = WriterOptions(
        fsync=args.fsync, segment_seconds=0.2, on_full="refuse" if args.tolerant else "block"
    )
    writer = Writer(args.spool, options)
    gap = threading.Event()

    def write(thread: int) -> None:
        for number in range(args.count):
            name = f"{args.name}-{thread}-{number}"
            try:
                writer.write(trace(name))
                os.write(1, f"{name}\n".encode())
            except SpoolError as error:
                if not args.tolerant:
                    raise
                os.write(1, f"!{type(error).__name__}\n".encode())
                gap.wait(0.02)
            if args.pause:
                gap.wait(args.pause)

    threads = [threading.Thread(target=write, args=(each,)) for each in range(args.threads)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


if __name__ == "__main__":
    main()
