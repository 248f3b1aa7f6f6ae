"""The ledger as tables: by claim for its own page and the front page, by the paper's figures for theirs."""

from collections.abc import Mapping
from html import escape
from typing import Any

import pandas as pd
from IPython.display import HTML

from icl_lib.analysis.claims import ABSENT, estimate_words, of_largest_model, overall, read_claims, tally_words
from icl_lib.analysis.paper_figures import WORD, PaperFigure, figure_words, read_figures
from icl_lib.names import size_of
from icl_lib.pages.common import verdict_table

MAIN, AS_THE_PAPER = "H1, 4a", "H1, 4a (last)"  # the claim that the front page opens with
# Pages of a model, of seeds the first one's, by the notebook; the others are over all models.
OF_MODEL = ("scoring", "ablation", "task_execution", "training_dynamics")
# What a verdict says of the main claim.
_SAID = {"holds": "it does", "does not hold": "it does not", "not decided": "this is not decided",
         "cannot be decided here": "this cannot be decided", "not measured here": "this was not measured"}


def ledger_table(worlds: Mapping[str, pd.DataFrame]) -> HTML:
    """The ledger (`claims.ledger` by the world of its models): claim, test and rule, a column of verdicts per world."""
    rows = []
    for claim in read_claims():
        figure = f" (figure {escape(claim.figure)})" if claim.figure else ""
        test = escape(claim.test) + (f". Holds if {rule_words(claim.holds)}" if claim.holds else "")
        page = f'<a href="{claim.page}.html">{claim.page.replace("_", " ")}</a>'
        rows.append([
            escape(claim.id), f"{escape(claim.claim)}<br><small>Paper{figure}: {escape(claim.paper)}<br>Test: {test} "
            f"({page})</small>", *(_verdict(found[found["claim"] == claim.id]) for found in worlds.values())])
    return verdict_table(["", "claim", *worlds], rows, bare=2)


def _verdict(rows: pd.DataFrame) -> str:
    """A claim's verdict over the models of a world and its estimate; of many the tally, their estimates on a click."""
    measured = rows[rows["verdict"] != ABSENT]
    if len(measured) == 1:
        return f"{chip(overall(rows))}<br><small>{_estimate(next(measured.itertuples()))}</small>"
    return chip(overall(rows)) + _listed(
        tally_words(measured), [f"{chip(row.verdict)} {_estimate(row)}" for row in measured.itertuples()])


def rule_words(rule: dict[str, Any]) -> str:
    """A rule as it reads after "holds if"."""
    (name, limit), = rule.items()
    return f"between {limit[0]:g} and {limit[1]:g}" if name == "between" else f"{name.replace('_', ' ')} {limit:g}"


def answer_sentence(worlds: Mapping[str, pd.DataFrame], sizes: Mapping[str, int]) -> str:
    """Whether few-shot accuracy drops more when FV heads are ablated, in each world; `sizes`: parameters by model."""
    parts, at_last = [], []
    for world, found in worlds.items():
        rows = found[found["claim"] == MAIN]
        last, verdict = of_largest_model(rows, sizes), overall(rows)
        differs = "" if last is None or last.verdict == verdict else f", where {_SAID[last.verdict]}"
        of = "" if last is None else (
            f" ({last.model}, the largest{_of_seeds(last)}{differs}: {estimate_words(last)} of accuracy)")
        parts.append(f"{world} {_SAID[verdict]}{of}")
        at_last.append(f"in {world} {_SAID[overall(found[found['claim'] == AS_THE_PAPER])]}")
    return ("Does few-shot accuracy drop more when FV heads are ablated than when induction heads are, each beyond "
            f"random heads of the same layers? **In {'; in '.join(parts)}.** Replaced at the last position only, "
            f"as the paper's code does, so that what heads do earlier in the prompt stays: **{'; '.join(at_last)}.**")


def claims_table(worlds: Mapping[str, pd.DataFrame], sizes: Mapping[str, int], groups: Mapping[str, str]) -> HTML:
    """The claims that have words for the front page: a row each, a column per world, estimates linked to their figure.
    `groups`: by world what follows a notebook's name in those of its runs over all models."""
    lines = []
    for claim in (claim for claim in read_claims() if claim.front):
        lines.append([f"{escape(claim.front['says'])}<br><small>Paper: {escape(claim.paper)}</small>"])
        for world, found in worlds.items():
            rows = found[found["claim"] == claim.id]
            cell, of_models = chip(overall(rows)), rows[rows["model"].ne("") & rows["verdict"].ne(ABSENT)]
            if len(of_models):
                cell += f" <small>{tally_words(of_models)}</small>"
            if (last := of_largest_model(rows, sizes)) is not None:
                own = "" if last.verdict == overall(rows) else f"{last.verdict}, "
                said = (f"{last.model or 'all models'}{_of_seeds(last)}: {own}{estimate_words(last)} "
                        f"{claim.front['unit']}")
                of = f"/{size_of(last.model)}" if claim.page in OF_MODEL else groups[world]
                # a page of one model has nothing of its further seeds
                another = claim.page != "training_dynamics" and last.model not in ("", size_of(last.model))
                told = escape(said) if another else _link(claim.page + of, claim.front["figure"], said)
                cell += f"<br><small>{told}</small>"
            lines[-1].append(cell)
    return verdict_table(["claim of the paper", *worlds], lines, kind="ledger front")


def figures_table(rows: pd.DataFrame, groups: Mapping[str, str]) -> HTML:
    """A row per figure of the paper: what it shows, a column per world of models, one word, our figures.
    `rows`: `paper_figures.compared`; `groups` as in `claims_table`."""
    words, lines = figure_words(rows), []
    rows = rows.assign(page=rows["claim"].map({claim.id: claim.page for claim in read_claims()}))
    for figure in read_figures():
        own = rows[rows["figure"] == figure.number]
        lines.append([
            f"<b>{figure.number}. {escape(figure.title)}</b><br><small>{escape(figure.shows)}.<br>"
            f"<i>Here: {escape(figure.here[figure.claims[0]])}</i></small>",
            *(_cell(figure, own[own["world"] == world]) for world in groups), chip(words[figure.number]),
            f"<small>{'<br>'.join(_links(place, own, groups) for place in figure.ours)}</small>"])
    return verdict_table(["the paper's figure", *groups, "agreement", "our figure"], lines, kind="ledger front")


def _cell(figure: PaperFigure, rows: pd.DataFrame) -> str:
    """One world's estimate of a figure's main claim, and the others' on a click."""
    told = [chip(WORD[row.verdict]) + (f"<br><small>{_estimate(row)}</small>" if pd.notna(row.value) else "")
            for row in rows.itertuples()]
    more = [f"{escape(figure.here[claim])}: {words}" for claim, verdict, words in
            zip(rows["claim"][1:], rows["verdict"][1:], told[1:], strict=True) if verdict != ABSENT]
    lacks = figure.lacks and rows[rows["page"] == "training_dynamics"]["verdict"].eq(ABSENT).all()
    return (told[0] + (f"<br><small>{escape(figure.lacks)}</small>" if lacks else "")
            + _listed(f"{len(more)} more", more))


def _links(place: str, rows: pd.DataFrame, groups: Mapping[str, str]) -> str:
    """Our figures at a place of each world, which the book turns into links; a model's is that of the estimate."""
    notebook, _, cell = place.partition("#")
    if notebook == "paper_figures":
        return _link(notebook, cell, "below")
    if notebook not in OF_MODEL:
        links = [_link(notebook + group, cell, world) for world, group in groups.items()]
    else:
        there = rows[rows["page"] == notebook] if notebook in set(rows["page"]) else rows
        named = there[there["model"].notna() & there["model"].ne("")]
        models = named.drop_duplicates("world").set_index("world")["model"]
        links = [_link(f"{notebook}/{size_of(models[world])}", cell, size_of(models[world]))
                 for world in groups if world in models]
    return f"{notebook.replace('_', ' ')}: {', '.join(links)}"


def _link(run: str, cell: str, words: str) -> str:
    """Words that the book links to the figure of a cell in the page of a run (workflow/book.py)."""
    return f'<a data-run="{escape(run)}" data-cell="{escape(cell)}">{escape(words)}</a>'


def _estimate(row) -> str:
    return escape(f"{row.model or 'all models'}{_of_seeds(row)}: {estimate_words(row)}")


def _of_seeds(row) -> str:
    """How many seeds of its size a row stands for, where there are several."""
    return f", one of {row.seeds:.0f} seeds" if getattr(row, "seeds", 1) > 1 else ""


def _listed(title: str, items: list[str]) -> str:
    """Items below a title that a click opens; nothing where there are none."""
    lines = "".join(f"<li>{item}</li>" for item in items)
    return f"<details><summary>{title}</summary><ul>{lines}</ul></details>" if items else ""


def chip(said: str) -> str:
    """A verdict or a figure's word, which book.css colours."""
    return f'<span class="verdict {said.replace(" ", "-")}">{said}</span>'
