"""The Makefile in a folder of its own, where the environment's programs only note how they were called."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.project import ROOT

PROGRAM = """#!/bin/sh
printf '%s %s\\n' "${0##*/}" "$*" >> "$CALLS"
case "${0##*/} $*" in *"${FAILS:-nothing}"*) exit 3 ;; esac
"""
PROGRAMS = ("python", "pip", "snakemake", "ruff", "papermill")


class FrontDoor:
    """`make` there: its result, and in `calls` the programs that it called with their arguments."""

    def __init__(self, folder):
        self.folder, self.calls = Path(folder), []
        for name in ("Makefile", "requirements.lock", "pyproject.toml"):
            shutil.copy(ROOT / name, self.folder)
        shutil.copytree(ROOT / "config", self.folder / "config")
        for path in (self.folder / ".venv" / "bin" / name for name in PROGRAMS):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(PROGRAM)
            path.chmod(0o755)
        (self.folder / ".venv" / ".installed").touch()

    def make(self, *arguments, fails="nothing"):
        log = self.folder / "calls"
        log.write_text("")
        # or a target that changes what the environment is made from would really make one
        python = f"PYTHON={self.folder / '.venv' / 'bin' / 'python'}"
        names = {"SUITE", "CORES", "RUNG", "PROFILE", "SEED", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
        environment = {k: v for k, v in os.environ.items() if k not in names}
        done = subprocess.run(["make", "-C", str(self.folder), python, *arguments], capture_output=True, text=True,
                              env=environment | {"CALLS": str(log), "FAILS": fails})
        self.calls = log.read_text().splitlines()
        return done
