"""Mutated responses through the parsing SQL: no text may fail the query or lose a row.

`FUZZ_BODIES` says how many bodies (default 2,000; `make fuzz` runs 100,000), `FUZZ_SEED` repeats a
run. The seed is printed, and a failing block is bisected to its body.
"""

from __future__ import annotations

import copy
import gzip
import json
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from chdb import session

from tests.conftest import SHARED_CORPUS
from tests.fuzz.macros import render

SHAPES: list[Any] = [
    {
        "choices": [{"finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 9,
            "completion_tokens": 3,
            "total_tokens": 12,
            "prompt_tokens_details": {"cached_tokens": 4},
            "cost": 5.4e-06,
        },
    },
    {
        "type": "response.completed",
        "response": {
            "status": "completed",
            "output": [{"type": "x"}],
            "usage": {
                "input_tokens": 9,
                "input_tokens_details": {"cached_tokens": 1},
                "output_tokens": 2,
                "total_tokens": 11,
            },
        },
    },
    {
        "content": [{"text": "hi"}],
        "usage": {
            "input_tokens": 9,
            "cache_read_input_tokens": 100,
            "cache_creation": {"ephemeral_1h_input_tokens": 5},
            "output_tokens": 2,
        },
    },
    [
        {
            "usageMetadata": {
                "promptTokenCount": 4,
                "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 4}],
            }
        },
        {"usageMetadata": {"candidatesTokenCount": 5}},
    ],
    {
        "metadata": {
            "usage": {
                "inputTokens": 3,
                "outputTokens": 4,
                "cacheDetails": [{"inputTokens": 1, "ttl": "5m"}],
            }
        }
    },
    {"prompt_eval_count": 4, "eval_count": 6, "message": {"content": "x"}},
    {"results": [{"tokenCount": 4}], "inputTextTokenCount": 5},
    {"error": {"message": "limit of 272000 tokens", "code": 400, "type": "x"}},
    {"message": "no"},
    {"detail": [{"msg": "no"}]},
    {"error_type": "x", "message": "y"},
]
HOSTILE: list[Callable[[random.Random], Any]] = [
    lambda _: None,
    lambda _: True,
    lambda _: [],
    lambda _: {},
    lambda _: "",
    lambda _: -1,
    lambda _: 1.5,
    lambda _: 2**53,
    lambda _: 2**63,
    lambda _: 10**30,
    lambda _: 1e300,
    lambda _: "nan",
    lambda _: "inf",
    lambda _: "0x10",
    lambda _: "\ud800",
    lambda _: "\x00",
    lambda _: [1, [2], {"a": None}],
    lambda _: {"usage": {"prompt_tokens": "7"}},
    lambda r: "é" * r.randrange(2000),
    lambda r: r.random() * 10 ** r.randrange(20),
]
BLOCK = 5000
# As loader and dbt plan: see profiles.example.yml.
PLANNING = "set query_plan_merge_expressions = 0, optimize_and_compare_chain = 0"


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every value in a body."""
    if not isinstance(node, dict | list):
        return
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        yield node, key
        yield from places(value)


def mutated(body: Any, chance: random.Random) -> str:
    """Give the text of a body with one to four things wrong."""
    body = copy.deepcopy(body)
    for _ in range(chance.randrange(1, 5)):
        found = list(places(body))
        if not found:
            break
        container, key = chance.choice(found)
        action = chance.randrange(4)
        if action == 0 and isinstance(container, dict):
            del container[key]
        elif action == 1:
            container[key] = {chance.choice(["usage", "response", "data", "x"]): container[key]}
        elif action == 2:
            container[key] = [container[key]]
        else:
            container[key] = chance.choice(HOSTILE)(chance)
    text = json.dumps(body, ensure_ascii=chance.random() < 0.9).encode("utf-8", "replace").decode()
    damage = chance.randrange(40)
    if damage == 0:
        text = text[: chance.randrange(len(text) + 1)]
    elif damage == 1:
        text = json.dumps(text)
    elif damage == 2:
        text = text.replace(":", ":1e400,", 1)
    elif damage == 3:
        text = "data: " + text + "\n\ndata: [DONE]"
    return text


def bodies(count: int, chance: random.Random) -> Iterator[str]:
    """Yield hostile bodies: fixed giants first, then mutations of our shapes and the corpus's."""
    yield from ["", "null", "5", "[]", "{}", '"', "[1,{}]", '"\\ud800"', "\ufeff{}"]
    yield "[" * 10_000 + "]" * 10_000
    yield '{"a":' * 10_000 + "1" + "}" * 10_000
    yield json.dumps({"usage": {"prompt_tokens": 1}, "text": "x" * 1_000_000})
    yield json.dumps("y" * 1_000_000)
    for cost in [2**53, "9007199254740992", 999_999, 1e18, -1e18, 1e-30, "1e5"]:
        yield json.dumps({"usage": {"prompt_tokens": 1, "cost": cost}})
    shapes = list(SHAPES)
    corpus = SHARED_CORPUS / "traces.ndjson.gz"
    if corpus.exists():
        with gzip.open(corpus, "rt") as lines:
            shapes += [
                json.loads(line)["response_json"]
                for number, line in enumerate(lines)
                if number % 10 == 0
            ]
    for _ in range(count):
        yield mutated(chance.choice(shapes), chance)


@pytest.fixture(scope="module")
def engine() -> Iterator[session.Session]:
    """Give an engine with a table for bodies."""
    with session.Session() as store:
        store.query(PLANNING)
        store.query("create database fuzz")
        store.query(
            "create table fuzz.bodies (id UInt64, provider String, model String, "
            "response_json String) engine = Memory"
        )
        yield store


def parse(store: session.Session, sql: str, block: list[str], folder: Any) -> str:
    """Parse one block and give 'rows wrong rows', raising what the engine raises."""
    path = folder / "block.ndjson"
    path.write_text(
        "\n".join(
            json.dumps({"id": number, "provider": "openai", "model": "m", "response_json": text})
            for number, text in enumerate(block)
        )
    )
    store.query("truncate table fuzz.bodies")
    store.query(
        f"insert into fuzz.bodies select * from file('{path}', 'JSONEachRow', "
        "'id UInt64, provider String, model String, response_json String')"
    )
    return str(
        store.query(
            "select count(), countIf(least(prompt_tokens, completion_tokens, total_tokens) < 0 "
            "or total_tokens < prompt_tokens + completion_tokens "
            "or is_error != isNotNull(error_class) "
            "or usage_status = '' or lengthUTF8(ifNull(error_message, '')) > 1000 "
            "or greatest(ifNull(length(response_model), 0), ifNull(length(service_tier), 0), "
            "length(usage_dialect), length(toString(provider_reported_cost_usd)), "
            "length(unrecognised_keys)) > 100000000) "
            f"from ({sql})",
            "TSV",
        )
    ).strip()


def test_hostile_bodies_lose_no_row(engine: session.Session, tmp_path: Any) -> None:
    """Every hostile body gives exactly one lawful row."""
    seed = int(os.environ.get("FUZZ_SEED") or random.SystemRandom().randrange(2**32))
    count = int(os.environ.get("FUZZ_BODIES", "2000"))
    print(f"FUZZ_SEED={seed} FUZZ_BODIES={count}")
    sql = render("{{ parse_responses('fuzz.bodies') }}")
    block: list[str] = []
    made = bodies(count, random.Random(seed))
    while block := [text for _, text in zip(range(BLOCK), made, strict=False)]:
        fault = fault_of(engine, sql, block, tmp_path)
        while fault and len(block) > 1:
            # The first half that fails alone; what fails only together stays together.
            half = len(block) // 2
            for part in (block[:half], block[half:]):
                if found := fault_of(engine, sql, part, tmp_path):
                    block, fault = part, found
                    break
            else:
                break
        assert not fault, f"FUZZ_SEED={seed}: {len(block)} bodies: {block[0][:2000]!r} {fault}"


def fault_of(store: session.Session, sql: str, block: list[str], folder: Any) -> str:
    """Say what is wrong with what becomes of a block; '' when nothing is."""
    try:
        found = parse(store, sql, block, folder)
    except Exception as error:
        return f"fails: {str(error)[:500]}"
    return "" if found == f"{len(block)}\t0" else f"gives {found}"
