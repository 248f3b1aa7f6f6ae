"""What a GPU gives, in one command of about ten minutes: `python -m benchmarks.gpu`; a table in results/bench/gpu.csv.

The FV scores of all heads of models of the shapes of Pythia 1B, 2.8B and 6.9B (random weights, bfloat16) against one
full pass per head, with peak memory and the rate of the plain pass in TFLOP/s (2 per weight and token), which
`make plan SUITE=paper TFLOPS=<rate>` takes; then a real model at the paper's full protocol: its 29 scoring tasks with
100 prompts each. On a processor it measures what is named: `python -m benchmarks.gpu pythia-70m --prompts 1`.
"""

import argparse
import time

import pandas as pd
import torch

from benchmarks import fv_scores as bench
from benchmarks.common import RESULTS, refuse_unknown, save
from icl_lib import fv_scores, load_model
from icl_lib.data.sources import read_tasks, tasks_for
from icl_lib.measurements import in_split, prompts_of

TABLE = RESULTS / "gpu.csv"
MODEL = "smollm2-135m"


def row_of(table: pd.DataFrame) -> dict:
    """One shape's rows of `fv_scores.measure` as one row."""
    methods, shape = table.set_index("method"), table["shape"].iloc[0]
    ours, plain = methods.loc[bench.OURS], methods.loc[bench.PLAIN]
    once, _ = bench.operations(*(bench.SHAPES | bench.GPU_SHAPES)[shape], bench.VOCABULARY, int(plain["n_tokens"]))
    slow = methods.loc["one pass per head", "seconds"]
    return {"model": shape, "prompts": ours["n_prompts"], "fv_scores_s": ours["seconds"], "pass_per_head_s": slow,
            "times_faster": slow / ours["seconds"], "ratio_to_flop_limit": ours["ratio_to_flop_limit"],
            "peak_memory_mib": ours["peak_memory_mib"],
            "tflop_per_s": 2 * once * plain["n_prompts"] / plain["seconds"] / 1e12, "device": ours["device"]}


def full_protocol(name: str, n_prompts: int) -> dict:
    """The FV scores of a real model on its scoring tasks, 10 demonstrations: seconds without loading, peak memory."""
    model = load_model(name)
    tasks = in_split(read_tasks(tasks_for(name)), "scoring")
    prompts = prompts_of(model, tasks, n_prompts=n_prompts, n_shots=10, seed=0)
    began = time.perf_counter()
    memory = bench.peak_memory_mib(lambda: fv_scores(model, prompts))
    return {"model": name, "prompts": n_prompts * len(prompts), "fv_scores_s": time.perf_counter() - began,
            "peak_memory_mib": memory, "device": next(model.original_model.parameters()).device.type}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    known = [*bench.SHAPES, *bench.GPU_SHAPES]
    parser.add_argument("shapes", nargs="*", help=f"among {', '.join(known)}; those of {', '.join(bench.GPU_SHAPES)}")
    parser.add_argument("--model", default=MODEL, help="a real model for the paper's full protocol")
    parser.add_argument("--prompts", type=int, default=100, help="prompts per task of that (the paper: 100)")
    given = parser.parse_args()
    refuse_unknown("shape", given.shapes, known)
    gpu = torch.cuda.is_available()
    if not gpu and not given.shapes:
        raise SystemExit("error: there is no GPU; name small shapes to try it on the processor: pythia-70m")
    rows = [row_of(bench.measure(shape, n_prompts=bench.N_PROMPTS_GPU if gpu else bench.N_PROMPTS))
            for shape in given.shapes or bench.GPU_SHAPES]
    save(pd.DataFrame([*rows, full_protocol(given.model, given.prompts)]), TABLE)


if __name__ == "__main__":
    main()
