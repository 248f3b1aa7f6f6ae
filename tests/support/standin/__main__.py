"""Run a command against the stand-in servers: `python -m tests.support.standin FOLDER COMMAND...`.

FOLDER is filled on the first call (see `data.make`); the hub's cache and the task files' cache lie beside it, so that
nothing of the user's own is read or written. The servers stop with the command, whose exit status is returned.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.standin.data import make
from tests.support.standin.server import serve


def environment(address: str, folder: Path) -> dict[str, str]:
    """The variables that lead the hub's client, `datasets` and the task files' download to the server."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "ICL_"))}
    return kept | {
        "HF_ENDPOINT": address, "HF_HOME": str(folder / "cache" / "hub"), "HF_HUB_OFFLINE": "0",
        "ICL_CACHE": str(folder / "cache"), "ICL_TASK_FILES_URL": f"{address}/task_files",
        "ICL_TASK_FILES_SUMS": str(folder / "served" / "task_files" / "SHA256SUMS"),
    }


def main() -> int:
    if len(sys.argv) < 3:
        print("error: expected a folder and a command", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1]).resolve()
    make(folder / "served")
    with serve(folder / "served") as address:
        return subprocess.run(sys.argv[2:], env=environment(address, folder), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
