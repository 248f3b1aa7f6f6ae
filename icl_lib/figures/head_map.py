"""The map of all heads: a figure and a table, which the book's script makes hoverable and sortable."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML
from matplotlib.colors import LinearSegmentedColormap

from icl_lib.figures.common import COLOUR, SCORE_LABEL, Figure
from icl_lib.kinds import RANKED_BY, mean_scores

# Maps of a score go to its kind's colour, negative FV scores to one of their own. The book's script has the same.
UNSIGNED = LinearSegmentedColormap.from_list("unsigned", ["#F4F4F4", COLOUR["induction"]])
SIGNED = LinearSegmentedColormap.from_list("signed", ["#5E3C99", "#F4F4F4", COLOUR["fv"]])
TITLES = {"induction_attention_mass": "induction score (attention mass)", "fv": "FV score"}
COLUMNS = {"induction_attention_mass": "attention mass", "induction_prefix_matching": "prefix matching",
           "previous_token": "previous token", "fv": "FV score"}
RANKS = {"induction": "rank by attention mass", "fv": "rank by FV score"}


def head_table(scores: pd.DataFrame) -> pd.DataFrame:
    """One row per head: its scores (mean over tasks) and its rank by the two that rank heads, 1 the highest."""
    layers, heads = np.indices(mean_scores(scores, "fv").shape).reshape(2, -1)
    table = pd.DataFrame({"layer": layers, "head": heads} | {
        name: mean_scores(scores, score).ravel() for score, name in COLUMNS.items()})
    for kind, score in RANKED_BY.items():
        table[RANKS[kind]] = table[COLUMNS[score]].rank(ascending=False, method="first").astype(int)
    return table


def head_map(scores: pd.DataFrame) -> HTML:
    """The map of one model's heads, and all heads as a table below it, folded.

    In the book a head tells layer, head, scores and ranks under the pointer, and the table sorts by a click on a
    column; elsewhere the map is a picture.
    """
    table = head_table(scores)
    hover = [
        f"L{layer}H{head}<br>attention mass {mass:.3f} (rank {by_mass})<br>prefix matching {prefix:.3f}"
        f"<br>FV score {fv:.4f} (rank {by_fv})"
        for layer, head, mass, prefix, _, fv, by_mass, by_fv in table.itertuples(index=False)]
    text = np.array(hover).reshape(mean_scores(scores, "fv").shape).tolist()
    panels = [{"title": title, "signed": score == "fv", "values": mean_scores(scores, score).round(5).tolist(),
               "text": text} for score, title in TITLES.items()]
    # "</" would end the script element wherever it stands in a string.
    data = json.dumps(panels).replace("</", "<\\/")
    return HTML(
        f'<div class="head-map">{_figure(scores)._repr_html_()}<script type="application/json">{data}</script></div>'
        f'<details><summary>All {len(table)} heads</summary><div class="wide">'
        f"{table.to_html(index=False, classes='sortable', border=0, float_format='{:.4f}'.format)}</div></details>")


def _figure(scores: pd.DataFrame) -> Figure:
    figure, axes = plt.subplots(1, len(TITLES), figsize=(4.8 * len(TITLES), 3.8))
    for ax, name in zip(axes, TITLES, strict=True):
        values = mean_scores(scores, name)
        top, signed = np.abs(values).max(), name == "fv"
        sns.heatmap(values, ax=ax, cmap=SIGNED if signed else UNSIGNED, vmin=-top if signed else 0, vmax=top,
                    cbar_kws={"label": SCORE_LABEL[name]}, linewidths=0.5, linecolor="white")
        ax.invert_yaxis()
        ax.set(xlabel="head", ylabel="layer")
    return Figure(
        axes,
        "Scores of all heads; layers upward. Left: attention mass, 0 to about 0.5. Right: FV score, signed, mean over "
        "the scoring tasks. In the book, point at a head for its scores and ranks.",
        "Two heat maps of layer against head, one for each score.")
