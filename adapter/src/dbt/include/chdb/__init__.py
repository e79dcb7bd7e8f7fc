"""dbt project of the chDB adapter: empty, all macros come from dbt-clickhouse."""

import os

PACKAGE_PATH = os.path.dirname(__file__)
