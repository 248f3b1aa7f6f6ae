"""What the benchmarks share: names that they know, methods that take turns, peak memory, tables in results/bench."""

import contextlib
import ctypes
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import torch

RESULTS = Path("results/bench")


def refuse_unknown(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """End in one line where a name is not among those known."""
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"error: unknown {what} {unknown[0]!r}; known: {', '.join(known)}")


def save(table: pd.DataFrame, path: Path, digits: int = 4) -> None:
    """Write a table as CSV of so many digits, and print it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format=f"%.{digits}g")
    print(f"{table.round(3).to_string(index=False)}\n\ntable: {path}")


def in_turns(runs: dict[str, tuple[Callable[[], object], float]], n_rounds: int) -> pd.DataFrame:
    """Seconds of each method, median over rounds in which they take turns, and their relative range (`spread`).

    `runs`: name to (function, how many times it has to run).
    """
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(n_rounds):
        for name, (run, times) in runs.items():
            wait()
            began = time.perf_counter()
            run()
            wait()
            seconds[name].append((time.perf_counter() - began) * times)
    taken = pd.DataFrame(seconds).rename_axis("method", axis="columns")
    return pd.DataFrame({"seconds": taken.median(), "spread": (taken.max() - taken.min()) / taken.median()})


def peak_memory_mib(run: Callable[[], object]) -> float:
    """Largest size while `run` runs, beyond that before: allocated on a GPU, else resident (Linux; NaN elsewhere)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        run()
        return float("nan")
    with contextlib.suppress(OSError, AttributeError):  # what was freed before must not be had for nothing
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    reset.write_text("5")
    before = int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1])
    run()
    return (int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) - before) / 1024
