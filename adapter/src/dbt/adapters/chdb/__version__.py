"""Version of the adapter: major and minor follow dbt-clickhouse, whose macros it runs."""

version = "1.10.0"
