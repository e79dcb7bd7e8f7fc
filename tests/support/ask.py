"""Run statements on the store that the environment names; a process apart from the test's own.

Standard input is `{"sql": […], "parameters": {…}}`, standard output one JSON object a row,
of the last statement alone.
"""

import json
import sys

from loader.settings import Settings
from loader.store import open_store

if __name__ == "__main__":
    asked = json.load(sys.stdin)
    with open_store(Settings.from_environment()) as store:
        store._client.database = store.database
        for sql in asked["sql"]:
            answer = store._client.query(sql, parameters=asked["parameters"])
        for row in answer.named_results():
            print(json.dumps(row, default=str))
