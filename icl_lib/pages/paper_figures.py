"""The paper's figures beside ours, as the table of their page."""

from collections.abc import Mapping
from html import escape

import pandas as pd
from IPython.display import HTML

from icl_lib.analysis.claims import ABSENT, estimate_words, read_claims
from icl_lib.analysis.paper_figures import AGREES, DIFFERS, UNMEASURED, WORD, PaperFigure, figure_words, read_figures
from icl_lib.pages.claims import chip
from icl_lib.pages.common import verdict_table

# How a word is coloured: as the ledger's verdict.
_COLOUR = {AGREES: "holds", DIFFERS: "does-not-hold", UNMEASURED: "not-measured-here"}
# Pages of a model, by the notebook; the others are over all models.
OF_MODEL = ("scoring", "ablation", "task_execution", "training_dynamics")


def figures_table(rows: pd.DataFrame, groups: Mapping[str, str]) -> HTML:
    """A row per figure of the paper: what it shows, a column per world of models, one word, our figures.

    `rows`: `paper_figures.compared`; `groups`: by world what follows a notebook's name in those of its runs over all
    models. Further claims of a figure open on a click.
    """
    words, lines = figure_words(rows), []
    for figure in read_figures():
        own = rows[rows["figure"] == figure.number]
        links = "<br>".join(_links(place, figure, own, groups) for place in figure.ours)
        lines.append([
            f"<b>{figure.number}. {escape(figure.title)}</b><br><small>{escape(figure.shows)}.<br>"
            f"<i>Here: {escape(figure.here[figure.claims[0]])}</i></small>",
            *(_cell(figure, own[own["world"] == world]) for world in groups), _chip(words[figure.number]),
            f"<small>{links}</small>"])
    return verdict_table(["the paper's figure", *groups, "agreement", "our figure"], lines, kind="ledger front")


def _cell(figure: PaperFigure, rows: pd.DataFrame) -> str:
    """One world's estimate of a figure's main claim, and the others' on a click."""
    first, *others = rows.itertuples()
    more = "".join(f"<li>{escape(figure.here[row.claim])}: {_estimate(row)}</li>"
                   for row in others if row.verdict != ABSENT)
    along = rows[rows["claim"].map(_pages()) == "training_dynamics"]
    lacks = f"<br><small>{escape(figure.lacks)}</small>" if figure.lacks and along["verdict"].eq(ABSENT).all() else ""
    return _estimate(first) + lacks + (f"<details><summary>{more.count('<li>')} more</summary><ul>{more}</ul></details>"
                                       if more else "")


def _estimate(row) -> str:
    of = escape(f"{row.model or 'all models'}: {estimate_words(row)}") if pd.notna(row.value) else ""
    return _chip(WORD[row.verdict]) + (f"<br><small>{of}</small>" if of else "")


def _links(place: str, figure: PaperFigure, rows: pd.DataFrame, groups: Mapping[str, str]) -> str:
    """Our figures at a place of each world, which the book turns into links; a model's is that of the estimate."""
    notebook, _, cell = place.partition("#")
    if notebook == "paper_figures":
        return figure_link(notebook, cell, "below")
    if notebook not in OF_MODEL:
        links = [figure_link(notebook + group, cell, world) for world, group in groups.items()]
    else:
        there = rows[rows["claim"].map(_pages()) == notebook] if notebook in map(_pages().get, figure.claims) else rows
        named = there[there["model"].notna() & there["model"].ne("")]
        models = named.drop_duplicates("world").set_index("world")["model"]
        links = [figure_link(f"{notebook}/{models[world]}", cell, models[world]) for world in groups if world in models]
    return f"{notebook.replace('_', ' ')}: {', '.join(links)}"


def figure_link(run: str, cell: str, words: str) -> str:
    """Words that the book links to the figure of a cell in the page of a run (workflow/links.py)."""
    return f'<a data-run="{escape(run)}" data-cell="{escape(cell)}">{escape(words)}</a>'


def _pages() -> dict[str, str]:
    return {claim.id: claim.page for claim in read_claims()}


def _chip(word: str) -> str:
    return chip(word, _COLOUR.get(word, "not-decided"))
