"""The map of all heads: a figure and a table, which the book's script makes hoverable and sortable."""

import json
from html import escape

import numpy as np
import pandas as pd
from IPython.display import HTML, display

from icl_lib.figures.common import as_html, head_map, matrix
from icl_lib.kinds import RANKED_BY

SCORES = {"induction_attention_mass": "induction score (attention mass)", "fv": "FV score"}
COLUMNS = {
    "layer": "layer", "head": "head", "induction_attention_mass": "attention mass",
    "induction_prefix_matching": "prefix matching", "previous_token": "previous token", "fv": "FV score",
    "induction_rank": "rank by attention mass", "fv_rank": "rank by FV score",
}


def head_table(scores: pd.DataFrame) -> pd.DataFrame:
    """One row per head: its scores (mean over tasks) and its rank by the two that rank heads, 1 the highest."""
    layers, heads = matrix(scores, "fv").shape
    table = pd.DataFrame({"layer": np.repeat(np.arange(layers), heads), "head": np.tile(np.arange(heads), layers)})
    for score in ("induction_attention_mass", "induction_prefix_matching", "previous_token", "fv"):
        table[score] = matrix(scores, score).ravel()
    for kind, score in RANKED_BY.items():
        table[f"{kind}_rank"] = table[score].rank(ascending=False, method="first").astype(int)
    return table


def show(scores: pd.DataFrame, text: str, alt: str) -> None:
    """Show the map of one model's heads, and all heads as a table below it, folded.

    In the book a head tells layer, head, scores and ranks under the pointer, and the table sorts by a click on a
    column; elsewhere the map is a picture.
    """
    table = head_table(scores)
    n_layers, n_heads = table["layer"].max() + 1, table["head"].max() + 1
    hover = [
        f"L{row.layer}H{row.head}<br>attention mass {row.induction_attention_mass:.3f} (rank {row.induction_rank})"
        f"<br>prefix matching {row.induction_prefix_matching:.3f}<br>FV score {row.fv:.4f} (rank {row.fv_rank})"
        for row in table.itertuples()]
    panels = [{
        "title": title, "signed": score == "fv", "values": matrix(scores, score).round(5).tolist(),
        "text": np.array(hover).reshape(n_layers, n_heads).tolist(),
    } for score, title in SCORES.items()]
    # "</" would end the script element wherever it stands in a string.
    data = json.dumps(panels).replace("</", "<\\/")
    rows = table.assign(**{c: table[c].map("{:.4f}".format) for c in COLUMNS if table[c].dtype.kind == "f"})
    rows = rows.rename(columns=COLUMNS)
    display(HTML(
        f'<div class="head-map">{as_html(head_map(scores, list(SCORES)), text, alt)}'
        f'<script type="application/json">{data}</script></div>'
        f"<details><summary>{escape(f'All {len(rows)} heads')}</summary><div class=\"wide\">"
        f"{rows.to_html(index=False, classes='sortable', border=0)}</div></details>"))
