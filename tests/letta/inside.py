"""The part that runs where the server package is installed; see run.py.

`write` stores traces through both backends, as the server's own TelemetryManager does, and prints
what the ledger must hold. `read` reads one back, as the server's route does.
"""

from __future__ import annotations

import asyncio
import functools
import json
import sys
import threading

import letta.services.provider_trace_backends.clickhouse as clickhouse
from letta.schemas.provider_trace import BillingContext, ProviderTrace
from letta.schemas.user import User
from letta.services.provider_trace_backends import get_provider_trace_backends
from letta.services.provider_trace_backends.socket import SocketProviderTraceBackend
from letta.services.telemetry_manager import TelemetryManager

from loader.backend import ProviderTraceBackend

# What docs/integrate.md says.
clickhouse.ClickhouseProviderTraceBackend = functools.partial(
    ProviderTraceBackend, trace_type=ProviderTrace
)

ACTOR = User(name="someone", organization_id="org-00000000-0000-4000-8000-000000000000")
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def traces() -> list[ProviderTrace]:
    """Make traces of the package's own class: plain, failed, odd values, large."""
    common = {"agent_id": "agent-1", "agent_tags": ["a", "b"], "call_type": "agent_step"}
    config = {"model": "gpt-4o", "model_endpoint_type": "openai", "provider_category": "base"}
    return [
        ProviderTrace(
            step_id="step-plain",
            org_id="org-of-the-trace",
            request_json={"messages": [{"role": "user", "content": "é"}], "n": 1.0},
            response_json={"model": "gpt-4o", "usage": USAGE},
            llm_config=config,
            billing_context=BillingContext(
                plan_type="pro", cost_source="credits", customer_id="customer-1"
            ),
            **common,
        ),
        ProviderTrace(
            step_id="step-failed",
            org_id="org-of-the-trace",
            request_json={},
            response_json={"error": {"message": "no", "type": "bad"}, "error_type": "BadRequest"},
            llm_config=config,
            **common,
        ),
        ProviderTrace(
            step_id="step-odd",
            org_id="org-of-the-trace",
            request_json={"set": {1}, "bytes": b"x", "class": ProviderTrace, "user": ACTOR},
            response_json={"usage": USAGE},
            llm_config=config,
            **common,
        ),
        ProviderTrace(
            step_id="step-large",
            org_id="org-of-the-trace",
            request_json={"text": "x" * 5_000_000},
            response_json={"usage": USAGE},
            llm_config=config,
            **common,
        ),
    ]


def expected(trace: ProviderTrace) -> dict[str, object]:
    """Say what the ledger's row of a trace is."""
    billing = trace.billing_context
    return {
        "organization_id": trace.org_id or ACTOR.organization_id,
        "step_id": trace.step_id,
        "is_error": "error" in trace.response_json,
        "total_tokens": trace.response_json.get("usage", {}).get("total_tokens", 0),
        "agent_tags": trace.agent_tags,
        "billing_plan_type": billing.plan_type if billing else None,
        "billing_customer_id": billing.customer_id if billing else None,
    }


def write() -> None:
    """Write through the server's own manager: our backend first, its socket backend second."""
    ours, socket_backend = get_provider_trace_backends()
    assert type(ours) is ProviderTraceBackend
    assert type(socket_backend) is SocketProviderTraceBackend
    manager = TelemetryManager()
    want = {}
    for trace in traces():
        given = asyncio.run(manager.create_provider_trace_async(actor=ACTOR, provider_trace=trace))
        assert type(given) is ProviderTrace
        assert (given.id, given.step_id) == (trace.id, trace.step_id)
        assert given.request_json == trace.request_json
        want[trace.id.removeprefix("provider_trace-")] = expected(trace)
    sync = ProviderTrace(
        step_id="step-sync", request_json={"n": 1}, response_json={"usage": USAGE}, agent_tags=[]
    )
    assert ours.create_sync(actor=ACTOR, provider_trace=sync).id == sync.id
    want[sync.id.removeprefix("provider_trace-")] = expected(sync)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and "keep" not in thread.name:
            thread.join(10)
    assert ours.failures == 0
    ours.close()
    print(json.dumps(want))


def read() -> None:
    """Read back as the server does, before any dbt run over these traces."""
    want = json.loads(sys.stdin.read().splitlines()[-1])
    manager = TelemetryManager()
    actor = User(name="reader", organization_id="org-of-the-trace")
    found = asyncio.run(
        manager.get_provider_trace_by_step_id_async(step_id="step-plain", actor=actor)
    )
    assert type(found) is ProviderTrace, found
    assert found.id.removeprefix("provider_trace-") in want
    assert found.request_json == {"messages": [{"role": "user", "content": "é"}], "n": 1.0}
    assert found.response_json["usage"] == USAGE
    other = asyncio.run(
        manager.get_provider_trace_by_step_id_async(step_id="step-plain", actor=ACTOR)
    )
    assert other is None, "another organization's trace"


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]]()
