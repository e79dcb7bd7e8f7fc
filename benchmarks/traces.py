"""Generated traces of a wanted size, the same for the same seed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

WORDS = (
    *("the", "of", "to", "and", "in", "is", "it", "you", "that", "he", "was", "for", "on", "are"),
    *("with", "as", "his", "they", "be", "at", "one", "have", "this", "from", "or", "had", "by"),
    *("hot", "but", "some", "what", "there", "we", "can", "out", "other", "were", "all", "your"),
    *("when", "up", "use", "word", "how", "said", "an", "each", "she", "which", "their", "time"),
    *("if", "will", "way", "about", "many", "then", "them", "would", "write", "like", "so"),
    *("these", "her", "long", "make", "thing", "see", "him", "two", "has", "look", "more", "day"),
)
MODELS = (
    ("openai", "gpt-4.1"),
    ("openai", "gpt-4.1-mini"),
    ("anthropic", "claude-sonnet-4-5-20250929"),
    ("google_ai", "gemini-2.5-flash"),
)


DAYS = 28
FIRST_DAY = datetime(2026, 10, 1, tzinfo=UTC)


def traces(
    count: int, size: int, seed: int = 1, prefix: str = "t", day: int | None = None
) -> Iterator[bytes]:
    """Yield `count` NDJSON lines of about `size` bytes each, over 28 days or on one day.

    A tenth of the text is in the response, the rest in the request; text is drawn from a hundred
    words, so that it compresses about as prose does.
    """
    chance = random.Random(seed)
    pool = [" ".join(chance.choices(WORDS, k=20_000)) for _ in range(8)]

    def text(length: int) -> str:
        source = chance.choice(pool)
        start = chance.randrange(max(1, len(source) - length))
        return (source[start:] + source * (length // len(source) + 1))[:length]

    for number in range(count):
        provider, model = chance.choice(MODELS)
        days = number % DAYS if day is None else day
        made_at = FIRST_DAY + timedelta(days=days, hours=number % 24)
        room = max(0, size - 900)
        tokens = [chance.randrange(1, 100_000), chance.randrange(1, 5_000)]
        usage: dict[str, object]
        if provider == "google_ai":
            usage = {
                "usageMetadata": {
                    "promptTokenCount": tokens[0],
                    "candidatesTokenCount": tokens[1],
                    "totalTokenCount": sum(tokens),
                }
            }
        elif provider == "anthropic":
            usage = {
                "usage": {
                    "input_tokens": tokens[0],
                    "output_tokens": tokens[1],
                    "cache_read_input_tokens": chance.randrange(10_000),
                    "cache_creation_input_tokens": 0,
                }
            }
        else:
            usage = {
                "usage": {
                    "prompt_tokens": tokens[0],
                    "completion_tokens": tokens[1],
                    "total_tokens": sum(tokens),
                }
            }
        yield (
            json.dumps(
                {
                    "id": f"provider_trace-{prefix}-{number:08d}-{chance.getrandbits(64):016x}",
                    "org_id": f"org-{chance.randrange(20)}",
                    "agent_id": f"agent-{chance.randrange(500)}",
                    "agent_tags": ["bench"],
                    "run_id": f"run-{chance.getrandbits(64):016x}",
                    "step_id": f"step-{chance.getrandbits(64):016x}",
                    "call_type": "agent_step",
                    "request_json": {
                        "model": model,
                        "messages": [{"role": "user", "content": text(room * 9 // 10)}],
                    },
                    "response_json": {"id": "r", "model": model, "text": text(room // 10), **usage},
                    "llm_config": {"model": model, "model_endpoint_type": provider},
                    "created_at": made_at.isoformat(),
                }
            ).encode()
            + b"\n"
        )


def write_traces(
    path: Path,
    count: int,
    size: int,
    seed: int = 1,
    prefix: str = "t",
    day: int | None = None,
) -> int:
    """Write them to a file and return its size in bytes."""
    with path.open("wb") as file:
        file.writelines(traces(count, size, seed, prefix, day))
    return path.stat().st_size
