"""The paper's figures beside ours: what paper_figures.yaml says of each, and the ledger's estimates and verdicts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd
import yaml

from icl_lib.analysis.claim_estimates import Estimate
from icl_lib.analysis.claims import ABSENT, FAILS, HOLDS, OPEN, POWERLESS, of_largest_model, overall, read_claims
from icl_lib.names import size_of

FILE = Path(__file__).with_name("paper_figures.yaml")
AGREES, DIFFERS, PARTLY, UNDECIDED, UNMEASURED = WORDS = ("agrees", "differs", "partly", "undecided", "not measured")
WORD = {HOLDS: AGREES, FAILS: DIFFERS, OPEN: UNDECIDED, POWERLESS: UNDECIDED, ABSENT: UNMEASURED}


@dataclass(frozen=True)
class PaperFigure:
    """A figure of the paper; the fields are explained in paper_figures.yaml, `here` by claim."""

    number: int
    title: str
    shows: str
    claims: list[str]
    ours: list[str]
    here: dict[str, str]
    lacks: str = ""


@cache
def read_figures(path: Path = FILE) -> tuple[PaperFigure, ...]:
    """The figures of the data file. Raises ValueError for a claim that is not in the ledger or has no words."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    here, known = content["here"], {claim.id for claim in read_claims()}
    found = tuple(PaperFigure(here=here, **entry) for entry in content["figures"])
    for figure in found:
        for claim in figure.claims:
            if claim not in known or claim not in here:
                raise ValueError(f"figure {figure.number} of {path.name}: claim {claim!r} is not in "
                                 f"{'here' if claim in known else 'claims.yaml'}")
    return found


def agreement(said: list[str]) -> str:
    """One word for the ledger's verdicts on a figure's claims, of those that were measured.

    Agrees: more than half hold and none fails; differs: more than half fail and none holds; partly: some hold, some
    fail; else undecided.
    """
    n_hold, n_fail = said.count(HOLDS), said.count(FAILS)
    if not said:
        return UNMEASURED
    if n_hold and n_fail:
        return PARTLY
    return AGREES if 2 * n_hold > len(said) else DIFFERS if 2 * n_fail > len(said) else UNDECIDED


def compared(worlds: Mapping[str, pd.DataFrame], sizes: Mapping[str, int]) -> pd.DataFrame:
    """A row per figure, claim and world of models: the largest model's estimate and the verdict over all models.

    `worlds`: the ledger with verdicts by name, the one that counts first in front; `sizes`: parameters by model.
    Columns figure, claim, world, verdict, those of `Estimate` and `seeds`: how many of the model's size were measured.
    """
    rows = []
    for figure in read_figures():
        for claim in figure.claims:
            for world, found in worlds.items():
                own = found[found["claim"] == claim]
                last = of_largest_model(own, sizes)
                numbers = {} if last is None else last._asdict()
                of = {"figure": figure.number, "claim": claim, "world": world, "verdict": overall(own)}
                rows.append(numbers | of)
    return pd.DataFrame(rows, columns=["figure", "claim", "world", "verdict", *Estimate._fields, "seeds"])


def figure_words(rows: pd.DataFrame) -> dict[int, str]:
    """The word of each figure of `compared`: each claim speaks by the first world in which it was measured."""
    measured = rows[rows["verdict"] != ABSENT].drop_duplicates(["figure", "claim"])
    return {int(figure): agreement(list(measured[measured["figure"] == figure]["verdict"]))
            for figure in rows["figure"].unique()}


def words_sentence(words: Mapping[int, str]) -> str:
    """How many figures came out how."""
    said = list(words.values())
    return f"Of {len(said)} figures: " + ", ".join(f"{said.count(w)} {w}" for w in WORDS if w in said) + "."


def one_per_size(models: Iterable[str]) -> list[str]:
    """The first model of each size, in order, without further seeds."""
    models = pd.Series(list(models), dtype=str)
    return models[~models.map(size_of).duplicated()].tolist()
