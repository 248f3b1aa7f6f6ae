"""What made a table: arguments, versions, git state, processor, and the files that a run depended on."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PROVENANCE_KEYS = (
    "suite", "seed", "dtype", "device", "bos", "versions", "git_commit", "git_dirty", "time", "parameters", "made_from",
)  # fmt: skip


def provenance(
    *, suite: str, seed: int, dtype: str, device: str, bos: str, parameters: dict[str, Any], revision: str = "",
    sums: dict[str, str] | None = None, seconds: float | None = None, checked: str = "",
) -> dict[str, Any]:
    """What made a table: the arguments, library versions, git commit and time (UTC, ISO 8601).

    `bos` names the BOS policy in words, `parameters` are the notebook's, `revision` is that of a hub model with its
    commit ("step1000 (commit 0123...)"), `sums` names the SHA-256 sums of texts and task files, `seconds` the
    processor time of the process that measured, `checked` how the model proved itself on loading. `git_commit` is
    "unknown" and `git_dirty` null outside a git work tree; dirty means that tracked files were changed since. For
    tables made from tables give "" for dtype, device and bos.
    `made_from` holds the fingerprints of all input files where the workflow ran the notebook, else nothing.
    """
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no") if commit else None
    return {
        "suite": suite, "seed": seed, "dtype": dtype, "device": device, "bos": bos, "revision": revision,
        "sums": sums or {}, "checked": checked, "parameters": parameters, "made_from": _made_from(),
        "processor": platform.machine() + (f", {_processor()}" if device else ""),
        "seconds": None if seconds is None else round(seconds),
        "versions": {name: version(name) for name in ("icl_lib", "torch", "transformers", "transformer_lens")},
        "git_commit": commit or "unknown",
        "git_dirty": None if changes is None else bool(changes),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _made_from() -> dict[str, Any]:
    path = os.environ.get("ICL_LIB_MADE_FROM")  # a file: a large suite's fingerprints are too long for a variable
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else {}


def version(package: str) -> str:
    """The installed version of a package, "not installed" without one."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """The processor's name and what it can multiply with, where Linux says so."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _git(*arguments: str) -> str | None:
    here = Path(__file__)
    try:
        # A library copied into some other project's work tree has no commit of its own.
        for command in (["ls-files", "--error-unmatch", here.name], arguments):
            done = subprocess.run(["git", "-C", here.parent, *command], capture_output=True, text=True, check=True,
                                  timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
