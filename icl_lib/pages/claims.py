"""The ledger as the table of its page."""

from collections.abc import Mapping
from html import escape
from typing import Any

import pandas as pd
from IPython.display import HTML

from icl_lib.analysis.claims import ABSENT, Claim, estimate_words, overall, read_claims, tally_words
from icl_lib.pages.common import verdict_table

FEW = 3  # models whose estimates are shown without a click


def ledger_table(worlds: Mapping[str, pd.DataFrame], claims: tuple[Claim, ...] | None = None) -> HTML:
    """The ledger as a table: claim, the paper's number, test, rule; and per world of models a column with the verdict.

    `worlds`: `claims.ledger` by the head of its column. Every model's estimate is shown, of many on a click.
    """
    rows = []
    for claim in claims or read_claims():
        figure = f" (figure {escape(claim.figure)})" if claim.figure else ""
        test = escape(claim.test) + (f". Holds if {rule_words(claim.holds)}" if claim.holds else "")
        page = f'<a href="{claim.page}.html">{claim.page.replace("_", " ")}</a>'
        rows.append([
            escape(claim.id), f"{escape(claim.claim)}<br><small>Paper{figure}: {escape(claim.paper)}<br>Test: {test} "
            f"({page})</small>", *(_verdict(found[found["claim"] == claim.id]) for found in worlds.values())])
    return verdict_table(["", "claim", *worlds], rows, bare=2)


def _verdict(rows: pd.DataFrame) -> str:
    """A claim's verdict over the models of a world, its tally, and every model's estimate, of many on a click."""
    measured = rows[rows["verdict"] != ABSENT]
    count = "all models" if measured["model"].eq("").all() else tally_words(measured)
    models = "".join(
        f"<li>{chip(row.verdict)} {escape(row.model or 'all models')}: {escape(estimate_words(row))}</li>"
        for row in measured.itertuples())
    shown = " open" if len(measured) <= FEW else ""
    return chip(overall(rows)) + (
        f"<details{shown}><summary>{count}</summary><ul>{models}</ul></details>" if models else "")


def rule_words(rule: dict[str, Any]) -> str:
    """A rule as it reads after "holds if"."""
    (name, limit), = rule.items()
    return f"between {limit[0]:g} and {limit[1]:g}" if name == "between" else f"{name.replace('_', ' ')} {limit:g}"


def chip(said: str, colour: str = "") -> str:
    """A verdict as it is coloured on a page, or another word in a verdict's colour."""
    return f'<span class="verdict {colour or said.replace(" ", "-")}">{said}</span>'
