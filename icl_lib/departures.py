"""Where the released code departs from the paper, and what became of each departure here; read from a YAML file."""

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

_LISTED: dict[str, list[dict[str, Any]]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
SCORING, SCORING_WITHOUT_SWITCH, ABLATION = (
    _LISTED[name] for name in ("scoring", "scoring_without_switch", "ablation"))


def departures_table() -> pd.DataFrame:
    """What became of each departure in ablation: columns departure, how, why; index its number in the list."""
    table = pd.DataFrame(ABLATION).set_index("number")
    table["how"] += (" (" + table.pop("field") + ")").fillna("")
    return table.rename(columns={"departure": "the released code", "how": "here", "why": "how or why"})
