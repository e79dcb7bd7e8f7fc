"""Prove the drop-in against the real server package: its classes, our backend, our listener.

Run it by `make test-letta`. It makes a virtual environment of its own for that package (the
first time this takes minutes and about 1 GB), at LETTA_VENV or target/letta-venv, and is no part
of `make test`. Our side (listener, drainer, dbt, the store) runs in this project's environment.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.support.http_front import Front  # noqa: E402
from tests.support.project import Project  # noqa: E402

PACKAGE = "letta==0.16.8"
VENV = Path(os.environ.get("LETTA_VENV", ROOT / "target" / "letta-venv")).absolute()


def make_environment() -> Path:
    """Install the server package and what our writer needs, once; return its Python."""
    python = VENV / "bin" / "python"
    done = VENV / ".installed"
    if done.exists():
        return python
    VENV.parent.mkdir(parents=True, exist_ok=True)
    needed = [PACKAGE, "msgspec>=0.22,<0.23", "clickhouse-connect>=1.12,<1.13"]
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    if uv:
        subprocess.run([uv, "pip", "install", "-q", "--python", str(python), *needed], check=True)
    else:
        # Python's own pip may be one that stops at this package's repeated extras.
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        subprocess.run([*pip, "--upgrade", "pip>=24.1"], check=True)
        subprocess.run([*pip, *needed], check=True)
    done.touch()
    return python


def main() -> int:
    """Run all of it; the exit code is that of the first thing that fails."""
    python = make_environment()
    with tempfile.TemporaryDirectory(prefix="letta-") as name:
        folder = Path(name)
        spool, path = folder / "spool", folder / "telemetry.sock"
        with Front(folder / "server", user="ledger", password="secret") as front:
            project = Project(folder / "project", front.env())
            project.loader("init")
            project.dbt("run", "--select", "+llm_traces_live")
            listener = project.start_loader("listen", "--socket", str(path), "--spool", str(spool))
            assert listener.stderr is not None
            print(listener.stderr.readline().strip())
            # The socket is named by the listener's variable, which the server knows too.
            environment = project.env | {
                "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'adapter' / 'src'}",
                "TOKENLEDGER_SPOOL": str(spool),
                "TELEMETRY_SOCKET": str(path),
                "LETTA_TELEMETRY_PROVIDER_TRACE_BACKEND": "clickhouse,socket",
                "HOME": str(folder),
            }
            inside = [str(python), str(Path(__file__).with_name("inside.py"))]
            try:
                wrote = subprocess.run(
                    [*inside, "write"], env=environment, stdout=subprocess.PIPE, text=True
                )
                if wrote.returncode:
                    return wrote.returncode
            finally:
                listener.send_signal(signal.SIGTERM)
                print(listener.communicate(timeout=60)[1].strip())
            print(project.loader("drain", str(spool)).stdout.strip())
            want = json.loads(wrote.stdout.splitlines()[-1])
            rows = project.query(
                "select id, organization_id, step_id, is_error, total_tokens, format,"
                " billing_plan_type, billing_customer_id, agent_tags"
                " from llm.llm_traces_live order by id, format"
            )
            assert {row["id"] for row in rows} == set(want), (rows, want)
            for row in rows:
                for field, value in want[row["id"]].items():
                    if row["format"] == "provider_trace" or not field.startswith("billing"):
                        assert row[field] == value, (row, field, value)
            read = subprocess.run([*inside, "read"], env=environment, input=wrote.stdout, text=True)
            if read.returncode:
                return read.returncode
    print(f"{PACKAGE}: its classes work with our backend and our listener")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
