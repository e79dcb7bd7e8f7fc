"""The adapter class. Owns nothing but its name: macros and types are dbt-clickhouse's."""

from dbt.adapters.chdb.connections import ChdbConnectionManager
from dbt.adapters.clickhouse.impl import ClickHouseAdapter


class ChdbAdapter(ClickHouseAdapter):
    """dbt-clickhouse's adapter over the embedded engine."""

    ConnectionManager = ChdbConnectionManager
