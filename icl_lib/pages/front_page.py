"""The front page: the paper's main claims with what came out in each world of models, and what ablation costs."""

from collections.abc import Mapping
from html import escape
from itertools import product

import pandas as pd
from IPython.display import HTML

from icl_lib.ablation.effects import CONTROLS, METRIC_WORDS
from icl_lib.analysis.claims import (
    ABSENT,
    FAILS,
    HOLDS,
    OPEN,
    POWERLESS,
    estimate_words,
    of_largest_model,
    overall,
    read_claims,
    tally_words,
)
from icl_lib.analysis.scaling_numbers import lost
from icl_lib.pages.claims import chip
from icl_lib.pages.common import KIND_WORDS, interval_words, verdict_table
from icl_lib.pages.paper_figures import OF_MODEL, figure_link
from icl_lib.pages.scaling import by_size

MAIN = "H1, 4a"
_SAID = {HOLDS: "it does", FAILS: "it does not", OPEN: "this is not decided", POWERLESS: "this cannot be decided",
         ABSENT: "this was not measured"}
_UNIT = {"first_token_accuracy": "of accuracy", "token_loss_difference": "nats"}


def answer_sentence(worlds: Mapping[str, pd.DataFrame], sizes: Mapping[str, int]) -> str:
    """Whether few-shot accuracy drops more when FV heads are ablated, in each world of models.

    `worlds`: the ledger with verdicts (`claims.with_verdicts`) by name of the world ("real language models"); `sizes`:
    parameters by model.
    """
    parts = []
    for world, found in worlds.items():
        rows = found[found["claim"] == MAIN]
        last = of_largest_model(rows, sizes)
        largest = "" if last is None else f" ({last.model}, the largest measured: {estimate_words(last)} of accuracy)"
        parts.append(f"in {world} {_SAID[overall(rows)]}{largest}")
    return ("Does few-shot accuracy drop more when FV heads are ablated than when induction heads are, each beyond "
            f"random heads of the same layers? **{'; '.join(parts)}.**".replace("**in", "**In", 1))


def claims_table(worlds: Mapping[str, pd.DataFrame], sizes: Mapping[str, int], groups: Mapping[str, str]) -> HTML:
    """The claims of claims.yaml that have words for the front page: a row each, a column per world of models.

    An estimate leads to its figure; `groups`: by world what follows a notebook's name in those of its runs over all
    models.
    """
    lines = []
    for claim in read_claims():
        if not claim.front:
            continue
        cells, votes = [], []
        for world, found in worlds.items():
            rows = found[found["claim"] == claim.id]
            last = of_largest_model(rows, sizes)
            words = ""
            if last is not None:
                said = f"{last.model or 'all models'}: {estimate_words(last)} {claim.front['unit']}"
                of = f"/{last.model}" if claim.page in OF_MODEL else groups[world]
                words = f"<br><small>{figure_link(claim.page + of, claim.front['figure'], said)}</small>"
            cells.append(chip(overall(rows)) + words)
            measured = rows[rows["verdict"] != ABSENT]
            votes.append(f"{world}: " + ("none measured" if measured.empty else "one test over all models"
                         if measured["model"].eq("").all() else tally_words(measured)))
        lines.append([f"{escape(claim.front['says'])}<br><small>Paper: {escape(claim.paper)}</small>", *cells,
                      f'<small>{"<br>".join(map(escape, votes))}</small>'])
    return verdict_table(["claim of the paper", *worlds, "how sure"], lines, kind="ledger front")


def dependence_table(numbers: pd.DataFrame) -> pd.DataFrame:
    """Per ablated model what either metric loses when a kind's heads are ablated, beyond random heads of their layers.

    From the scaling page's numbers. "yes": the 95 % interval lies above 0; "no": below; "not told apart": it has 0.
    """
    rows = []
    for model in by_size(numbers):
        own = numbers[numbers["model"] == model].set_index("name")
        if not own.index.str.contains(" lost, ").any():
            continue  # not ablated
        row = {"model": model}
        for (metric, words), (kind, heads) in product(METRIC_WORDS.items(), KIND_WORDS.items()):
            text, name = "no control", lost(metric, kind, CONTROLS[-1], False)
            if name in own.index:
                low, high = own.loc[name, ["low", "high"]]
                said = "yes" if low > 0 else "no" if high < 0 else "not told apart"
                text = f"{said}: {interval_words(own.loc[name], '.2f')} {_UNIT[metric]}"
            row[f"{words}, {heads}"] = text
        rows.append(row)
    return pd.DataFrame(rows).set_index("model")
