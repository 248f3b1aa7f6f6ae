"""Where the released code departs from the paper, and what became of each departure here; read from a YAML file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

_LISTED = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Departure:
    """One way in which scores are or could be made otherwise, and the switch for it."""

    places: str
    score: str
    switch: dict[str, Any]
    default: str
    departure: str
    file: str
    idle: str  # why the switch has nothing to act on where it changes no number

    @property
    def name(self) -> str:
        return f"{self.places}: {self.departure}"


SCORING = tuple(Departure(**entry) for entry in _LISTED["scoring"])
SCORING_WITHOUT_SWITCH = tuple((d["place"], d["departure"], d["why"]) for d in _LISTED["scoring_without_switch"])
ABLATION = tuple(_LISTED["ablation"])


def departures_table() -> pd.DataFrame:
    """What became of each departure in ablation: columns departure, how, why; index its number in the list."""
    rows = [(d["number"], d["departure"], f"{d['how']} ({d['field']})" if "field" in d else d["how"], d["why"])
            for d in ABLATION]
    return pd.DataFrame(rows, columns=["number", "the released code", "here", "how or why"]).set_index("number")
