"""What a training step of the lab costs: `make bench`, or `python -m benchmarks.training [RUNG ...]`.

Per rung, at its own shape and batch, from random weights: tokens per second over whole steps (drawing the batch
included), the share of a step's time that drawing the batch takes, and by torch's profiler the share of operator time
in matrix products and attention kernels, forward and backward. Times are medians over rounds in which the rungs take
turns; spread is the range over rounds, relative.
"""

import argparse
import time

import numpy as np
import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedTokenizerFast

from benchmarks.common import RESULTS, refuse_unknown, save
from icl_lib.data.sources import read_tasks
from icl_lib.models.locate import count_parameters
from lab.files import RUNGS, read_rung
from lab.text import Generator
from lab.tokenizer import FOLDER as TOKENIZER
from lab.train import new_model, new_optimizer, tokens_per_step, training_step

TABLE = RESULTS / "training.csv"
N_ROUNDS, N_STEPS = 5, 6
PRODUCTS = ("mm", "bmm", "addmm", "matmul", "scaled_dot_product", "flash_attention")


class Bench:
    """A rung's model, optimiser and generator, ready to take steps."""

    def __init__(self, rung: str, tokenizer, tasks):
        self.config = read_rung(rung)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = new_model(self.config["shape"], tokenizer, seed=0).to(self.device)
        self.optimizer = new_optimizer(self.model, self.config)
        self.generator = Generator(tokenizer, tasks)
        self.step = 0

    def run(self, n_steps: int) -> tuple[float, float]:
        """Seconds of so many steps, and how many of these went into drawing batches."""
        began, drawing = time.perf_counter(), 0.0
        for _ in range(n_steps):
            start = time.perf_counter()
            batch = self.generator.batch(np.random.default_rng([0, self.step]), self.config["mixture"])
            drawing += time.perf_counter() - start
            training_step(self.model, self.optimizer, batch, self.device)
            self.step += 1
        return time.perf_counter() - began, drawing

    def product_share(self) -> float:
        """Share of operator time in matrix products and attention kernels over one step, by torch's profiler."""
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device == "cuda" else [])]
        with profile(activities=activities) as found:
            self.run(1)
        time_of = "self_device_time_total" if self.device == "cuda" else "self_cpu_time_total"
        times = {event.key: getattr(event, time_of) for event in found.key_averages()}
        products = sum(t for key, t in times.items() if any(key.split("::")[-1].lstrip("_").startswith(name)
                                                            for name in PRODUCTS))
        return products / sum(times.values())


def measure(rungs: list[str]) -> pd.DataFrame:
    """One row per rung."""
    tokenizer, tasks = PreTrainedTokenizerFast.from_pretrained(TOKENIZER), read_tasks()
    benches = {rung: Bench(rung, tokenizer, tasks) for rung in rungs}
    for bench in benches.values():
        bench.run(2)  # warm-up
    taken = {rung: [] for rung in rungs}
    for _ in range(N_ROUNDS):
        for rung, bench in benches.items():
            taken[rung].append(bench.run(N_STEPS))
    rows = []
    for rung, bench in benches.items():
        seconds, drawing = np.array(taken[rung]).T
        per_second = N_STEPS * tokens_per_step(bench.config) / seconds
        rows.append({
            "rung": rung, "parameters": count_parameters(rung), "tokens_per_second": np.median(per_second),
            "spread": np.ptp(per_second) / np.median(per_second), "drawing_share": np.median(drawing / seconds),
            "product_share": bench.product_share(), "threads": torch.get_num_threads(), "device": bench.device})
    return pd.DataFrame(rows).sort_values("parameters", ignore_index=True)


def main() -> None:
    known = sorted(path.stem for path in RUNGS.glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rungs", nargs="*", default=known, help=f"among {', '.join(known)}")
    rungs = parser.parse_args().rungs
    refuse_unknown("rung", rungs, known)
    save(measure(rungs), TABLE, digits=3)


if __name__ == "__main__":
    main()
