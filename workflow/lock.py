"""One sweep at a time on a suite's results; sweeps of different suites do not meet.

The locks are `flock`s, which the system releases when the process that holds them ends, however it ends: a killed
sweep leaves nothing to clean up. Snakemake's own lock outlives a SIGKILL, so the Makefile turns it off.
"""

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

_SWEEP, _RUNS = ".sweep.lock", ".runs.lock"


def lock_sweep(results: Path) -> IO[str]:
    """Take a suite's results for this process until it ends or closes the file returned.

    Raises RuntimeError, in one line that names who uses them, when another sweep has them or when runs of a sweep that
    was killed are still at work, and OSError when the folder cannot be written.
    """
    file = _locked(results / _SWEEP, fcntl.LOCK_EX | fcntl.LOCK_NB, "another sweep is")
    try:
        _locked(results / _RUNS, fcntl.LOCK_EX | fcntl.LOCK_NB, "runs of a sweep that was killed are still").close()
    except BaseException:
        file.close()
        raise
    return file


def lock_run(results: Path) -> IO[str]:
    """Say that a run is at work on these results, beside any number of others, until the file returned is closed."""
    return _locked(results / _RUNS, fcntl.LOCK_SH)  # a sweep that looks whether runs are at work has it for an instant


def _locked(path: Path, kind: int, who: str = "") -> IO[str]:
    """The file, locked, with the name of this process in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+", encoding="utf-8")
    try:
        fcntl.flock(file, kind)
    except BlockingIOError:
        file.seek(0)
        holder = file.read() or "process unknown"
        file.close()
        raise RuntimeError(f"{who} at work on {path.parent} ({holder}): wait until that has ended, or end it, "
                           "then start again") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    file.flush()
    return file
