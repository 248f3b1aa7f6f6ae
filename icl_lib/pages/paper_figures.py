"""The paper's figures beside ours, as the table of their page."""

from collections.abc import Iterator, Mapping
from html import escape

import pandas as pd
from IPython.display import HTML

from icl_lib.analysis.claims import ABSENT, estimate_words, read_claims
from icl_lib.analysis.paper_figures import AGREES, DIFFERS, UNMEASURED, WORD, PaperFigure, figure_words, read_figures
from icl_lib.pages.claims import chip

# How a word is coloured: as the ledger's verdict.
_COLOUR = {AGREES: "holds", DIFFERS: "does-not-hold", UNMEASURED: "not-measured-here"}
# Pages of a model, by the notebook; the others are over all models.
_OF_MODEL = ("scoring", "ablation", "task_execution", "training_dynamics")


def figures_table(rows: pd.DataFrame, groups: Mapping[str, str]) -> HTML:
    """A row per figure of the paper: what it shows, a column per world of models, one word, our figures.

    `rows`: `paper_figures.compared`; `groups`: by world what follows a notebook's name in those of its runs over all
    models. Further claims of a figure open on a click.
    """
    words, lines = figure_words(rows), []
    for figure in read_figures():
        own = rows[rows["figure"] == figure.number]
        cells = "".join(f'<td data-head="{escape(world)}">{_cell(figure, own[own["world"] == world])}</td>'
                        for world in groups)
        links = "<br>".join(dict.fromkeys(link for world, group in groups.items() for link in _links(
            figure, own[own["world"] == world], group, world)))
        lines.append(
            f"<tr><td><b>{figure.number}. {escape(figure.title)}</b><br><small>{escape(figure.shows)}.<br>"
            f"<i>Here: {escape(figure.here[figure.claims[0]])}</i></small></td>{cells}"
            f'<td data-head="agreement">{_chip(words[figure.number])}</td>'
            f'<td data-head="our figure"><small>{links}</small></td></tr>')
    head = "".join(f"<th>{escape(name)}</th>" for name in ("the paper's figure", *groups, "agreement", "our figure"))
    return HTML(f'<div class="wide"><table class="ledger front"><thead><tr>{head}</tr></thead><tbody>'
                f"{''.join(lines)}</tbody></table></div>")


def _cell(figure: PaperFigure, rows: pd.DataFrame) -> str:
    """One world's estimate of a figure's main claim, and the others' on a click."""
    first, *others = rows.itertuples()
    more = "".join(f"<li>{escape(figure.here[row.claim])}: {_estimate(row)}</li>"
                   for row in others if row.verdict != ABSENT)
    lacks = f"<br><small>{escape(figure.lacks)}</small>" if first.verdict == ABSENT and figure.lacks else ""
    return _estimate(first) + lacks + (f"<details><summary>{more.count('<li>')} more</summary><ul>{more}</ul></details>"
                                       if more else "")


def _estimate(row) -> str:
    of = escape(f"{row.model or 'all models'}: {estimate_words(row)}") if pd.notna(row.value) else ""
    return _chip(WORD[row.verdict]) + (f" <small>{of}</small>" if of else "")


def _links(figure: PaperFigure, rows: pd.DataFrame, group: str, world: str) -> Iterator[str]:
    """Places of our figures, which the book turns into links where it has the run; the model is the estimate's."""
    pages = {claim.id: claim.page for claim in read_claims()}
    models = rows[rows["model"].notna() & rows["model"].ne("")]
    for place in figure.ours:
        notebook, _, cell = place.partition("#")
        run, words = notebook + group, f"{notebook.replace('_', ' ')} ({world})"
        if notebook == "paper_figures":
            run, words = notebook, "below"
        elif notebook in _OF_MODEL:
            nearest = models[models["claim"].map(pages) == notebook]
            of = next(iter((nearest if len(nearest) else models)["model"]), "")
            run, words = f"{notebook}/{of}", f"{notebook.replace('_', ' ')} ({of})"
            if not of:
                continue
        yield f'<a data-run="{escape(run)}" data-cell="{escape(cell)}">{escape(words)}</a>'



def _chip(word: str) -> str:
    return chip(word, _COLOUR.get(word, "not-decided"))
