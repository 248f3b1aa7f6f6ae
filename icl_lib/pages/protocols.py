"""Sentences and tables of the protocols page, made from what each departure of the released code changes."""

import pandas as pd
from IPython.display import HTML

from icl_lib.departures import SCORING, SCORING_WITHOUT_SWITCH


def departures_in_words() -> HTML:
    """The departures of scoring that have a switch: where they are listed, the default, the departure, its file."""
    rows = [(d["places"], {"induction": "induction", "fv": "FV"}[d["score"]], d["default"], d["departure"], d["file"],
             ", ".join(f"{name}={value!r}" for name, value in d["switch"].items())) for d in SCORING]
    return _words(rows, ["place", "score", "here", "departure", "file of the released code", "switch"])


def departures_without_switch() -> HTML:
    """The other departures of scoring, and why there is no switch for them."""
    return _words([tuple(d.values()) for d in SCORING_WITHOUT_SWITCH], ["place", "departure", "why there is no switch"])


def _words(rows, columns: list[str]) -> HTML:
    return HTML(pd.DataFrame(rows, columns=columns).to_html(index=False))


def departure_table(effects: pd.DataFrame, score: str) -> HTML:
    """What each departure changes in one score: numbers, or why there are none; other seeds as one row."""
    rows, measured = [], effects[effects["score"] == score]
    seeds = measured[measured["kind"] == "seed"]
    for row in measured.itertuples():
        if row.kind == "default":
            rows.append(("default", f"{row.top:.3f}", "", "", ""))
            spans = (f"{seeds[column].min():{form}} to {seeds[column].max():{form}}"
                     for column, form in (("top", ".3f"), ("rank_correlation", ".2f"), ("shared", ".2f")))
            rows.append((f"default, {len(seeds)} other seeds", *spans, ""))
        elif row.kind != "seed":
            numbers = ("-",) * 3 if row.note else (
                f"{row.top:.3f}", f"{row.rank_correlation:.2f} ({row.low:.2f} to {row.high:.2f})", f"{row.shared:.2f}")
            rows.append((row.name, *numbers, row.note or row.beyond or "nothing"))
    return _words(rows, ["protocol", "highest score", "rank correlation with the default", "shared top heads",
                         "changed beyond other seeds"])


def departure_sentence(effects: pd.DataFrame) -> str:
    """How many departures change what by more than other seeds do, and what the released protocol does as a whole."""
    parts = []
    for score, label in (("induction", "induction score"), ("fv", "FV score")):
        rows = effects[effects["score"] == score].set_index("kind")
        single, seeds = rows.loc[["departure"]], rows.loc[["seed"]]["rank_correlation"]
        able = single[single["note"] == ""]
        ranking = able[able["beyond"].str.contains("ranking")]
        default, released = rows.loc["default"], rows.loc[["preset"]].iloc[-1]
        which = f" ({'; '.join(ranking['name'])})" if len(ranking) else ""
        parts.append(
            f"**{label}**: {len(able)} of {len(single)} departures can act on this model; {len(ranking)} of them"
            f"{which} {'changes' if len(ranking) == 1 else 'change'} the ranking of the heads by more than any of "
            f"{len(seeds)} other seeds does, whose rank correlations go down to {seeds.min():.2f}. The released "
            f"protocol as a whole has a highest score of {released['top']:.3f} instead of {default['top']:.3f} and a "
            f"rank correlation with the default of {released['rank_correlation']:.2f}")
    return ". ".join(parts) + "."
