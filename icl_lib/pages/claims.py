"""The ledger as the table of its page."""

from html import escape
from typing import Any

import pandas as pd
from IPython.display import HTML

from icl_lib.analysis.claims import ABSENT, Claim, estimate_words, overall, read_claims, tally_words


def ledger_table(found: pd.DataFrame, claims: tuple[Claim, ...] | None = None) -> HTML:
    """The ledger as a table: claim, the paper's number, test, rule, verdict, and every model's estimate on a click."""
    lines = []
    for claim in claims or read_claims():
        rows = found[found["claim"] == claim.id]
        said = overall(rows)
        measured = rows[rows["verdict"] != ABSENT]
        count = "" if measured.empty or measured["model"].eq("").all() else tally_words(measured)
        figure = f" (figure {escape(claim.figure)})" if claim.figure else ""
        test = escape(claim.test) + (f". Holds if {rule_words(claim.holds)}" if claim.holds else "")
        models = "".join(
            f"<li>{chip(row.verdict)} {escape(row.model or 'all models')}: {escape(estimate_words(row))}</li>"
            for row in measured.itertuples())
        ours = f"<details><summary>{count or 'all models'}</summary><ul>{models}</ul></details>" if models else ""
        lines.append(
            f"<tr><td>{escape(claim.id)}</td><td>{escape(claim.claim)}<br><small>Paper{figure}: {escape(claim.paper)}"
            f"</small></td><td>{chip(said)}{ours}</td><td><small>{test}</small></td>"
            f'<td><a href="{claim.page}.html">{claim.page.replace("_", " ")}</a></td></tr>')
    head = "".join(f"<th>{name}</th>" for name in ("", "claim", "here", "test", "figure"))
    return HTML(f'<div class="wide"><table class="ledger"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody>'
                "</table></div>")


def rule_words(rule: dict[str, Any]) -> str:
    """A rule as it reads after "holds if"."""
    (name, limit), = rule.items()
    return f"between {limit[0]:g} and {limit[1]:g}" if name == "between" else f"{name.replace('_', ' ')} {limit:g}"


def chip(said: str) -> str:
    """A verdict as it is coloured on a page."""
    return f'<span class="verdict {said.replace(" ", "-")}">{said}</span>'
