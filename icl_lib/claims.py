"""The claims ledger: the paper's claims, their tests in claims.yaml, and the verdicts of their rules on a suite."""

from dataclasses import dataclass, field
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from IPython.display import HTML

from icl_lib.claim_statistics import STATISTICS, Estimate
from icl_lib.measurements import mean_scores
from icl_lib.report import null_quantile
from icl_lib.suite_tables import SuiteTables

FILE = Path(__file__).with_name("claims.yaml")
HOLDS, FAILS, OPEN, ABSENT = "holds", "does not hold", "not decided", "not measured here"
VERDICTS = (HOLDS, FAILS, OPEN, ABSENT)
RULES = ("above", "at_least", "below", "between")


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and its test; the fields are explained in claims.yaml."""

    id: str
    section: str
    claim: str
    paper: str
    figure: str
    statistic: str
    test: str
    page: str
    given: dict[str, Any] = field(default_factory=dict)
    holds: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


@cache
def read_claims(path: Path = FILE) -> tuple[Claim, ...]:
    """The claims of the data file. Raises ValueError naming the claim for an unknown field, statistic or rule."""
    found = []
    for entry in yaml.safe_load(path.read_text(encoding="utf-8"))["claims"]:
        name = entry.get("id", "without an id")
        try:
            claim = Claim(**entry | {"needs": tuple(entry.get("needs", ())), "figure": str(entry.get("figure", ""))})
        except TypeError as error:
            raise ValueError(f"claim {name} of {path.name}: {str(error).removeprefix('Claim.__init__() ')}") from None
        if claim.statistic not in (*STATISTICS, "none"):
            raise ValueError(f"claim {name} of {path.name}: unknown statistic {claim.statistic!r}, expected none or "
                             f"one of {', '.join(STATISTICS)}")
        if (claim.statistic != "none") != (len(claim.holds) == 1 and set(claim.holds) <= set(RULES)):
            raise ValueError(f"claim {name} of {path.name}: holds is {claim.holds!r}, expected one rule of "
                             f"{', '.join(RULES)}")
        found.append(claim)
    ids = [claim.id for claim in found]
    if repeated := {i for i in ids if ids.count(i) > 1}:
        raise ValueError(f"{path.name}: claim {sorted(repeated)[0]} is listed twice")
    return tuple(found)


def verdict(estimate: Estimate, rule: dict[str, Any]) -> str:
    """What the rule says: interval wholly inside, wholly outside or neither; a p-value where there is no interval."""
    if np.isnan(estimate.value):
        return ABSENT
    (name, limit), = rule.items()
    low, high = estimate.low, estimate.high
    if np.isnan(low) or np.isnan(high):
        if not estimate.p_value < 0.05:
            return OPEN
        low = high = estimate.value
    if name == "between":
        inside, outside = limit[0] <= low and high <= limit[1], high < limit[0] or low > limit[1]
    elif name == "below":
        inside, outside = high < limit, low >= limit
    elif name == "at_least":
        inside, outside = low >= limit, high < limit
    else:
        inside, outside = low > limit, high <= limit
    return HOLDS if inside else FAILS if outside else OPEN


def has_heads(scores: pd.DataFrame, suite: SuiteTables) -> set[str]:
    """Which kinds of heads a model has: prefix-matching above the threshold, an FV score above its null's quantile."""
    kinds = set()
    if float(mean_scores(scores, "induction_prefix_matching").max()) > suite.induction_threshold:
        kinds.add("induction")
    if float(mean_scores(scores, "fv").max()) > null_quantile(scores, suite.null_quantile):
        kinds.add("fv")
    return kinds


def ledger(suite: SuiteTables, claims: tuple[Claim, ...] | None = None) -> pd.DataFrame:
    """One row per claim and model that its statistic can be measured on, or one with NaN where there is none.

    Columns claim (its id), model ("" for the whole suite), value, low, high, p_value, n, verdict. A model that lacks a
    kind of heads which the claim needs is left out.
    """
    present = {model: has_heads(scores, suite) for model, scores in suite.scores.items()}
    rows = []
    for claim in claims or read_claims():
        estimates = STATISTICS[claim.statistic](suite, **claim.given) if claim.holds else []
        measured = [e for e in estimates if not e.model or set(claim.needs) <= present.get(e.model, set())]
        for estimate in measured or [Estimate("", np.nan, n=0)]:
            rows.append({"claim": claim.id, **estimate._asdict(), "verdict": verdict(estimate, claim.holds)})
    return pd.DataFrame(rows)


def overall(rows: pd.DataFrame) -> str:
    """The verdict over models: what more than half of the measured ones say."""
    measured = rows[rows["verdict"] != ABSENT]
    if measured.empty:
        return ABSENT
    counts = measured["verdict"].value_counts()
    return next((v for v in (HOLDS, FAILS) if counts.get(v, 0) > len(measured) / 2), OPEN)


def counts_sentence(found: pd.DataFrame) -> str:
    """How many claims came out how."""
    verdicts = pd.Series({claim: overall(rows) for claim, rows in found.groupby("claim", sort=False)}).value_counts()
    return (f"Of {found['claim'].nunique()} claims " + ", ".join(
        f"{verdicts[v]} {'hold' if v == HOLDS else 'do not hold' if v == FAILS else 'are ' + v}"
        for v in VERDICTS if v in verdicts) + ".")


def answer(found: pd.DataFrame, sizes: pd.DataFrame) -> str:
    """The paper's three conclusions as these tables have them, one sentence or two each."""
    order = list(sizes.sort_values("parameters")["model"])

    def rows(claim: str) -> pd.DataFrame:
        own = found[(found["claim"] == claim) & (found["verdict"] != ABSENT)]
        return own.sort_values("model", key=lambda names: names.map(lambda m: order.index(m) if m in order else -1))

    def count(claim: str, unit: str) -> str:
        own = rows(claim)
        if own.empty:
            return "not measured here"
        last = own.iloc[-1]
        return (f"in {(own['verdict'] == HOLDS).sum()} of {len(own)} models, less in "
                f"{(own['verdict'] == FAILS).sum()} ({last['model']}, the largest: {number(last)}{unit})")

    def trend(claim: str) -> str:
        own = rows(claim)
        return "" if own.empty else f"; rank correlation of the difference with size {number(own.iloc[0])}"

    shared, chance = rows("H2 (distinct), 3b"), rows("5e (chance)")
    first, reverse = rows("5b"), rows("5f")
    lines = [
        "**Few-shot accuracy**: beyond random heads of the same layers, FV heads cost more than induction heads "
        + count("H1, 4a", "") + trend("H1, 4a (size)") + ".",
        "**Token-loss difference**: under the same intervention and with exclusion, induction heads cost more nats "
        + count("4d", " nats, FV minus induction") + trend("4d (size)") + ".",
        "**Two kinds**: " + ("not measured here" if shared.empty else
            f"the top sets share {shared['value'].mean():.0%} of their heads on average over {len(shared)} models")
        + ("" if first.empty else f"; along training induction heads came first in "
           f"{(first['verdict'] == HOLDS).sum()} of {len(first)} models with checkpoints")
        + ("" if chance.empty else f", and more heads than by chance went from induction to FV in "
           f"{(chance['verdict'] == HOLDS).sum()} of {len(chance)}")
        + ("" if reverse.empty else
           f" (the reverse in {reverse['value'].mean():.0%} of the heads that had both scores)")
        + ".",
    ]
    return "\n".join(f"1. {line}" for line in lines)


def ledger_table(found: pd.DataFrame, claims: tuple[Claim, ...] | None = None) -> HTML:
    """The ledger as a table: claim, the paper's number, test, rule, verdict, and every model's estimate on a click."""
    lines = []
    for claim in claims or read_claims():
        rows = found[found["claim"] == claim.id]
        said = overall(rows)
        measured = rows[rows["verdict"] != ABSENT]
        agree = int((measured["verdict"] == said).sum())
        count = "" if measured.empty or measured["model"].eq("").all() else f"{agree} of {len(measured)} models"
        figure = f" (figure {escape(claim.figure)})" if claim.figure else ""
        test = escape(claim.test) + (f". Holds if {rule_words(claim.holds)}" if claim.holds else "")
        models = "".join(f"<li>{_chip(row.verdict)} {escape(row.model or 'all models')}: {escape(number(row))}</li>"
                         for row in measured.itertuples())
        ours = f"<details><summary>{count or 'all models'}</summary><ul>{models}</ul></details>" if models else ""
        lines.append(
            f"<tr><td>{escape(claim.id)}</td><td>{escape(claim.claim)}<br><small>Paper{figure}: {escape(claim.paper)}"
            f"</small></td><td>{_chip(said)}{ours}</td><td><small>{test}</small></td>"
            f'<td><a href="{claim.page}.html">{claim.page.replace("_", " ")}</a></td></tr>')
    head = "".join(f"<th>{name}</th>" for name in ("", "claim", "here", "test", "figure"))
    return HTML(f'<div class="wide"><table class="ledger"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody>'
                "</table></div>")


def rule_words(rule: dict[str, Any]) -> str:
    """A rule as it reads after "holds if"."""
    (name, limit), = rule.items()
    return f"between {limit[0]:g} and {limit[1]:g}" if name == "between" else f"{name.replace('_', ' ')} {limit:g}"


def number(row) -> str:
    """An estimate with its interval or p-value."""
    if not np.isnan(row.low) and row.low < row.high:
        return f"{row.value:.3g} ({row.low:.3g} to {row.high:.3g})"
    return f"{row.value:.3g}" + ("" if np.isnan(row.p_value) else f" (p = {row.p_value:.2g})")


def with_verdicts(statistics: pd.DataFrame) -> pd.DataFrame:
    """`ledger` from its rows in the table `statistics`; the verdicts follow from the rules again."""
    rules = {claim.id: claim.holds for claim in read_claims()}
    found = statistics.rename(columns={"name": "claim"})[["claim", *Estimate._fields]]
    return found.assign(verdict=[verdict(Estimate(*row[1:]), rules[row[0]]) for row in found.itertuples(index=False)])


def statistics_rows(found: pd.DataFrame) -> pd.DataFrame:
    """The ledger as rows of the table `statistics`, named by the claims' ids."""
    return found.rename(columns={"claim": "name"}).drop(columns="verdict").assign(notebook="claims")


def _chip(said: str) -> str:
    return f'<span class="verdict {said.replace(" ", "-")}">{said}</span>'
