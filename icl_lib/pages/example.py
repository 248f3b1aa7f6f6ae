"""Tables, sentences and shaded prompts of the worked example, made from its table and the model's scores."""

import re
from collections.abc import Iterable
from html import escape

import pandas as pd

from icl_lib.example.choice import candidate_tasks, fv_by_task, top_head_of_each_kind
from icl_lib.figures.common import COLOUR, numbers_link
from icl_lib.figures.example import EXPERIMENTS, HEAD, head_name, outcomes
from icl_lib.kinds import DEFINED_BY, KINDS
from icl_lib.pages.common import KIND_WORDS

_FULL = 0.6  # opacity of the full shade: text on it can be read in light and dark mode
_NAMED = 0.05  # share of attention from which a token's share is written beside it


def names_of(example: pd.DataFrame) -> dict[str, str]:
    """What a page calls each kind's head: "L20H5 (FV head)"."""
    return {kind: f"{head_name(example[example['ranking'] == kind])} ({HEAD[kind]})" for kind in KINDS}


def heads_table(example: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Which two heads, by the scores that define their kinds, with the second highest beside each."""
    rows, names = {}, names_of(example)
    for kind, words, digits in (("induction", "prefix matching", 3), ("fv", "FV score", 4)):
        of_heads = scores[scores["score"] == DEFINED_BY[kind]].groupby(["layer", "head"])["value"].mean()
        best, second = (f"{value:.{digits}f}" for value in of_heads.nlargest(2))
        rows[names[kind]] = {"chosen by": words, "score": best, "next head": second}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(
        f"{example['model'].iloc[0]}: {scores['layer'].max() + 1} layers of {scores['head'].max() + 1} heads")


def copying(example: pd.DataFrame, kind: str) -> float:
    """Prefix matching on the repeated words: mean attention (0..1) from the words of the second run, the last left out,
    to the word after the first copy."""
    rows = example.query("metric == 'attention' and prompts == 'repeated' and ranking == @kind")
    last, period = rows["position"].max(), (rows["position"].max() + 1) // 2
    on = rows["to_position"] == rows["position"] - period + 1
    return float(rows[on & rows["position"].between(last - period + 1, last - 1)]["value"].mean())


def copying_sentence(example: pd.DataFrame) -> str:
    """How much each head attends to the word after the first copy."""
    parts = [f"{name} {copying(example, kind):.0%}" for kind, name in names_of(example).items()]
    return ("Share of attention from the second run that goes to the word after the first copy, mean over words: "
            f"{', '.join(parts)}.")


def choice_sentence(example: pd.DataFrame, scores: pd.DataFrame, accuracy: pd.DataFrame, least: float) -> str:
    """Which task and prompt, by which rule."""
    tasks = candidate_tasks(scores, accuracy, least)
    best, of = tasks.iloc[0], example.set_index("metric")
    return (f"The task is **{best['task']}**: of the {len(tasks)} abstractive scoring tasks (the answer does not stand "
            f"in the query) with an accuracy of at least {least:g}, the one with the largest score of this FV head "
            f"({best['fv']:.3f}; accuracy {best['accuracy']:.2f}). The prompt is number "
            f"{of.at['passed_over', 'value'] + 1:.0f} of those drawn: the first with an answer of one token that the "
            "model gives with right labels and is less sure of with shuffled ones. The right answer is "
            f"`{of.loc['answer_probability', 'token'].iloc[0].strip()}`.")


def prompt_of(example: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The prompt with right labels token by token: `token`; attention from the last one as `value`; whether it is part
    of the `label` of a demonstration, the `end` of one, and right `after` an earlier copy of the last token."""
    rows = example.query("metric == 'attention' and prompts == 'clean' and ranking == @kind")
    rows = rows.sort_values("to_position", ignore_index=True)[["token", "value"]]
    spans = [match.span(1) for match in re.finditer(r"A:([^↵]*)↵", "".join(rows["token"]))]
    label = [any(start < end <= stop for start, stop in spans) for end in rows["token"].str.len().cumsum()]
    ends = [here and not after for here, after in zip(label, [*label[1:], False], strict=True)]
    return rows.assign(label=label, end=ends, after=rows["token"].shift() == rows["token"].iloc[-1])


def shaded_prompts(example: pd.DataFrame) -> str:
    """The prompt with right labels, shaded once for each head."""
    names = names_of(example)
    return _beside(_shaded_prompt(prompt_of(example, kind), kind, f"Attention of {names[kind]}") for kind in KIND_WORDS)


def sampled_prompts(samples: pd.DataFrame) -> str:
    """The prompt with right and with shuffled labels of a table `samples`, as HTML."""
    return _beside(_shaded_prompt(
        rows.sort_values("to_position"), "induction",
        f"{labels.capitalize()}. Attention of {head_name(rows)} from the last token")
        for labels, rows in samples[samples["prompts"] != "repeated"].groupby("prompts"))


def _beside(parts: Iterable[str]) -> str:
    grid = "display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17em, 100%), 1fr)); gap: 0 2em"
    return f'<div style="{grid}">{"".join(parts)}</div>'


def _shaded_prompt(rows: pd.DataFrame, kind: str, words: str) -> str:
    """A prompt, each `token` shaded by a head's attention from the last one, `value`, in a kind's colour, as HTML."""
    full = rows.loc[rows["token"] != "BOS", "value"].max()
    red, green, blue = (int(COLOUR[kind][i : i + 2], 16) for i in (1, 3, 5))
    spans = []
    for row in rows.itertuples():
        share = f"<sub>{100 * row.value:.0f}</sub>" * (row.value >= _NAMED) + "<br/>" * (row.token == "BOS")
        shade = f"rgba({red}, {green}, {blue}, {_FULL * min(1, row.value / full):.3f})"
        spans.append(f'<span style="background: {shade}" title="{row.value:.1%} of the attention">'
                     f'{escape(row.token).replace("↵", "<br/>")}{share}</span>')
    style = ("white-space: pre-wrap; line-height: 1.5; margin: 0; padding: 0; border: 0; background: none; "
             "color: inherit; font-size: inherit; overflow: visible; -webkit-print-color-adjust: exact; "
             "print-color-adjust: exact")
    return (f'<figure class="shaded-prompt"><pre style="{style}">{"".join(spans)}</pre>'
            f"<figcaption>{escape(words)}. Full shade: {full:.0%}. {numbers_link(rows)}</figcaption></figure>")


def looking_table(example: pd.DataFrame) -> pd.DataFrame:
    """How each head's attention from the last token is shared out among labels, what copying looks at, and BOS."""
    rows, names = {}, names_of(example)
    for kind in KIND_WORDS:
        of = prompt_of(example, kind)
        shares = {"labels of the demonstrations": of["label"], "of these their last tokens": of["end"],
                  f"right after an earlier “{of['token'].iloc[-1]}”": of["after"],
                  "beginning of the text": of["token"] == "BOS"}
        rows[names[kind]] = {words: f"{of['value'][where].sum():.0%}" for words, where in shares.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("attention from the last token to")


def answer_table(example: pd.DataFrame) -> str:
    """One row per experiment: the probability of the right answer and the likeliest token, for each head, as HTML."""
    answer, top, rows = outcomes(example, "answer_probability"), outcomes(example, "top_probability"), []
    names = names_of(example)
    for experiment, words in EXPERIMENTS.items():
        rows.append({"experiment": words})
        for kind in KIND_WORDS:
            at, name = (*experiment, "none" if experiment[1] == "none" else kind), names[kind]
            rows[-1] |= {name: f"{answer.at[at, 'value']:.3f}",
                         f"likeliest, {name.split()[0]}": f"{top.at[at, 'token'].strip()} ({top.at[at, 'value']:.3f})"}
    return f'<div class="wide" tabindex="0">{pd.DataFrame(rows).to_html(index=False, border=0)}</div>'


def expected_table(example: pd.DataFrame) -> pd.DataFrame:
    """What was expected of the experiments, each head's number, and whether the FV head's is the larger. Way back: the
    share of what shuffling cost that the head regains; to be larger also than with the FV head's mean over all tasks.
    """
    answer = outcomes(example, "answer_probability")["value"].unstack("ranking")  # a column per head
    clean, shuffled = answer.at[("clean", "none", "none"), "none"], answer.at[("shuffled", "none", "none"), "none"]
    back = answer.loc["shuffled", "task_mean", "last"]
    found = pd.DataFrame({"put back: share of the way back": (back - shuffled) / (clean - shuffled)} | {
        f"ablated at {words}: drop of probability": clean - answer.loc["clean", "mean", where]
        for where, words in (("last", "the last token"), ("all", "every token"))}).T
    larger = found["fv"] > found["induction"]
    larger.iloc[0] &= back["fv"] > answer.at[("shuffled", "mean", "last"), "fv"]
    shown = found[list(KIND_WORDS)].map("{:.3f}".format).rename(columns=names_of(example))
    return shown.assign(**{"it is": larger.map({True: "yes", False: "no"})}).rename_axis(
        index="the FV head's is expected to be the larger", columns=None)


def averages_table(example: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """The FV scores of both heads on the task and over all scoring tasks."""
    task, rows, heads = example["task"].iloc[0], {}, top_head_of_each_kind(scores)
    for kind in KIND_WORDS:
        of = fv_by_task(scores, *heads[kind])
        rows[names_of(example)[kind]] = {
            f"on {task}": f"{of[task]:.4f}", f"mean of {len(of)} tasks": f"{of.mean():.4f}",
            "lowest": f"{of.min():.4f} ({of.idxmin()})", "highest": f"{of.max():.4f} ({of.idxmax()})"}
    n = int(scores.query("score == 'fv' and task == @task")["n_prompts"].iloc[0])
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(f"FV score, {n} prompts per task")
