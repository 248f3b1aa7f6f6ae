"""One sweep at a time on a suite's results; sweeps of different suites do not meet.

The locks are `flock`s, which the system releases when the process that holds them ends, however it ends: a killed
sweep leaves nothing to clean up. Snakemake's own lock outlives a SIGKILL, so the Makefile turns it off.
"""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO


class LockedError(RuntimeError):
    """The results are in use; the message is one line and names who uses them."""


_SWEEP, _RUNS = ".sweep.lock", ".runs.lock"


def lock_sweep(results: Path) -> IO[str]:
    """Take a suite's results for this process until it ends or closes the file returned.

    Raises LockedError when another sweep has them, or when runs of a sweep that was killed are still at work, and
    OSError when the folder cannot be written.
    """
    results.mkdir(parents=True, exist_ok=True)
    file = _open(results / _SWEEP)
    try:
        _refuse_if_taken(file, f"another sweep is at work on {results}")
        _sign(file)
        with _open(results / _RUNS) as runs:
            _refuse_if_taken(runs, f"runs of a sweep that was killed are still at work on {results}")
    except BaseException:
        file.close()
        raise
    return file


@contextlib.contextmanager
def lock_run(results: Path) -> Iterator[None]:
    """Say that a run is at work on these results, beside any number of others."""
    results.mkdir(parents=True, exist_ok=True)
    with _open(results / _RUNS) as file:
        while not _taken(file, fcntl.LOCK_SH):  # a sweep that looks whether runs are at work has it for an instant
            time.sleep(0.01)
        _sign(file)
        yield


def _open(path: Path) -> IO[str]:
    return open(path, "a+", encoding="utf-8")


def _taken(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _refuse_if_taken(file: IO[str], what: str) -> None:
    if not _taken(file, fcntl.LOCK_EX):
        file.seek(0)
        holder = file.read() or "process unknown"
        raise LockedError(f"{what} ({holder}): wait until that has ended, or end it, then start again")


def _sign(file: IO[str]) -> None:
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    file.flush()
