"""The client behind a dbt connection. Owns how a thread reaches the embedded engine.

A process hosts one engine at one path. Each dbt thread has a client of its own, which is a handle
of its own on that engine, with its own session settings; handles run side by side. The engine, and
with it the path's lock, goes when the last handle closes.
"""

import os
import re
import threading
import time
from typing import Any

import clickhouse_connect
from chdb_lock import (
    Holder,
    StoreFullError,
    StoreLockedError,
    StorePathError,
    open_store,
    release_store,
    require_space,
)
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError
from clickhouse_connect.driver.query import QueryResult
from dbt.adapters.chdb.credentials import ChdbCredentials
from dbt.adapters.clickhouse.httpclient import ChHttpClient
from dbt.adapters.clickhouse.logger import logger
from dbt.adapters.clickhouse.query import quote_identifier
from dbt.adapters.exceptions import FailedToConnectError
from dbt_common.exceptions import DbtDatabaseError

# A dropped table leaves the disk at once. The engine's default, after eight minutes, is longer than
# a run: the tables that dbt swaps out would lie there until a later run.
_ENGINE_OPTIONS = {"database_atomic_delay_before_drop_table_sec": "0"}

# What writes, behind the comments that dbt puts before a statement.
_WRITES = re.compile(
    r"\s*(?:/\*.*?\*/\s*|--[^\n]*\n\s*)*(?:create|alter|rename|exchange|insert|attach|optimize)\b",
    re.IGNORECASE | re.DOTALL,
)

_KILLS = 5
_KILL_SECONDS = 0.1

_exchange_lock = threading.Lock()
_exchange_results: dict[tuple[str, str], bool] = {}


class ChdbClient(ChHttpClient):
    """dbt-clickhouse's client over `clickhouse_connect.get_client(interface="chdb")`.

    Parameters
    ----------
    credentials : ChdbCredentials
        Path, database, session settings and the limit for waiting.

    Raises
    ------
    FailedToConnectError
        If the store is locked past the limit, or cannot be opened.
    """

    database: str

    def __init__(self, credentials: ChdbCredentials) -> None:
        self._path = os.path.realpath(credentials.chdb_path)
        self._is_cancelled = False
        super().__init__(credentials)

    def query(self, sql: str, **kwargs: Any) -> QueryResult:
        """Run a query; an empty result keeps its column names and types.

        The engine answers an empty result with no bytes, so no columns. They are asked for again
        with LIMIT 0, which comes back with them.
        """
        self._before(sql)
        result = super().query(sql, **kwargs)
        if result.column_names or result.row_count:
            return result
        try:
            return self._client.query(f"select * from (\n{sql.strip().rstrip(';')}\n) limit 0")
        except DatabaseError:
            # Not a select (a command without an answer): there are no columns to name.
            return result

    def command(self, sql: str, **kwargs: Any) -> Any:
        """Run a statement that has no rows to return, if there is room for what it writes."""
        self._before(sql)
        return super().command(sql, **kwargs)

    def _before(self, sql: str) -> None:
        """Refuse what comes after an interrupt, and what writes where there is no room."""
        if self._is_cancelled:
            raise DbtDatabaseError("interrupted before this statement began")
        if _WRITES.match(sql):
            try:
                require_space(self._path)
            except StoreFullError as error:
                raise DbtDatabaseError(str(error)) from error

    def cancel(self) -> None:
        """Stop what this client is running, and close it.

        Closing alone would wait for the query to end by itself. A statement that was about to
        begin is waited for, so that it does not begin behind the kill.
        """
        self._is_cancelled = True
        helper = self._open_handle({})
        try:
            for _ in range(_KILLS):
                helper.command(
                    "kill query where Settings['log_comment'] = {comment:String} async",
                    parameters={"comment": self._conn_settings["log_comment"]},
                )
                time.sleep(_KILL_SECONDS)
        finally:
            helper.close()
        self.close()

    def close(self) -> None:
        """Close this client; with the process's last one, the store is free for others."""
        super().close()
        release_store(self._path)

    def _open_handle(self, settings: dict[str, Any]) -> Client:
        return clickhouse_connect.get_client(
            interface="chdb",
            path=self._path,
            query_limit=0,
            settings=settings,
            chdb_options=_ENGINE_OPTIONS,
        )

    def _create_client(self, credentials: ChdbCredentials) -> Client:
        # An HTTP session is told apart by its id; here the comment on a query serves, to cancel it.
        self._conn_settings.setdefault("log_comment", self._conn_settings["session_id"])
        # The engine's default gathers small inserts (a seed's) for a while after it was asked.
        self._conn_settings.setdefault("async_insert", 0)

        def on_wait(holder: Holder) -> None:
            logger.info(
                f"Waiting up to {credentials.lock_timeout:g} s for the chDB store {self._path}, "
                f"held by {holder}"
            )

        try:
            return open_store(
                self._path,
                lambda: self._open_handle(self._conn_settings),
                credentials.lock_timeout,
                on_wait,
            )
        except (StoreLockedError, StorePathError) as error:
            raise FailedToConnectError(str(error)) from error

    def _ensure_database(self, database_engine: str | None, cluster_name: str | None) -> None:
        """Make the database if absent; asked each time, for a process may see several stores."""
        engine = f" ENGINE {database_engine}" if database_engine else ""
        self.command(f"CREATE DATABASE IF NOT EXISTS {quote_identifier(self.database)}{engine}")
        self._set_client_database()

    def _check_atomic_exchange(self) -> bool:
        """Try EXCHANGE TABLES once a store and database."""
        key = (self._path, self.database)
        with _exchange_lock:
            if key not in _exchange_results:
                _exchange_results[key] = self._run_exchange_test()
            return _exchange_results[key]
