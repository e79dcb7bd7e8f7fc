"""Make the example traces, subscriptions and bills of this folder.

Owns: every file under ``examples/`` except this one, ``README.md`` and ``.gitattributes``.
The content is invented here; nothing is recorded. The same seed gives the same bytes.

Refuses to: read what it wrote in order to know the truth. ``expected.json`` is summed from what
each trace was *meant* to hold, before it became JSON, so that it can judge whoever parses it.
It needs the standard library only, and so holds a small price table of its own (``PRICES``),
used for nothing but the bills.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

HERE = Path(__file__).resolve().parent
SEED = 20261018
FIRST_DAY = datetime(2026, 10, 18, tzinfo=UTC)
DAYS = 14
SECOND_WEEK = FIRST_DAY + timedelta(days=7)

SERVER_WEEK_1 = "server-2026-10-18.ndjson"
SERVER_WEEK_2 = "server-2026-10-25.ndjson.gz"
SOCKET = "socket-2026-10-18.ndjson"

Json = dict[str, Any]
T = TypeVar("T")


# --- chance, text and JSON ---------------------------------------------------------------------


class Dice:
    """Chance that is the same on every Python: only ``Random.random`` is promised to be."""

    def __init__(self, *key: object) -> None:
        """Seed with the text of all parts of the key."""
        self._random = random.Random(":".join(str(part) for part in key))

    def number(self, low: int, high: int) -> int:
        """Return an integer from low to high, both included."""
        return low + int(self._random.random() * (high - low + 1))

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of the choices."""
        return choices[self.number(0, len(choices) - 1)]

    def chance(self, percent: int) -> bool:
        """Return True in about ``percent`` of 100 calls."""
        return self.number(0, 99) < percent

    def hexadecimal(self, digits: int) -> str:
        """Return that many hexadecimal digits."""
        return "".join("0123456789abcdef"[self.number(0, 15)] for _ in range(digits))

    def uuid(self) -> str:
        """Return a random (version 4) UUID."""
        return str(uuid.UUID(hex=self.hexadecimal(32), version=4))


def exact(amount: Decimal) -> str:
    """Mark an amount to be written as a JSON number, digit for digit, by :func:`dump`."""
    return f"@@{amount.normalize():f}@@"


def dump(value: object, indent: int | None = None) -> str:
    """Write JSON as a server does (UTF-8, not escaped), with exact decimal numbers."""
    separators = (",", ": ") if indent else (", ", ": ")
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators)
    return re.sub(r'"@@(-?[0-9.]+)@@"', r"\1", text)


def pythonic(value: object) -> str:
    """Write an error body the way a Python client prints it in its exception."""
    return repr(value)


# --- what the traces talk about ----------------------------------------------------------------


@dataclass(frozen=True)
class Talk:
    """What an agent is for: its system prompt, tools, what people ask, and the answer to each."""

    system: str
    tools: tuple[tuple[str, str, str], ...]
    asks: tuple[str, ...]
    answers: tuple[str, ...]


SUPPORT = Talk(
    "You are the support agent of a web shop for bicycle parts. Be brief and kind. Look up the "
    "order before you promise anything, and hand over to a person when money has to be refunded.",
    (
        ("find_order", "Find an order by its number.", "order_number"),
        ("track_parcel", "Where a parcel is right now.", "parcel_number"),
    ),
    (
        "Where is my order 48213? It should have been here on Tuesday.",
        "The chain I received is for 11 speeds, but I ordered the one for 12.",
        "Can I still change the delivery address of order 48377?",
        "Bonjour, la roue arrière est arrivée voilée. Que dois-je faire ?",
        "Do you have the brake pads in the other compound too?",
        "注文した部品がまだ届きません。いつ届きますか。",
        "I was charged twice for the same saddle, please check.",
    ),
    (
        "Your parcel left our warehouse yesterday and should arrive tomorrow before noon.",
        "I am sorry about that. I have asked a colleague to send the right one today.",
        "Yes, it has not been packed yet. Which address shall I use?",
        "Je suis désolé pour cette roue. Un collègue vous envoie une étiquette de retour.",
        "We do: the sintered ones are in stock, and fit the same caliper.",
        "ご不便をおかけして申し訳ありません。明日の午前中にお届けする予定です。",
        "I see both charges. A colleague will refund the second one and write to you today.",
    ),
)
REVIEW = Talk(
    "You review changes to a payment service written in Go. Point at real faults first, style "
    "last. Quote the line you mean. Say so when a change is fine as it is.",
    (
        ("read_file", "Read a file of the repository at a revision.", "path"),
        ("run_tests", "Run the tests of one package.", "package"),
    ),
    (
        "Review the change to ledger/transfer.go: it adds a retry around the commit.",
        "Is the new index on payments(created_at, state) worth its writes?",
        "The test TestRefundTwice is flaky since yesterday. Why?",
        "Please look at the migration again, I moved the backfill out of the transaction.",
    ),
    (
        (
            "The retry wraps a commit that is not idempotent: a lost answer makes a second "
            "transfer. Give the transfer a key and look for it before you try again."
        ),
        "Fine as it is. One remark: the error is wrapped twice, once in each layer.",
        (
            "It reads the clock twice. When the two readings fall into different seconds the "
            "order of the refunds changes. Pass the time in."
        ),
        "The backfill can now run beside new writes, so it needs a condition on the old value.",
    ),
)
RESEARCH = Talk(
    "You help a market analyst. Give figures with their year and say how sure you are.",
    (("search_reports", "Search the internal reports.", "query"),),
    (
        "How did the market for cargo bicycles in the Netherlands develop since 2020?",
        "Compare our returns rate with what the trade association publishes.",
        "Which three suppliers depend most on a single port?",
    ),
    (
        (
            "Sales grew in each of the last four years, most in 2022. I am fairly sure of the "
            "trend and less sure of the last figure, which is an estimate."
        ),
        "Ours is about one point higher, nearly all of it from wheels and frames.",
        "Two of the three ship only through Rotterdam; the third changed its route this spring.",
    ),
)
TRAVEL = Talk(
    "You plan business trips. Prefer trains under five hours. Never book without a yes.",
    (
        ("find_trains", "Trains between two towns on a day.", "route"),
        ("find_hotels", "Hotels near an address, with prices.", "address"),
    ),
    (
        "I need to be in Lyon on Thursday at ten, and back in Turin the same night.",
        "Find a quiet hotel near the trade fair, at most 140 euro.",
        "Move the meeting trip by one day and tell me what it costs more.",
        "Wie komme ich am Sonntag früh von Zürich nach Genf?",
    ),
    (
        "The 06:42 brings you there at 09:31. Back you can take the 18:10. Shall I book both?",
        "Three fit. The quietest is two stops from the fair and costs 128 euro a night.",
        "One day later costs 34 euro more, all of it for the hotel.",
        "Der erste Zug fährt um 05:39 und ist um 08:26 in Genf.",
    ),
)
CONTRACTS = Talk(
    "You read supply contracts and answer with the clause. Do not give legal advice.",
    (("open_clause", "Open a clause of the contract by its number.", "clause"),),
    (
        "Until when can we cancel the framework agreement without a fee?",
        "Is there a cap on liability, and does it hold for late delivery?",
        "List the clauses that mention personal data.",
    ),
    (
        "Clause 14.2: until the last day of the quarter, in writing, without a fee.",
        "There is one in clause 9. Late delivery has a lower one of its own, in 9.4.",
        "Clauses 6, 11.3 and the second annex.",
    ),
)
NOTES = Talk(
    "You keep the memory of a household robot: short facts, newest first, no guesses.",
    (("remember", "Store one fact.", "fact"), ("recall", "Find facts about a thing.", "thing")),
    (
        "The blue watering can is now in the shed.",
        "What did I say about the guests on Saturday?",
        "Forget the old alarm time, it is half past six from now on.",
        "Summarise this week for me.",
    ),
    (
        "Noted: the blue watering can is in the shed.",
        "Four guests, one of them eats no nuts. They arrive at seven.",
        "The alarm is at 06:30 from now on.",
        "Three things changed this week: the alarm, the shed key, and the cat's food.",
    ),
)
SENTENCES = (
    "The supplier delivers within ten working days after the written order.",
    "The meeting agreed to move the release by one week because of the open migration.",
    "Customer 3 reported that the parcel was left with a neighbour who was not at home.",
    "A second carrier has been asked for an offer; the answer is due on Friday.",
    "The warehouse counted 1,204 frames, six fewer than the system shows.",
    "Ms Okafor will write down how returns with a damaged box are handled.",
    "Nobody objected to the proposal, so it is taken as decided.",
    "The price list of the coming year is attached and valid from January.",
    "It remains open who pays for the transport when the goods are refused.",
    "Der Vertrag verlängert sich um ein Jahr, wenn er nicht gekündigt wird.",
)


def document(dice: Dice, size: int) -> str:
    """Return a text of about that many characters."""
    parts: list[str] = []
    while sum(map(len, parts)) < size:
        parts.append(dice.pick(SENTENCES))
    return " ".join(parts)


# --- what a trace is meant to hold --------------------------------------------------------------


@dataclass
class Usage:
    """Tokens of one call; None is "not reported". Cached and written are part of the prompt."""

    prompt: int = 0
    completion: int = 0
    total: int = 0
    cached: int | None = None
    written_5m: int | None = None
    written_1h: int | None = None
    reasoning: int | None = None
    reported_cost: Decimal | None = None

    @property
    def written(self) -> int:
        """Tokens written to the cache, whatever their life."""
        return (self.written_5m or 0) + (self.written_1h or 0)


@dataclass
class Call:
    """One call to a model, as a shape builds it: the two bodies and what they mean."""

    request: Json
    response: Any
    usage: Usage


@dataclass(frozen=True)
class Fault:
    """A failed call: the body, and what it says."""

    kind: str
    body: Json
    error_type: str | None


@dataclass(frozen=True)
class Agent:
    """One agent doing one kind of call: where its traces come from."""

    organization: str
    project: str
    name: str
    provider: str
    model: str
    shape: Callable[[Dice, Agent, Json], Call]
    calls: int
    talk: Talk
    call_type: str = "agent_step"
    category: str = "base"
    faults: tuple[str, ...] = ()
    special: str = ""
    long_every: int = 0
    snapshot: str = ""
    options: Json = field(default_factory=dict)


@dataclass
class Trace:
    """One trace: when and whose it is, what was said, and what it is meant to count."""

    agent: Agent
    created_at: datetime
    identity: str
    record: Json
    usage: Usage
    fault: Fault | None
    has_billing_context: bool

    @property
    def is_byok(self) -> bool:
        """Whether the call was paid with the customer's own key."""
        return self.agent.category == "byok"


# --- requests ----------------------------------------------------------------------------------


def parameters(name: str) -> Json:
    """Return the JSON schema of a tool with one argument."""
    return {"type": "object", "properties": {name: {"type": "string"}}, "required": [name]}


def chat_request(agent: Agent, ask: str) -> Json:
    """Return a chat completions request."""
    tools = [
        {
            "type": "function",
            "function": {"name": name, "description": about, "parameters": parameters(argument)},
        }
        for name, about, argument in agent.talk.tools
    ]
    return {
        "model": agent.model,
        "messages": [
            {"role": "system", "content": agent.talk.system},
            {"role": "user", "content": ask},
        ],
        "tools": tools,
        "tool_choice": "auto",
        "temperature": 1.0,
    }


def responses_request(agent: Agent, ask: str) -> Json:
    """Return a Responses request."""
    tools = [
        {"type": "function", "name": name, "description": about, "parameters": parameters(argument)}
        for name, about, argument in agent.talk.tools
    ]
    return {
        "model": agent.model,
        "instructions": agent.talk.system,
        "input": [{"role": "user", "content": [{"type": "input_text", "text": ask}]}],
        "tools": tools,
        "reasoning": {"effort": "medium"},
        "store": False,
    }


def messages_request(agent: Agent, ask: str) -> Json:
    """Return an Anthropic messages request."""
    tools = [
        {"name": name, "description": about, "input_schema": parameters(argument)}
        for name, about, argument in agent.talk.tools
    ]
    return {
        "model": agent.model,
        "max_tokens": 4096,
        "system": [
            {
                "type": "text",
                "text": agent.talk.system,
                "cache_control": {"type": "ephemeral"},
            }
        ],
        "messages": [{"role": "user", "content": ask}],
        "tools": tools,
    }


def gemini_request(agent: Agent, ask: str) -> Json:
    """Return a generateContent request."""
    declarations = [
        {"name": name, "description": about, "parameters": parameters(argument)}
        for name, about, argument in agent.talk.tools
    ]
    return {
        "systemInstruction": {"parts": [{"text": agent.talk.system}]},
        "contents": [{"role": "user", "parts": [{"text": ask}]}],
        "tools": [{"functionDeclarations": declarations}],
        "generationConfig": {"temperature": 0.7, "thinkingConfig": {"thinkingBudget": 1024}},
    }


def converse_request(agent: Agent, ask: str) -> Json:
    """Return a Bedrock Converse request."""
    tools = [
        {
            "toolSpec": {
                "name": name,
                "description": about,
                "inputSchema": {"json": parameters(argument)},
            }
        }
        for name, about, argument in agent.talk.tools
    ]
    return {
        "modelId": agent.model,
        "system": [{"text": agent.talk.system}, {"cachePoint": {"type": "default"}}],
        "messages": [{"role": "user", "content": [{"text": ask}]}],
        "inferenceConfig": {"maxTokens": 2048, "temperature": 0.5},
        "toolConfig": {"tools": tools},
    }


# --- responses: one function a shape ------------------------------------------------------------


def chat_body(dice: Dice, agent: Agent, answer: str, created: int) -> Json:
    """Return a chat completion without usage; one of five calls a tool."""
    message: Json = {"role": "assistant", "content": answer, "refusal": None}
    finish = "stop"
    if dice.chance(20):
        name, _, argument = dice.pick(agent.talk.tools)
        call = {
            "id": f"call_{dice.hexadecimal(24)}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps({argument: "48213"})},
        }
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        finish = "tool_calls"
    return {
        "id": f"chatcmpl-{dice.hexadecimal(28)}",
        "object": "chat.completion",
        "created": created,
        "model": agent.snapshot or agent.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
    }


def wrapped(dice: Dice, agent: Agent, answer: str, usage: Json) -> Json:
    """Return a streamed call as an agent server stores it: the text and a usage object."""
    return {
        "content": {
            "tool_call": None,
            "content": [json.dumps({"type": "text", "text": answer}, ensure_ascii=False)],
        },
        "id": f"message-{dice.uuid()}",
        "model": agent.snapshot or agent.model,
        "role": "assistant",
        "type": "message",
        "usage": usage,
    }


def chat_tokens(dice: Dice, cache: bool = True) -> tuple[int, int, int]:
    """Return prompt, cached and completion; OpenAI caches in steps of 128 from 1,024 on."""
    prompt = dice.number(600, 9000)
    cached = 0
    if cache and prompt >= 1024 and dice.chance(60):
        cached = prompt * dice.number(40, 90) // 100 // 128 * 128
    return prompt, cached, dice.number(20, 700)


def openai_usage(prompt: int, cached: int, completion: int, reasoning: int) -> Json:
    """Return the usage object of OpenAI chat completions."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def openai_chat(dice: Dice, agent: Agent, scene: Json) -> Call:
    """OpenAI chat: plain, or streamed with the raw usage, or streamed by an old server."""
    prompt, cached, completion = chat_tokens(dice)
    request = chat_request(agent, scene["ask"])
    usage = Usage(prompt, completion, prompt + completion, cached, reasoning=0)
    raw = openai_usage(prompt, cached, completion, 0)
    style = dice.number(0, 9)
    if style < 6:
        body = chat_body(dice, agent, scene["answer"], scene["created"])
        body["usage"] = raw
        body["service_tier"] = "default"
        body["system_fingerprint"] = f"fp_{dice.hexadecimal(10)}"
        return Call(request, body, usage)
    request |= {"stream": True, "stream_options": {"include_usage": True}}
    if style < 9:
        body = wrapped(dice, agent, scene["answer"], raw)
    else:
        body = wrapped(
            dice,
            agent,
            scene["answer"],
            {"input_tokens": prompt, "output_tokens": completion},
        )
        usage = Usage(prompt, completion, prompt + completion)
    return Call(request, body, usage)


def azure_chat(dice: Dice, agent: Agent, scene: Json) -> Call:
    """Azure's chat completions: OpenAI's, with the content filter's findings."""
    prompt, cached, completion = chat_tokens(dice)
    safe = {"filtered": False, "severity": "safe"}
    findings = dict.fromkeys(("hate", "self_harm", "sexual", "violence"), safe)
    body = chat_body(dice, agent, scene["answer"], scene["created"])
    body["choices"][0]["content_filter_results"] = findings
    body["prompt_filter_results"] = [{"prompt_index": 0, "content_filter_results": findings}]
    body["usage"] = openai_usage(prompt, cached, completion, 0)
    usage = Usage(prompt, completion, prompt + completion, cached, reasoning=0)
    return Call(chat_request(agent, scene["ask"]), body, usage)


def responses(dice: Dice, agent: Agent, scene: Json) -> Call:
    """OpenAI's Responses, whole or as the last event of a stream."""
    prompt, cached, answer_tokens = chat_tokens(dice)
    reasoning = dice.number(0, 12) * 64
    completion = answer_tokens + reasoning
    body: Json = {
        "id": f"resp_{dice.hexadecimal(48)}",
        "object": "response",
        "created_at": scene["created"],
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "max_output_tokens": None,
        "model": agent.snapshot or agent.model,
        "output": [
            {"id": f"rs_{dice.hexadecimal(48)}", "type": "reasoning", "summary": []},
            {
                "id": f"msg_{dice.hexadecimal(48)}",
                "type": "message",
                "status": "completed",
                "role": "assistant",
                "content": [
                    {"type": "output_text", "text": scene["answer"], "annotations": []},
                ],
            },
        ],
        "parallel_tool_calls": True,
        "service_tier": "default",
        "usage": {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": cached},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": prompt + completion,
        },
    }
    usage = Usage(prompt, completion, prompt + completion, cached, reasoning=reasoning)
    request = responses_request(agent, scene["ask"])
    if dice.chance(25):
        event = {"type": "response.completed", "sequence_number": 41, "response": body}
        return Call(request | {"stream": True}, event, usage)
    return Call(request, body, usage)


def embeddings(dice: Dice, agent: Agent, scene: Json) -> Call:
    """OpenAI's embeddings: a prompt and nothing else."""
    prompt = dice.number(40, 6000)
    vector = [exact(Decimal(dice.number(-9999999, 9999999)) / 10**9) for _ in range(8)]
    body = {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": vector}],
        "model": agent.model,
        "usage": {"prompt_tokens": prompt, "total_tokens": prompt},
    }
    request = {"model": agent.model, "input": [scene["ask"]], "encoding_format": "float"}
    return Call(request, body, Usage(prompt, 0, prompt))


def anthropic(dice: Dice, agent: Agent, scene: Json) -> Call:
    """Anthropic's messages, with cache reads and writes of both lives.

    ``options["wrapped"]`` is the percentage stored in the stream wrapper, ``options["legacy"]``
    the percentage of those where an old server kept only input and output.
    """
    fresh, answer_tokens = dice.number(3, 900), dice.number(30, 900)
    read = short = long = 0
    turn = dice.number(0, 9)
    if turn < 3:
        short = dice.number(1500, 9000)
    elif turn < 7:
        read, short = dice.number(2000, 14000), dice.number(0, 1) * dice.number(200, 1500)
    elif turn == 7:
        long = dice.number(3000, 12000)
    elif turn == 8:
        read, fresh = dice.number(2000, 14000), 0
    raw = {
        "input_tokens": fresh,
        "cache_creation_input_tokens": short + long,
        "cache_read_input_tokens": read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": short,
            "ephemeral_1h_input_tokens": long,
        },
        "output_tokens": answer_tokens,
        "service_tier": "standard",
    }
    prompt = fresh + read + short + long
    usage = Usage(
        prompt, answer_tokens, prompt + answer_tokens, read or None, short or None, long or None
    )
    request = messages_request(agent, scene["ask"])
    if long:
        request["system"][0]["cache_control"] = {"type": "ephemeral", "ttl": "1h"}
    if dice.chance(agent.options.get("wrapped", 20)):
        request["stream"] = True
        if dice.chance(agent.options.get("legacy", 0)):
            plain = fresh + dice.number(800, 3000)
            old = {"input_tokens": plain, "output_tokens": answer_tokens}
            body = wrapped(dice, agent, scene["answer"], old)
            return Call(request, body, Usage(plain, answer_tokens, plain + answer_tokens))
        body = wrapped(dice, agent, scene["answer"], raw)
        return Call(request, body, usage)
    content: list[Json] = [{"type": "text", "text": scene["answer"]}]
    stop = "end_turn"
    if dice.chance(25):
        name, _, argument = dice.pick(agent.talk.tools)
        tool_id = f"toolu_{dice.hexadecimal(24)}"
        content.append(
            {"type": "tool_use", "id": tool_id, "name": name, "input": {argument: "ledger"}}
        )
        stop = "tool_use"
    body = {
        "id": f"msg_{dice.hexadecimal(24)}",
        "type": "message",
        "role": "assistant",
        "model": agent.model,
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": raw,
    }
    return Call(request, body, usage)


def gemini_tokens(dice: Dice) -> tuple[int, int, int, int]:
    """Return prompt, cached (part of it), candidates and thoughts (beside them)."""
    prompt = dice.number(300, 12000)
    cached = prompt * dice.number(30, 80) // 100 if prompt > 4096 and dice.chance(50) else 0
    return prompt, cached, dice.number(20, 500), dice.number(0, 1) * dice.number(50, 900)


def gemini_usage(prompt: int, cached: int, answer: int, thoughts: int) -> tuple[Json, Usage]:
    """Return ``usageMetadata`` and its meaning: thoughts lie outside the candidates."""
    total = prompt + answer + thoughts
    raw: Json = {
        "promptTokenCount": prompt,
        "candidatesTokenCount": answer,
        "totalTokenCount": total,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": prompt}],
    }
    if cached:
        raw["cachedContentTokenCount"] = cached
    if thoughts:
        raw["thoughtsTokenCount"] = thoughts
    usage = Usage(prompt, answer + thoughts, total, cached or None, reasoning=thoughts or None)
    return raw, usage


def gemini(dice: Dice, agent: Agent, scene: Json) -> Call:
    """Gemini's generateContent."""
    raw, usage = gemini_usage(*gemini_tokens(dice))
    part = {"content": {"parts": [{"text": scene["answer"]}], "role": "model"}}
    body = {
        "candidates": [part | {"finishReason": "STOP", "index": 0}],
        "usageMetadata": raw,
        "modelVersion": agent.model,
        "responseId": dice.hexadecimal(22),
    }
    return Call(gemini_request(agent, scene["ask"]), body, usage)


def gemini_wrapped(dice: Dice, agent: Agent, scene: Json) -> Call:
    """Gemini streamed through an agent server: the SDK's names are in snake_case."""
    raw, usage = gemini_usage(*gemini_tokens(dice))
    names = {
        "promptTokenCount": "prompt_token_count",
        "candidatesTokenCount": "candidates_token_count",
        "thoughtsTokenCount": "thoughts_token_count",
        "cachedContentTokenCount": "cached_content_token_count",
        "totalTokenCount": "total_token_count",
    }
    snake = {names[key]: value for key, value in raw.items() if key in names}
    body = wrapped(dice, agent, scene["answer"], snake)
    return Call(gemini_request(agent, scene["ask"]), body, usage)


def vertex_array(dice: Dice, agent: Agent, scene: Json) -> Call:
    """Vertex streamed: an array of chunks; the last one has the counts."""
    raw, usage = gemini_usage(*gemini_tokens(dice))
    head, tail = scene["answer"][:24], scene["answer"][24:]
    response_id = dice.hexadecimal(22)
    chunks = [
        {
            "candidates": [{"content": {"role": "model", "parts": [{"text": head}]}}],
            "usageMetadata": {"trafficType": "ON_DEMAND"},
            "modelVersion": agent.model,
            "responseId": response_id,
        },
        {
            "candidates": [
                {
                    "content": {"role": "model", "parts": [{"text": tail}]},
                    "finishReason": "STOP",
                }
            ],
            "usageMetadata": raw | {"trafficType": "ON_DEMAND"},
            "modelVersion": agent.model,
            "responseId": response_id,
        },
    ]
    return Call(gemini_request(agent, scene["ask"]), chunks, usage)


def converse(dice: Dice, agent: Agent, scene: Json) -> Call:
    """Bedrock Converse: cache reads and writes lie outside ``inputTokens``."""
    fresh, answer = dice.number(20, 2500), dice.number(30, 600)
    read = write = 0
    if agent.options.get("cache"):
        turn = dice.number(0, 2)
        read = dice.number(1500, 9000) if turn == 1 else 0
        write = dice.number(1500, 9000) if turn == 2 else 0
    prompt = fresh + read + write
    raw: Json = {"inputTokens": fresh, "outputTokens": answer, "totalTokens": prompt + answer}
    if agent.options.get("cache"):
        raw |= {"cacheReadInputTokens": read, "cacheWriteInputTokens": write}
    body = {
        "output": {"message": {"role": "assistant", "content": [{"text": scene["answer"]}]}},
        "stopReason": "end_turn",
        "usage": raw,
        "metrics": {"latencyMs": dice.number(700, 6000)},
    }
    usage = Usage(prompt, answer, prompt + answer, read or None, write or None)
    return Call(converse_request(agent, scene["ask"]), body, usage)


def mistral(dice: Dice, agent: Agent, scene: Json) -> Call:
    """Mistral's chat completions."""
    prompt, cached, completion = chat_tokens(dice)
    body = chat_body(dice, agent, scene["answer"], scene["created"])
    body["id"] = dice.hexadecimal(32)
    body["usage"] = {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    usage = Usage(prompt, completion, prompt + completion, cached)
    return Call(chat_request(agent, scene["ask"]), body, usage)


def cohere(dice: Dice, agent: Agent, scene: Json) -> Call:
    """Cohere's chat, version 2: ``tokens`` are all of them, ``billed_units`` what is charged."""
    prompt, completion = dice.number(400, 5000), dice.number(20, 500)
    body = {
        "id": dice.uuid(),
        "message": {"role": "assistant", "content": [{"type": "text", "text": scene["answer"]}]},
        "finish_reason": "COMPLETE",
        "usage": {
            "billed_units": {"input_tokens": prompt, "output_tokens": completion},
            "tokens": {"input_tokens": prompt, "output_tokens": completion},
        },
    }
    usage = Usage(prompt, completion, prompt + completion)
    return Call(chat_request(agent, scene["ask"]), body, usage)


def deepseek(dice: Dice, agent: Agent, scene: Json) -> Call:
    """DeepSeek's chat completions, with cache hits and misses beside the usual detail."""
    prompt, cached, completion = chat_tokens(dice)
    body = chat_body(dice, agent, scene["answer"], scene["created"])
    body["id"] = dice.uuid()
    body["usage"] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "prompt_cache_hit_tokens": cached,
        "prompt_cache_miss_tokens": prompt - cached,
    }
    usage = Usage(prompt, completion, prompt + completion, cached)
    return Call(chat_request(agent, scene["ask"]), body, usage)


def groq(dice: Dice, agent: Agent, scene: Json) -> Call:
    """Groq: whole, or the last chunk of a stream with its usage under ``x_groq``."""
    prompt, _, completion = chat_tokens(dice, cache=False)
    raw = {
        "queue_time": exact(Decimal(dice.number(1000, 60000)) / 10**6),
        "prompt_tokens": prompt,
        "prompt_time": exact(Decimal(dice.number(1000, 60000)) / 10**6),
        "completion_tokens": completion,
        "completion_time": exact(Decimal(dice.number(10000, 900000)) / 10**6),
        "total_tokens": prompt + completion,
    }
    usage = Usage(prompt, completion, prompt + completion)
    request = chat_request(agent, scene["ask"])
    if dice.chance(50):
        body = chat_body(dice, agent, scene["answer"], scene["created"])
        body |= {"usage": raw, "x_groq": {"id": f"req_{dice.hexadecimal(26)}"}}
        return Call(request, body, usage)
    chunk = {
        "id": f"chatcmpl-{dice.uuid()}",
        "object": "chat.completion.chunk",
        "created": scene["created"],
        "model": agent.model,
        "choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}],
        "x_groq": {"id": f"req_{dice.hexadecimal(26)}", "usage": raw},
    }
    return Call(request | {"stream": True}, chunk, usage)


def xai(dice: Dice, agent: Agent, scene: Json) -> Call:
    """Chat of xAI: the reasoning lies outside ``completion_tokens``, but inside the total."""
    prompt, cached, answer = chat_tokens(dice)
    reasoning = dice.number(40, 900)
    total = prompt + answer + reasoning
    body = chat_body(dice, agent, scene["answer"], scene["created"])
    body["id"] = dice.uuid()
    raw = openai_usage(prompt, cached, answer, reasoning)
    body["usage"] = raw | {"total_tokens": total, "num_sources_used": 0}
    usage = Usage(prompt, answer + reasoning, total, cached, reasoning=reasoning)
    return Call(chat_request(agent, scene["ask"]), body, usage)


def ollama(dice: Dice, agent: Agent, scene: Json) -> Call:
    """Ollama's own chat on the organization's machine: nobody sends a bill."""
    prompt, completion = dice.number(80, 3500), dice.number(20, 500)
    body = {
        "model": agent.model,
        "created_at": scene["created_at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "message": {"role": "assistant", "content": scene["answer"]},
        "done": True,
        "done_reason": "stop",
        "total_duration": dice.number(10**9, 9 * 10**9),
        "load_duration": dice.number(10**6, 10**7),
        "prompt_eval_count": prompt,
        "prompt_eval_duration": dice.number(10**7, 10**9),
        "eval_count": completion,
        "eval_duration": dice.number(10**8, 7 * 10**9),
    }
    request = chat_request(agent, scene["ask"])
    del request["tool_choice"], request["temperature"]
    request |= {"stream": False, "options": {"temperature": 0.2, "num_ctx": 8192}}
    usage = Usage(prompt, completion, prompt + completion)
    return Call(request, body, usage)


def openrouter(dice: Dice, agent: Agent, scene: Json) -> Call:
    """OpenRouter: says itself what a call cost; with the customer's key, nothing but upstream."""
    prompt, cached, completion = chat_tokens(dice)
    usage = Usage(prompt, completion, prompt + completion, cached, reasoning=0)
    price = sum(charges("openrouter", agent.model, usage).values(), Decimal(0))
    own_key = agent.category == "byok"
    usage.reported_cost = Decimal(0) if own_key else price
    body = chat_body(dice, agent, scene["answer"], scene["created"])
    body["id"] = f"gen-{scene['created']}-{dice.hexadecimal(20)}"
    body["provider"] = "Anthropic"
    body["usage"] = openai_usage(prompt, cached, completion, 0) | {
        "cost": exact(usage.reported_cost),
        "is_byok": own_key,
        "cost_details": {"upstream_inference_cost": exact(price)},
    }
    return Call(chat_request(agent, scene["ask"]), body, usage)


def unrecognised(dice: Dice, agent: Agent, scene: Json) -> Call:
    """Answer as a gateway whose usage fits no dialect: numbers, but nobody knows of what."""
    body = {
        "reply": scene["answer"],
        "model": agent.model,
        "usage": {"tokensConsumed": {"question": dice.number(200, 900), "reply": 96}, "unit": "t"},
    }
    return Call(chat_request(agent, scene["ask"]), body, Usage())


# --- failures ----------------------------------------------------------------------------------


def sdk_error(status: int, name: str, body: Json, kind: str) -> Fault:
    """Return an error as an agent server stores a client's exception."""
    text = f"Error code: {status} - {pythonic(body)}"
    return Fault(kind, {"error": text, "error_type": name}, name)


def make_fault(name: str, dice: Dice, model: str) -> Fault:
    """Return the failure of that name.

    Raises
    ------
    KeyError
        If there is no such failure.
    """
    request_id = f"req_{dice.hexadecimal(24)}"
    too_fast = (
        f"Rate limit reached for {model} in organization org-example on tokens per min (TPM): "
        f"Limit 30000, Used {dice.number(26000, 30000)}, Requested {dice.number(4100, 9000)}."
    )
    too_long = (
        "This model's maximum context length is 128000 tokens. However, your messages resulted in "
        f"{dice.number(128100, 190000)} tokens. Please reduce the length of the messages."
    )
    openai_fast = {"message": too_fast, "type": "tokens", "code": "rate_limit_exceeded"}
    openai_long = {
        "message": too_long,
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }
    filtered = {
        "message": "The response was filtered due to the prompt triggering the content management "
        "policy. Please modify your prompt and retry.",
        "type": None,
        "param": "prompt",
        "code": "content_filter",
        "status": 400,
    }
    overloaded = {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "Overloaded"},
        "request_id": request_id,
    }
    bad_key = {
        "type": "error",
        "error": {"type": "authentication_error", "message": "invalid x-api-key"},
        "request_id": request_id,
    }
    exhausted = {
        "code": 429,
        "message": "Resource has been exhausted (e.g. check quota).",
        "status": "RESOURCE_EXHAUSTED",
    }
    throttled = {"message": "Too many requests, please wait before trying again."}
    faults = {
        "openai_rate": Fault("rate_limit", {"error": openai_fast}, "tokens"),
        "openai_rate_sdk": sdk_error(429, "RateLimitError", {"error": openai_fast}, "rate_limit"),
        "openai_context": Fault(
            "context_overflow", {"error": openai_long}, "invalid_request_error"
        ),
        "openai_context_sdk": sdk_error(
            400, "BadRequestError", {"error": openai_long}, "context_overflow"
        ),
        "openai_key": Fault(
            "authentication",
            {
                "error": {
                    "message": "Incorrect API key provided: sk-exa*****mple.",
                    "type": "invalid_request_error",
                    "param": None,
                    "code": "invalid_api_key",
                }
            },
            "invalid_request_error",
        ),
        "azure_filter": Fault("content_filter", {"error": filtered}, "content_filter"),
        "anthropic_overloaded": Fault("overloaded", overloaded, "overloaded_error"),
        "anthropic_overloaded_sdk": sdk_error(529, "OverloadedError", overloaded, "overloaded"),
        "anthropic_key_sdk": sdk_error(401, "AuthenticationError", bad_key, "authentication"),
        "google_rate": Fault("rate_limit", {"error": exhausted}, "RESOURCE_EXHAUSTED"),
        "bedrock_rate": Fault("rate_limit", throttled, None),
    }
    return faults[name]


# --- who calls what ----------------------------------------------------------------------------

AGENTS = (
    Agent(
        "org-acme",
        "project-shop",
        "support",
        "openai",
        "gpt-4.1",
        openai_chat,
        42,
        SUPPORT,
        snapshot="gpt-4.1-2025-04-14",
        special="usage_null",
        faults=("openai_rate", "openai_rate_sdk", "openai_context"),
    ),
    Agent(
        "org-acme",
        "project-shop",
        "support",
        "openai",
        "gpt-4.1-mini",
        openai_chat,
        14,
        SUPPORT,
        call_type="summarization",
        snapshot="gpt-4.1-mini-2025-04-14",
        long_every=3,
        faults=("openai_context_sdk",),
    ),
    Agent(
        "org-acme",
        "project-platform",
        "reviewer",
        "anthropic",
        "claude-sonnet-4-5-20250929",
        anthropic,
        34,
        REVIEW,
        faults=("anthropic_overloaded", "anthropic_overloaded_sdk"),
    ),
    Agent(
        "org-acme",
        "project-platform",
        "reviewer",
        "anthropic",
        "claude-haiku-4-5-20251001",
        anthropic,
        10,
        REVIEW,
        call_type="summarization",
        long_every=4,
    ),
    Agent(
        "org-acme",
        "project-shop",
        "analyst",
        "openai",
        "gpt-5",
        responses,
        22,
        RESEARCH,
        snapshot="gpt-5-2025-08-07",
        faults=("openai_rate", "openai_context"),
    ),
    Agent(
        "org-acme",
        "project-shop",
        "analyst",
        "openai",
        "text-embedding-3-small",
        embeddings,
        14,
        RESEARCH,
        call_type="embedding",
    ),
    Agent(
        "org-acme",
        "project-shop",
        "support",
        "azure",
        "gpt-4o",
        azure_chat,
        12,
        SUPPORT,
        snapshot="gpt-4o-2024-11-20",
        faults=("azure_filter", "azure_filter"),
    ),
    Agent(
        "org-acme",
        "project-shop",
        "support",
        "openai",
        "acme-support-v2",
        openai_chat,
        1,
        SUPPORT,
        call_type="classification",
    ),
    Agent(
        "org-globex",
        "project-travel",
        "planner",
        "google_ai",
        "gemini-2.5-flash",
        gemini,
        28,
        TRAVEL,
        special="usage_absent",
        faults=("google_rate", "google_rate", "google_rate"),
    ),
    Agent(
        "org-globex",
        "project-travel",
        "planner",
        "google_vertex",
        "gemini-2.5-pro",
        vertex_array,
        14,
        TRAVEL,
        call_type="summarization",
        long_every=7,
    ),
    Agent(
        "org-globex",
        "project-legal",
        "contracts",
        "bedrock",
        "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
        converse,
        16,
        CONTRACTS,
        options={"cache": True},
        long_every=6,
        faults=("bedrock_rate",),
    ),
    Agent(
        "org-globex",
        "project-legal",
        "contracts",
        "bedrock",
        "amazon.nova-pro-v1:0",
        converse,
        6,
        CONTRACTS,
        call_type="classification",
    ),
    Agent(
        "org-globex",
        "project-legal",
        "translator",
        "mistral",
        "mistral-large-2512",
        mistral,
        14,
        CONTRACTS,
    ),
    Agent(
        "org-globex",
        "project-legal",
        "translator",
        "cohere",
        "command-a-03-2025",
        cohere,
        9,
        CONTRACTS,
        call_type="classification",
    ),
    Agent(
        "org-globex",
        "project-travel",
        "expenses",
        "deepseek",
        "deepseek-chat",
        deepseek,
        12,
        TRAVEL,
        special="usage_null",
    ),
    Agent(
        "org-globex",
        "project-travel",
        "expenses",
        "inhouse_gateway",
        "switchboard-1",
        unrecognised,
        1,
        TRAVEL,
    ),
    Agent(
        "org-initech",
        "",
        "butler",
        "openai",
        "gpt-5-mini",
        responses,
        18,
        NOTES,
        snapshot="gpt-5-mini-2025-08-07",
        faults=("openai_rate_sdk",),
    ),
    Agent(
        "org-initech",
        "",
        "butler",
        "anthropic",
        "claude-sonnet-4-5-20250929",
        anthropic,
        14,
        NOTES,
        options={"wrapped": 100, "legacy": 70},
        faults=("anthropic_overloaded_sdk",),
    ),
    Agent(
        "org-initech",
        "",
        "gardener",
        "anthropic",
        "claude-opus-4-5-20251101",
        anthropic,
        12,
        NOTES,
        options={"wrapped": 100},
        faults=("anthropic_overloaded",),
    ),
    Agent(
        "org-initech",
        "",
        "gardener",
        "groq",
        "llama-3.3-70b-versatile",
        groq,
        14,
        NOTES,
        call_type="summarization",
        faults=("openai_rate_sdk",),
    ),
    Agent(
        "org-initech",
        "",
        "cook",
        "xai",
        "grok-4",
        xai,
        12,
        NOTES,
        faults=("openai_rate_sdk",),
    ),
    Agent(
        "org-initech",
        "",
        "cook",
        "google_ai",
        "gemini-2.5-flash",
        gemini_wrapped,
        8,
        NOTES,
    ),
    Agent(
        "org-initech",
        "",
        "cook",
        "openrouter",
        "anthropic/claude-haiku-4.5",
        openrouter,
        10,
        NOTES,
    ),
    Agent(
        "org-umbrella",
        "project-lab",
        "assistant",
        "openai",
        "gpt-4.1",
        openai_chat,
        18,
        RESEARCH,
        category="byok",
        snapshot="gpt-4.1-2025-04-14",
        faults=("openai_key", "openai_context_sdk"),
    ),
    Agent(
        "org-umbrella",
        "project-lab",
        "assistant",
        "anthropic",
        "claude-sonnet-4-5-20250929",
        anthropic,
        16,
        RESEARCH,
        category="byok",
        faults=("anthropic_key_sdk", "anthropic_overloaded"),
    ),
    Agent(
        "org-umbrella",
        "project-lab",
        "assistant",
        "azure",
        "gpt-4.1",
        responses,
        8,
        RESEARCH,
        category="byok",
        snapshot="gpt-4.1-2025-04-14",
        faults=("azure_filter",),
    ),
    Agent(
        "org-umbrella",
        "project-lab",
        "librarian",
        "openrouter",
        "anthropic/claude-haiku-4.5",
        openrouter,
        6,
        RESEARCH,
        category="byok",
    ),
    Agent(
        "org-umbrella",
        "project-lab",
        "librarian",
        "ollama",
        "llama3.1:8b",
        ollama,
        14,
        RESEARCH,
        call_type="summarization",
        long_every=7,
    ),
)

BILLING_CONTEXTS: dict[str, Json] = {
    "org-acme": {
        "plan_type": "enterprise",
        "cost_source": "credits",
        "customer_id": "cus_acme01",
    },
    "org-globex": {"plan_type": "pro", "cost_source": "quota", "customer_id": "cus_globex01"},
    "org-umbrella": {"plan_type": "pro", "cost_source": "credits", "customer_id": "cus_umbrella01"},
}

# organization_id, plan_type, cost_source, customer_id, valid_from
SUBSCRIPTIONS = (
    ("org-initech", "free", "quota", "cus_initech01", "2026-09-01T00:00:00Z"),
    ("org-initech", "pro", "credits", "cus_initech01", "2026-10-25T00:00:00Z"),
    ("org-umbrella", "pro", "credits", "cus_umbrella01", "2026-10-01T00:00:00Z"),
)

ENDPOINTS = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com/v1",
    "ollama": "http://ollama.internal:11434",
    "azure": "https://example.openai.azure.com",
}


def llm_config(agent: Agent) -> Json:
    """Return the model settings an agent server stores beside a trace."""
    return {
        "model": agent.model,
        "model_endpoint_type": agent.provider,
        "model_endpoint": ENDPOINTS.get(agent.provider),
        "context_window": 128000,
        "provider_name": agent.provider,
        "provider_category": agent.category,
        "handle": f"{agent.provider}/{agent.model}",
        "temperature": 1.0,
        "max_tokens": 4096,
        "parallel_tool_calls": False,
    }


def make_trace(agent: Agent, index: int, number: int, step: Json) -> Trace:
    """Return one trace of an agent: its ``index``-th, at the time and run of ``step``."""
    dice = Dice(SEED, "trace", number, index)
    created_at: datetime = step["created_at"]
    chosen = dice.number(0, len(agent.talk.asks) - 1)
    ask, answer = agent.talk.asks[chosen], agent.talk.answers[chosen]
    if agent.long_every and index % agent.long_every == 1:
        ask = "Summarise for the record:\n\n" + document(dice, dice.number(5000, 15000))
        answer = f"Delivery, returns and the release were discussed. {dice.pick(SENTENCES)}"
    scene: Json = {
        "ask": ask,
        "answer": answer,
        "created": int(created_at.timestamp()),
        "created_at": created_at,
    }
    call = agent.shape(dice, agent, scene)
    response, usage, fault = call.response, call.usage, None
    # failures stand apart from each other: at 2, 7, 12, … of the agent's calls
    if index % 5 == 2 and index // 5 < len(agent.faults):
        fault = make_fault(agent.faults[index // 5], dice, agent.model)
        response, usage = fault.body, Usage()
    elif agent.special and index == 3:
        response = chat_body(dice, agent, scene["answer"], scene["created"]) | {"usage": None}
        if agent.special == "usage_absent":
            response = {"candidates": call.response["candidates"], "modelVersion": agent.model}
        usage = Usage()
    billing = BILLING_CONTEXTS.get(agent.organization)
    if agent.organization == "org-umbrella" and index % 2:
        billing = None
    identity = dice.uuid()
    tags = [agent.name, "production"] if dice.chance(70) else []
    compaction = None
    if agent.call_type == "summarization":
        compaction = {"mode": "sliding_window", "sliding_window_percentage": 0.3}
    common: Json = {
        "agent_id": step["agent_id"],
        "run_id": step["run_id"],
        "step_id": f"step-{dice.uuid()}",
    }
    user = f"user-{agent.organization.removeprefix('org-')}-{dice.number(1, 5)}"
    if agent.organization == "org-initech":
        record = {
            "protocol_version": 3,
            "provider_trace_id": f"provider_trace-{identity}",
            **common,
            "tags": tags,
            "type": agent.call_type,
            "source": "agent-server",
            "request": call.request,
            "response": None if fault else response,
            "error": None,
            "error_type": None,
            "timestamp": created_at.isoformat(),
            "org_id": agent.organization,
            "user_id": user,
            "compaction_settings": compaction,
            "llm_config": llm_config(agent),
        }
        if fault:
            error = fault.body["error"]
            record["error"] = error["message"] if isinstance(error, dict) else error
            record["error_type"] = fault.body.get("error_type")
            # the socket's writer keeps the type only where the body names it beside the error
            fault = Fault(fault.kind, fault.body, record["error_type"])
    else:
        record = {
            "id": f"provider_trace-{identity}",
            "org_id": agent.organization,
            "project_id": agent.project,
            **common,
            "trace_id": dice.hexadecimal(32),
            "agent_tags": tags,
            "call_type": agent.call_type,
            "source": "agent-server",
            "user_id": user,
            "request_json": call.request,
            "response_json": response,
            "llm_config": llm_config(agent),
            "compaction_settings": compaction,
            "billing_context": billing,
            "latency_ms": dice.number(80, 400) if fault else dice.number(350, 14000),
            "created_at": created_at.isoformat(),
        }
    return Trace(agent, created_at, identity, record, usage, fault, billing is not None)


def make_traces() -> list[Trace]:
    """Return every trace once, by time: each agent's calls in runs of one to four steps."""
    traces: list[Trace] = []
    for number, agent in enumerate(AGENTS):
        dice = Dice(SEED, "agent", number)
        agent_id = f"agent-{Dice(SEED, agent.organization, agent.name).uuid()}"
        index = 0
        while index < agent.calls:
            # runs are spread over the days, more of them by day than by night
            day = (number * 5 + index * DAYS // agent.calls + dice.number(0, 2)) % DAYS
            hour = dice.number(7, 19) if dice.chance(85) else dice.number(0, 23)
            moment = FIRST_DAY + timedelta(
                days=day,
                hours=hour,
                minutes=dice.number(0, 54),
                seconds=dice.number(0, 59),
                microseconds=dice.number(1, 999_999),
            )
            run_id = f"run-{dice.uuid()}"
            for _ in range(min(dice.number(1, 4), agent.calls - index)):
                step = {"created_at": moment, "agent_id": agent_id, "run_id": run_id}
                traces.append(make_trace(agent, index, number, step))
                moment += timedelta(seconds=dice.number(2, 60), microseconds=dice.number(0, 999))
                index += 1
    return sorted(traces, key=lambda trace: (trace.created_at, trace.identity))


# --- files -------------------------------------------------------------------------------------

CUT_LINE = (
    '{"id": "provider_trace-5d2c7f1e-cut", "org_id": "org-acme", "request_json": {"model": "g'
)
STRING_LINE = '"the trace writer was restarted"'


def make_lines(traces: Iterable[Trace]) -> dict[str, list[str]]:
    """Return the lines of each file: the traces, what arrived twice, and what is no record."""
    lines: dict[str, list[str]] = {SERVER_WEEK_1: [], SERVER_WEEK_2: [], SOCKET: []}
    records: dict[str, list[Json]] = {name: [] for name in lines}
    for trace in traces:
        if trace.agent.organization == "org-initech":
            name = SOCKET
        else:
            name = SERVER_WEEK_1 if trace.created_at < SECOND_WEEK else SERVER_WEEK_2
        lines[name].append(dump(trace.record))
        records[name].append(trace.record)
    first, second, socket = lines[SERVER_WEEK_1], lines[SERVER_WEEK_2], lines[SOCKET]
    # an id that arrives again with another payload: the first is the one that counts
    position, other = next(
        (position, record)
        for position, record in enumerate(records[SERVER_WEEK_1])
        if position > 40 and "choices" in record["response_json"]
    )
    changed = json.loads(dump(other))
    changed["response_json"]["usage"]["completion_tokens"] += 1000
    changed["response_json"]["usage"]["total_tokens"] += 1000
    again = first[60]
    second.insert(5, first[80])  # the same bytes, sent again a week later, in another file
    first.insert(position + 25, dump(changed))
    first.insert(90, again)  # the same bytes twice in one file
    first.insert(30, CUT_LINE)
    first.insert(100, STRING_LINE)
    socket.append(socket[12])
    return lines


def compress(data: bytes) -> bytes:
    """Return gzip without name or time, so that the same data gives the same bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=9, mtime=0) as file:
        file.write(data)
    return buffer.getvalue()


# --- money: list prices, for the bills only -----------------------------------------------------

# US dollars a million tokens, list prices of October 2026:
# uncached input, cached read, cache write (5 minutes), cache write (1 hour), output.
# None: this provider has no such price; such tokens do not occur in these examples.
PRICES: dict[tuple[str, str], tuple[str, str | None, str | None, str | None, str]] = {
    ("openai", "gpt-4.1"): ("2", "0.5", None, None, "8"),
    ("openai", "gpt-4.1-mini"): ("0.4", "0.1", None, None, "1.6"),
    ("openai", "gpt-5"): ("1.25", "0.125", None, None, "10"),
    ("openai", "gpt-5-mini"): ("0.25", "0.025", None, None, "2"),
    ("openai", "text-embedding-3-small"): ("0.02", None, None, None, "0"),
    ("anthropic", "claude-sonnet-4-5-20250929"): ("3", "0.3", "3.75", "6", "15"),
    ("anthropic", "claude-haiku-4-5-20251001"): ("1", "0.1", "1.25", "2", "5"),
    ("anthropic", "claude-opus-4-5-20251101"): ("5", "0.5", "6.25", "10", "25"),
    ("google_ai", "gemini-2.5-flash"): ("0.3", "0.03", None, None, "2.5"),
    ("mistral", "mistral-large-2512"): ("0.5", "0.05", None, None, "1.5"),
    ("groq", "llama-3.3-70b-versatile"): ("0.59", None, None, None, "0.79"),
    ("xai", "grok-4"): ("3", "0.75", None, None, "15"),
    ("deepseek", "deepseek-chat"): ("0.27", "0.07", None, None, "1.1"),
    ("cohere", "command-a-03-2025"): ("2.5", None, None, None, "10"),
    ("openrouter", "anthropic/claude-haiku-4.5"): ("1", "0.1", None, None, "5"),
}
KINDS = ("input", "cached", "written_5m", "written_1h", "output")
CSV_PROVIDERS = ("cohere", "deepseek", "google_ai", "groq", "mistral", "xai")

# the differences that a reconciliation is to find
MISSING_DAY = "2026-10-22"  # the Anthropic report has no such day
PRICE_DAY = "2026-10-27"  # OpenAI charges the output of gpt-4.1 at 10 instead of 8
PRICE_CHARGED = Decimal("1.25")  # … that is, at 1.25 times the list price
EXTRA_LINE = ("2026-10-29", "cohere", "rerank-v3.5", "0.042000")  # a bill without traces
UNKNOWN_MODEL_BILL = (Decimal("0.0031"), Decimal("0.0012"))  # of the model without a list price


def charges(provider: str, model: str, usage: Usage) -> dict[str, Decimal]:
    """Return what a call costs at list price, in US dollars by kind of token; {} if unknown."""
    prices = PRICES.get((provider, model))
    if prices is None:
        return {}
    cached = usage.cached or 0
    amounts = (
        usage.prompt - cached - usage.written,
        cached,
        usage.written_5m or 0,
        usage.written_1h or 0,
        usage.completion,
    )
    result: dict[str, Decimal] = {}
    for kind, price, tokens in zip(KINDS, prices, amounts, strict=True):
        if tokens:
            if price is None:
                raise ValueError(f"{provider}/{model}: {tokens} {kind} tokens have no price")
            result[kind] = Decimal(price) * tokens / 1_000_000
    return result


Bill = dict[tuple[str, str, str], Decimal]  # (day, model, kind) -> US dollars


def bill_of(traces: Iterable[Trace], provider: str) -> Bill:
    """Return what a provider charges the operator: customers' own keys are not on that bill."""
    bill: Bill = {}
    for trace in traces:
        if trace.agent.provider == provider and not trace.is_byok:
            model, day = trace.agent.model, trace.created_at.date().isoformat()
            for kind, amount in charges(provider, model, trace.usage).items():
                bill[day, model, kind] = bill.get((day, model, kind), Decimal(0)) + amount
    return dict(sorted(bill.items()))


def days() -> list[datetime]:
    """Return the days of the examples, at midnight UTC."""
    return [FIRST_DAY + timedelta(days=day) for day in range(DAYS)]


def openai_page(traces: Sequence[Trace]) -> Json:
    """Return a page of OpenAI's organization costs: dollars by day and line item."""
    bill = bill_of(traces, "openai")
    names = {"input": "input", "cached": "cached input", "output": "output"}
    snapshots = {agent.model: agent.snapshot or agent.model for agent in AGENTS}
    wrong = (PRICE_DAY, "gpt-4.1", "output")
    bill[wrong] *= PRICE_CHARGED  # a KeyError here: that day has no such call any more
    unknown = next(trace for trace in traces if trace.agent.model == "acme-support-v2")
    unknown_day = unknown.created_at.date().isoformat()
    for kind, amount in zip(("input", "output"), UNKNOWN_MODEL_BILL, strict=True):
        bill[unknown_day, "acme-support-v2", kind] = amount
    buckets = []
    for day in days():
        results = [
            {
                "object": "organization.costs.result",
                "amount": {"value": exact(amount), "currency": "usd"},
                "line_item": f"{snapshots[model]}, {names[kind]}",
                "project_id": None,
            }
            for (bill_day, model, kind), amount in sorted(bill.items())
            if bill_day == day.date().isoformat()
        ]
        buckets.append(
            {
                "object": "bucket",
                "start_time": int(day.timestamp()),
                "end_time": int((day + timedelta(days=1)).timestamp()),
                "results": results,
            }
        )
    return {"object": "page", "data": buckets, "has_more": False, "next_page": None}


def anthropic_page(traces: Sequence[Trace]) -> Json:
    """Return a page of Anthropic's cost report: decimal strings in cents by day and token type."""
    kinds = {
        "input": ("Input Tokens", "uncached_input_tokens"),
        "cached": ("Input Tokens, Cache Read", "cache_read_input_tokens"),
        "written_5m": (
            "Input Tokens, Cache Write",
            "cache_creation.ephemeral_5m_input_tokens",
        ),
        "written_1h": (
            "Input Tokens, Cache Write (1h)",
            "cache_creation.ephemeral_1h_input_tokens",
        ),
        "output": ("Output Tokens", "output_tokens"),
    }
    titles = {
        "claude-sonnet-4-5-20250929": "Claude Sonnet 4.5",
        "claude-haiku-4-5-20251001": "Claude Haiku 4.5",
        "claude-opus-4-5-20251101": "Claude Opus 4.5",
    }
    bill = bill_of(traces, "anthropic")
    if not any(day == MISSING_DAY for day, _, _ in bill):
        raise ValueError(f"{MISSING_DAY} has no Anthropic call: nothing would be missing")
    buckets = []
    for day in days():
        name = day.date().isoformat()
        if name == MISSING_DAY:
            continue
        results = [
            {
                "currency": "USD",
                "amount": f"{(amount * 100).normalize():f}",
                "workspace_id": None,
                "description": f"{titles[model]} Usage - {kinds[kind][0]}",
                "cost_type": "tokens",
                "context_window": "0-200k",
                "model": model,
                "service_tier": "standard",
                "token_type": kinds[kind][1],
            }
            for (bill_day, model, kind), amount in bill.items()
            if bill_day == name
        ]
        buckets.append(
            {
                "starting_at": f"{name}T00:00:00Z",
                "ending_at": f"{(day + timedelta(days=1)).date().isoformat()}T00:00:00Z",
                "results": results,
            }
        )
    return {"data": buckets, "has_more": False, "next_page": None}


def csv_bill(traces: Sequence[Trace]) -> str:
    """Return the other providers' bill, to the millionth of a dollar by day and model."""
    rows: list[tuple[str, str, str, str]] = [EXTRA_LINE]
    for provider in CSV_PROVIDERS:
        sums: dict[tuple[str, str], Decimal] = {}
        for (day, model, _), amount in bill_of(traces, provider).items():
            sums[day, model] = sums.get((day, model), Decimal(0)) + amount
        for (day, model), amount in sums.items():
            rows.append((day, provider, model, f"{amount.quantize(Decimal('0.000001')):f}"))
    lines = ["date,provider,model,amount_usd", *(",".join(row) for row in sorted(rows))]
    return "\n".join(lines) + "\n"


# --- the truth ---------------------------------------------------------------------------------

COUNTS = (
    "calls",
    "errors",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
)


def counts_of(trace: Trace) -> dict[str, int]:
    """Return what one trace adds to the sums; a count that was not reported adds nothing."""
    usage = trace.usage
    # Converse does not tell the lives of a cache write apart
    split = trace.agent.provider == "anthropic"
    values = (
        1,
        int(trace.fault is not None),
        usage.prompt,
        usage.completion,
        usage.total,
        usage.cached or 0,
        usage.written,
        (usage.written_5m or 0) if split else 0,
        (usage.written_1h or 0) if split else 0,
        usage.reasoning or 0,
    )
    return dict(zip(COUNTS, values, strict=True))


def sums_by(traces: Iterable[Trace], *names: str) -> list[Json]:
    """Return the sums of all counts by those keys, in their order."""
    groups: dict[tuple[str, ...], dict[str, int]] = {}
    for trace in traces:
        keys = {
            "organization_id": trace.agent.organization,
            "provider": trace.agent.provider,
            "model": trace.agent.model,
            "call_type": trace.agent.call_type,
            "date": trace.created_at.date().isoformat(),
        }
        group = groups.setdefault(tuple(keys[name] for name in names), dict.fromkeys(COUNTS, 0))
        for name, value in counts_of(trace).items():
            group[name] += value
    return [dict(zip(names, key, strict=True)) | group for key, group in sorted(groups.items())]


def tally(values: Iterable[str | None]) -> dict[str, int]:
    """Return how often each value occurs, in order; None is written as "null"."""
    result: dict[str, int] = {}
    for value in values:
        result[value or "null"] = result.get(value or "null", 0) + 1
    return dict(sorted(result.items()))


def list_cost(traces: Iterable[Trace]) -> list[Json]:
    """Return the list-price cost by provider and day, where ``PRICES`` covers the provider."""
    sums: dict[tuple[str, str], Decimal] = {}
    for trace in traces:
        if not trace.is_byok:
            key = (trace.agent.provider, trace.created_at.date().isoformat())
            for amount in charges(trace.agent.provider, trace.agent.model, trace.usage).values():
                sums[key] = sums.get(key, Decimal(0)) + amount
    return [
        {"provider": provider, "date": date, "list_cost_usd": f"{amount.normalize():f}"}
        for (provider, date), amount in sorted(sums.items())
    ]


def expected(traces: Sequence[Trace], lines: dict[str, list[str]]) -> Json:
    """Return what a correct ledger holds after landing the three files."""
    rejects = {SERVER_WEEK_1: 2, SERVER_WEEK_2: 0, SOCKET: 0}
    openrouter_cost = sum((trace.usage.reported_cost or Decimal(0) for trace in traces), Decimal(0))
    special = [trace for trace in traces if not trace.fault and trace.usage.total == 0]
    return {
        "files": [
            {"file": name, "lines": len(rows), "rejects": rejects[name]}
            for name, rows in lines.items()
        ],
        "traces": len(traces),
        "sent_again_unchanged": 3,
        "sent_again_changed": 1,
        "without_tokens_and_error": len(special),
        "byok_calls": sum(trace.is_byok for trace in traces),
        "with_billing_context": sum(trace.has_billing_context for trace in traces),
        "errors_by_class": tally(trace.fault.kind for trace in traces if trace.fault),
        "errors_by_type": tally(trace.fault.error_type for trace in traces if trace.fault),
        "provider_reported_cost_usd": f"{openrouter_cost.normalize():f}",
        "by_organization_provider_model": sums_by(traces, "organization_id", "provider", "model"),
        "by_organization": sums_by(traces, "organization_id"),
        "by_provider": sums_by(traces, "provider"),
        "by_date": sums_by(traces, "date"),
        "list_cost_without_byok": list_cost(traces),
    }


def make_files() -> dict[str, bytes]:
    """Return every file of this folder that is generated, by its name."""
    traces = make_traces()
    lines = make_lines(traces)
    files = {name: ("\n".join(rows) + "\n").encode() for name, rows in lines.items()}
    files[SERVER_WEEK_2] = compress(files[SERVER_WEEK_2])
    header = "organization_id,plan_type,cost_source,customer_id,valid_from"
    rows = [header, *(",".join(row) for row in SUBSCRIPTIONS)]
    files["subscriptions.csv"] = ("\n".join(rows) + "\n").encode()
    pages = {"openai-costs.json": openai_page, "anthropic-cost-report.json": anthropic_page}
    for name, page in pages.items():
        files[f"bills/{name}"] = (dump(page(traces), indent=1) + "\n").encode()
    files["bills/other-providers.csv"] = csv_bill(traces).encode()
    files["expected.json"] = (dump(expected(traces, lines), indent=1) + "\n").encode()
    return files


def content(name: str, data: bytes) -> bytes:
    """Return what a file holds: zlib may pack the same bytes differently on another machine."""
    return gzip.decompress(data) if name.endswith(".gz") else data


def differing(folder: Path) -> list[str]:
    """Return the names of generated files that are missing or hold something else."""
    names = []
    for name, data in make_files().items():
        path = folder / name
        try:
            same = path.is_file() and content(name, path.read_bytes()) == content(name, data)
        except (OSError, EOFError):
            same = False
        if not same:
            names.append(name)
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the examples, or compare them; return 0 if all is well, 1 if files differ."""
    parser = argparse.ArgumentParser(
        description="Write the example traces, subscriptions and bills of this folder.",
        epilog="examples:\n  python examples/generate.py\n  python examples/generate.py --check",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="write nothing, name what differs")
    parser.add_argument("--into", type=Path, default=HERE, metavar="FOLDER", help="where to write")
    options = parser.parse_args(arguments)
    if options.check:
        names = differing(options.into)
        for name in names:
            print(f"{options.into / name}: differs; run python examples/generate.py")
        return 1 if names else 0
    for name, data in make_files().items():
        path = options.into / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        print(f"{path} {len(data)} bytes", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
