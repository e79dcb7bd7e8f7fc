"""Land raw LLM traces in ClickHouse or chDB, byte for byte and exactly once.

The package owns bytes and framing: which lines are records, and which top-level keys hold the
request and the response. It refuses to know a provider: what the JSON means is decided in SQL.
"""

__version__ = "0.1.0"
