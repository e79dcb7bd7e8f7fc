"""Profile of the `chdb` type. Owns the keys and their checks; opens nothing."""

import os
from dataclasses import dataclass
from typing import Any

from dbt.adapters.clickhouse.credentials import ClickHouseCredentials
from dbt_common.exceptions import DbtRuntimeError


@dataclass
class ChdbCredentials(ClickHouseCredentials):
    """Where the store is, and how long to wait for it.

    Attributes
    ----------
    chdb_path : str
        Folder of the store. A relative one starts at the working directory; kept absolute.
    lock_timeout : float
        Seconds to wait while another process has the folder open.

    Raises
    ------
    DbtRuntimeError
        If `schema` is absent or `default`, the path is not a folder's, or a key asks for a server.
    """

    chdb_path: str = "./warehouse"
    lock_timeout: float = 60.0

    @property
    def type(self) -> str:
        """Name of the adapter in a profile."""
        return "chdb"

    @property
    def unique_field(self) -> str:
        """What tells one store from another in dbt's usage hash."""
        return self.chdb_path

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.schema or self.schema == "default":
            raise DbtRuntimeError(
                "chdb profile: `schema` must name a database other than 'default', which chDB "
                "lays over the file system and cannot exchange tables in. Try `schema: llm`."
            )
        if not self.chdb_path or self.chdb_path.startswith((":memory:", "file:")):
            raise DbtRuntimeError(
                f"chdb profile: `chdb_path: {self.chdb_path!r}` is not a folder. dbt opens and "
                "closes the store several times a run: give it one on disk."
            )
        if self.cluster or self.cluster_mode:
            raise DbtRuntimeError(
                "chdb profile: `cluster` and `cluster_mode` need a server. Use `type: clickhouse`."
            )
        self.chdb_path = os.path.abspath(os.path.expanduser(self.chdb_path))

    def _connection_keys(self) -> tuple[str, ...]:
        return (
            "chdb_path",
            "schema",
            "lock_timeout",
            "database_engine",
            "check_exchange",
            "custom_settings",
            "use_lw_deletes",
            "allow_automatic_deduplication",
            "reuse_connections",
        )

    @classmethod
    def __pre_deserialize__(cls, data: dict[Any, Any]) -> dict[Any, Any]:
        data = super().__pre_deserialize__(data)
        data.setdefault("schema", "")
        return data
