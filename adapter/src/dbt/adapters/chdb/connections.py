"""Connections of the `chdb` type: one engine a process, one handle on it a dbt thread."""

from dbt.adapters.chdb.client import ChdbClient
from dbt.adapters.clickhouse.connections import ClickHouseConnectionManager
from dbt.adapters.clickhouse.logger import logger
from dbt.adapters.contracts.connection import Connection


class ChdbConnectionManager(ClickHouseConnectionManager):
    """dbt-clickhouse's connection manager, opening the embedded engine instead of a socket."""

    TYPE = "chdb"

    @classmethod
    def open(cls, connection: Connection) -> Connection:
        """Open the store for this thread, waiting for another process to close it.

        Raises
        ------
        FailedToConnectError
            If the store stays locked, or this process has another one open.
        """
        if connection.state == "open":
            return connection
        credentials = cls.get_credentials(connection.credentials)
        return cls.retry_connection(
            connection,
            connect=lambda: ChdbClient(credentials),
            logger=logger,
            retry_limit=0,
            retryable_exceptions=[],
        )

    def cancel(self, connection: Connection) -> None:
        """Stop the connection's running query, as Ctrl-C asks for, and close it."""
        logger.debug(f"Cancelling the query of '{connection.name}'")
        connection.handle.cancel()
