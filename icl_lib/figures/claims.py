"""The figure of the claims page: verdicts by claim and model."""

from textwrap import fill

import matplotlib.pyplot as plt
import pandas as pd

from icl_lib.analysis.claims import ABSENT, FAILS, HOLDS, OPEN, POWERLESS, overall, read_claims
from icl_lib.figures.common import GREY, Figure

# Colours of the cell and of its sign, which says the same without colour; not the colours of head kinds.
LOOK = {HOLDS: ("#009E73", "white", "+"), FAILS: ("#882255", "white", "−"), OPEN: ("#DDDDDD", "black", "?"),
        POWERLESS: ("#FFFFFF", "black", "×"), ABSENT: ("#FFFFFF", "black", "")}


def verdict_map(found: pd.DataFrame, sizes: pd.DataFrame, world: str) -> Figure:
    """Verdict of every claim (rows) for every model (columns, by size), for all models of a suite, and over them."""
    claims = [claim for claim in read_claims() if claim.id in set(found["claim"])]
    labels = [fill(f"{claim.id}: {claim.claim}", 64) for claim in claims]
    models = [m for m in sizes.sort_values(["parameters", "model"])["model"] if m in set(found["model"])]
    columns = [*models, "", "overall"]
    figure, ax = plt.subplots(figsize=(5.2 + 0.36 * len(columns), 0.8 + 0.36 * len(claims)))
    for y, claim in enumerate(claims):
        rows = found[found["claim"] == claim.id]
        said = {row.model: row.verdict for row in rows.itertuples()} | {"overall": overall(rows)}
        for x, column in enumerate(columns):
            colour, ink, sign = LOOK[said.get(column, ABSENT)]
            ax.add_patch(plt.Rectangle(
                (x - 0.46, y - 0.44), 0.92, 0.88, facecolor=colour, edgecolor=GREY, linewidth=0.5))
            ax.text(x, y, sign, ha="center", va="center", fontsize=10, color=ink)
    ax.set(xlim=(-0.6, len(columns) - 0.4), ylim=(len(claims) - 0.4, -0.6))
    ax.set_yticks(range(len(claims)), labels, fontsize=8)
    ax.set_xticks(range(len(columns)), [*models, "all models", "overall"], rotation=90, fontsize=9)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return Figure(
        ax,
        f"Verdicts, {world}, models by size. +: holds; −: does not hold; ?: not decided; ×: cannot be decided here; "
        "empty: not measured.",
        "Grid of verdicts: a row per claim, a column per model, then statistics over all models and the overall "
        "verdict.")
