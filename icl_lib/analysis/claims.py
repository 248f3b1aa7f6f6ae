"""The claims ledger: the paper's claims, their tests in claims.yaml, and the verdicts of their rules on a suite."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from icl_lib.analysis.claim_estimates import LEVEL, Estimate
from icl_lib.analysis.claim_statistics import STATISTICS
from icl_lib.analysis.suite_tables import SuiteTables
from icl_lib.names import size_of
from icl_lib.tables import read_table

FILE = Path(__file__).with_name("claims.yaml")
HOLDS, FAILS, OPEN = "holds", "does not hold", "not decided"
POWERLESS, ABSENT = "cannot be decided here", "not measured here"
VERDICTS = (HOLDS, FAILS, OPEN, POWERLESS, ABSENT)
WORDS = {HOLDS: "for", FAILS: "against", OPEN: "open", POWERLESS: "no power"}
# Of each rule whether an interval lies wholly inside, and whether wholly outside; `after`: it does not reach its ends.
RULES = {
    "above": lambda low, high, limit: (low > limit, high <= limit),
    "after": lambda low, high, limit: (low >= limit, high <= limit),
    "below": lambda low, high, limit: (high < limit, low >= limit),
    "between": lambda low, high, limit: (limit[0] <= low and high <= limit[1], high < limit[0] or low > limit[1]),
}


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
    front: dict[str, str] = field(default_factory=dict)


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
    if not estimate.decidable:
        return POWERLESS
    if np.isnan(estimate.value):
        return ABSENT
    low, high = estimate.low, estimate.high
    if np.isnan(low) or np.isnan(high):
        if not estimate.p_value < 0.05:
            return OPEN
        low = high = estimate.value
    (name, limit), = rule.items()
    inside, outside = RULES[name](low, high, limit)
    return HOLDS if inside else FAILS if outside else OPEN


def ledger(suite: SuiteTables, claims: tuple[Claim, ...] | None = None) -> pd.DataFrame:
    """One row per claim and model that has the kinds of heads which it needs, or one with NaN where there is none.

    Columns claim (its id), those of `Estimate`, and verdict.
    """
    rows = []
    for claim in claims or read_claims():
        estimates = STATISTICS[claim.statistic](suite, **claim.given) if claim.holds else []
        measured = [e for e in estimates if not e.model or set(claim.needs) <= suite.kinds.get(e.model, set())]
        for estimate in measured or [Estimate("", np.nan, n=0)]:
            rows.append({"claim": claim.id, **estimate._asdict(), "verdict": verdict(estimate, claim.holds)})
    return pd.DataFrame(rows)


def votes(rows: pd.DataFrame) -> dict[str, str]:
    """The verdict of each size of model that was measured on a claim: what more than half of its seeds say.

    Without such a majority it is not decided; where no seed has power it cannot be decided here.
    """
    measured = rows[rows["verdict"] != ABSENT]
    by_size = measured.groupby(measured["model"].map(size_of))["verdict"]
    return {str(size): _majority(list(said), len(said)) for size, said in by_size}


def tally_words(rows: pd.DataFrame) -> str:
    """The votes of the sizes of model on a claim, counted: "2 for, 1 against, 1 no power"."""
    said = list(votes(rows).values())
    return ", ".join(f"{said.count(vote)} {word}" for vote, word in WORDS.items() if vote in said)


def overall(rows: pd.DataFrame) -> str:
    """The verdict over sizes of model: what more than half of those with power say."""
    said = list(votes(rows).values())
    return _majority(said, len(said) - said.count(POWERLESS))


def of_largest_model(rows: pd.DataFrame, sizes: Mapping[str, int]):
    """The row of the largest model that has an estimate, or that over all models; None where nothing was measured.

    Of models with power, where there are any; of its seeds, whose number the column `seeds` has, the first that says
    what most of them say.
    """
    sizes_of = rows["model"].map(size_of)
    rows = rows.assign(seeds=sizes_of.groupby(sizes_of).transform("size"))
    measured = rows[(rows["verdict"] != ABSENT) & rows["value"].notna()]
    said = votes(rows)

    def place(row) -> tuple[bool, int, bool]:
        return row.verdict != POWERLESS, sizes.get(row.model, 0), row.verdict == said[size_of(row.model)]
    return max(measured.itertuples(), key=place, default=None)


def _majority(said: list[str], n: int) -> str:
    """What more than half of `n` voters say; those without power say neither."""
    if said.count(POWERLESS) == len(said):
        return POWERLESS if said else ABSENT
    return next((word for word in (HOLDS, FAILS) if said.count(word) > n / 2), OPEN)


def counts_sentence(found: pd.DataFrame) -> str:
    """How many claims came out how."""
    verdicts = pd.Series({claim: overall(rows) for claim, rows in found.groupby("claim", sort=False)}).value_counts()
    one, many = ({HOLDS: "holds", FAILS: "does not hold", OPEN: "is not decided", ABSENT: "is not measured here"},
                 {HOLDS: "hold", FAILS: "do not hold", OPEN: "are not decided", ABSENT: "are not measured here"})
    return (f"Of {found['claim'].nunique()} claims " + ", ".join(
        f"{verdicts[v]} {(one if verdicts[v] == 1 else many).get(v, v)}" for v in VERDICTS if v in verdicts) + ".")


def estimate_words(row) -> str:
    """An estimate with its interval or p-value, and what is missing where it cannot be decided."""
    # what is not 0 by rounding alone is 0
    value, low, high = (0.0 if abs(number) < 1e-9 else number for number in (row.value, row.low, row.high))
    if not np.isnan(low) and low < high:
        text = f"{value:.3g} ({low:.3g} to {high:.3g})"
    else:
        text = f"{value:.3g}" + ("" if np.isnan(row.p_value) else f" (p = {row.p_value:.2g})")
    return (row.why or POWERLESS if np.isnan(row.value) else f"{text}; {row.why}" if row.why else text)


def with_verdicts(statistics: pd.DataFrame) -> pd.DataFrame:
    """`ledger` from its rows in the table `statistics`: verdicts and, in general words, `why` follow from these."""
    rules = {claim.id: claim.holds for claim in read_claims()}
    found = statistics.rename(columns={"name": "claim"}).assign(
        why=[f"p of at least {p:.2g} whatever comes out" if LEVEL <= p < 1 else "" for p in statistics["smallest_p"]])
    found = found[["claim", *Estimate._fields]]
    return found.assign(verdict=[verdict(Estimate(*row[1:]), rules[row[0]]) for row in found.itertuples(index=False)])


def read_ledgers(results: Path, groups: Iterable[str]) -> dict[str, pd.DataFrame]:
    """The ledgers that claims pages wrote, with verdicts; `groups`: "/pretrained" of an included suite, "" its own."""
    return {group: with_verdicts(read_table(results / f"statistics/claims{group}.parquet", schema_name="statistics"))
            for group in groups}


def statistics_rows(found: pd.DataFrame) -> pd.DataFrame:
    """The ledger as rows of the table `statistics`, named by the claims' ids."""
    return found.drop(columns=["verdict", "why"]).rename(columns={"claim": "name"}).assign(notebook="claims")
