"""When heads start to matter: ablations at the checkpoints of training."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from icl_lib.ablation.effects import METRIC_WORDS, corrected
from icl_lib.analysis.reading import found_tables, one_intervention
from icl_lib.kinds import KINDS
from icl_lib.stats.emergence import emergence_step


def effects_by_step(results: str | Path, steps: Mapping[str, list[int]], *, fraction: float) -> pd.DataFrame:
    """By how much both metrics drop when each kind is ablated, beyond layer-matched random heads, at all `steps`.

    `steps`: models (seeds) to their ablated checkpoints. Rows of the table `effects`, plain rankings.
    """
    rows = corrected(one_intervention(found_tables(results, "effects", steps), fraction))
    return rows[(rows["excluded"] == "") & rows["ranking"].isin(KINDS)]


def matters_by_seed(effects: pd.DataFrame) -> pd.DataFrame:
    """From which ablated checkpoint on the interval of a drop lies above 0, from rows of `effects_by_step`.

    One row per metric and model, a column per kind; "not within N steps" where it never does.
    """
    rows = []
    for (metric, model), group in effects.groupby(["metric", "model"]):
        row = {"metric": METRIC_WORDS[metric], "model": model}
        for kind, words in (("induction", "induction heads matter by step"), ("fv", "FV heads matter by step")):
            low = group[group["ranking"] == kind].set_index("step")["low"].sort_index()
            came = emergence_step(low.index.tolist(), low.to_numpy(), 0.0).step if len(low) else None
            row[words] = f"not within {group['step'].max()} steps" if came is None else str(came)
        rows.append(row)
    return pd.DataFrame(rows)
