"""Figure of the full ablation grid over the ladder: table in, a `Figure` out."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap

from icl_lib.ablation.effects import DIFFERENCE, corrected
from icl_lib.figures.common import COLOUR, Figure
from icl_lib.tables import VALUES
from lab.grid_table import CELL, draws_words, with_kinds

# White where the metric drops alike for both kinds, else the colour of the kind for which it drops more.
REPLACEMENTS = tuple(name for name in VALUES["replacement"] if name != "none")
KINDS_MAP = LinearSegmentedColormap.from_list("kinds", [COLOUR["induction"], "white", COLOUR["fv"]])


def accuracy_differences(grid: pd.DataFrame) -> Figure:
    """Where few-shot accuracy drops more for FV heads and where for induction heads."""
    return Figure(
        _differences(grid, "first_token_accuracy", "drop of accuracy, FV heads\nless induction heads"),
        "Drop of few-shot accuracy (first token) when FV heads are ablated less that when induction heads are, both "
        f"beyond layer-matched random heads ({draws_words(grid)}). Orange: accuracy drops more for FV heads; blue: for "
        "induction heads. Dot: 95 % bootstrap interval over tasks, prompts and draws clear of zero, each cell for "
        "itself. White: the same drop for both kinds, as where both sets are the same heads. 3 % of cells lie beyond "
        "the colour scale.",
        "Heat maps, one per model, of the difference in lost accuracy by replacement, positions and share of heads.")


def loss_differences(grid: pd.DataFrame) -> Figure:
    """The same for the token-loss difference."""
    return Figure(
        _differences(grid, "token_loss_difference",
                     "drop of token-loss difference (nats),\nFV heads less induction heads"),
        "The same for the token-loss difference (loss at token 50 less loss at token 500, nats), over documents and "
        "draws.",
        "Heat maps, one per model, of the difference in lost token-loss difference by replacement, positions and "
        "share.")


def _differences(grid: pd.DataFrame, metric: str, label: str):
    """FV heads' effect less induction heads', a panel per model: rows are interventions, columns shares of heads.

    `grid`: `read_grid`, of which the plain rankings of models that have both kinds are shown, beyond layer-matched
    random heads; a cell stays white without a valid control. A dot where the 95 % interval is clear of zero. One
    colour scale for all models; 3 % of the cells lie beyond its ends.
    """
    rows = with_kinds(corrected(grid))
    rows = rows[(rows["metric"] == metric) & (rows["ranking"] == DIFFERENCE) & (rows["excluded"] == "")]
    models, fractions = list(dict.fromkeys(rows["model"])), sorted(rows["fraction"].unique())
    cells = pd.MultiIndex.from_product([REPLACEMENTS, ("all", "last")])
    places = pd.MultiIndex.from_product([REPLACEMENTS, ("all", "last"), fractions])
    top = rows["value"].abs().quantile(0.97)
    figure, axes = plt.subplots(1, len(models), figsize=(11.4, 0.24 * len(cells) + 1.7), sharey=True, squeeze=False)
    for ax, model in zip(axes[0], models, strict=True):
        own = rows[rows["model"] == model].set_index(CELL).reindex(places)  # NaN without a valid control
        clear = (own["low"] > 0) | (own["high"] < 0)
        values, clear = (of.to_numpy().reshape(len(cells), len(fractions)) for of in (own["value"], clear))
        mesh = ax.pcolormesh(values, cmap=KINDS_MAP, vmin=-top, vmax=top, edgecolors="white", linewidth=0.5)
        y, x = np.nonzero(clear)
        ax.scatter(x + 0.5, y + 0.5, s=9, color="black", linewidths=0)
        ax.set_title(model, fontsize=10)
        n_heads = grid[grid["model"] == model].groupby("fraction")["n_heads"].first()
        ax.set_xticks(np.arange(len(fractions)) + 0.5, [f"{100 * f:g}\n{n_heads[f]}" for f in fractions], fontsize=8)
        ax.tick_params(length=0)
    axes[0, 0].set_yticks(np.arange(len(cells)) + 0.5, [f"{replacement}, {where}" for replacement, where in cells],
                          fontsize=9)
    axes[0, 0].invert_yaxis()
    figure.supxlabel("heads ablated: share (%) and number", fontsize=10)
    bar = figure.colorbar(mesh, ax=axes[0].tolist(), fraction=0.02, pad=0.01, extend="both")
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return axes[0]
