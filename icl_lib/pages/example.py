"""Tables, sentences and shaded prompts of the worked example, made from its table and the model's scores."""

import re
from collections.abc import Iterable
from html import escape

import pandas as pd

from icl_lib.example.choice import candidate_tasks, fv_by_task, top_head_of_each_kind
from icl_lib.figures.common import COLOUR, numbers_link
from icl_lib.figures.example import EXPERIMENTS, HEAD, head_name, outcomes
from icl_lib.kinds import DEFINED_BY, KINDS

_ORDER = tuple(reversed(KINDS))  # FV heads first
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
    passed = int(example.loc[example["metric"] == "passed_over", "value"].item())
    answer = example.loc[example["metric"] == "answer_probability", "token"].iloc[0].strip()
    return (f"The task is **{tasks['task'].iloc[0]}**: of the {len(tasks)} abstractive scoring tasks (the answer does "
            f"not stand in the query) with an accuracy of at least {least:g}, the one with the largest score of this "
            f"FV head ({tasks['fv'].iloc[0]:.3f}; accuracy {tasks['accuracy'].iloc[0]:.2f}). The prompt is number "
            f"{passed + 1} of those drawn: the first with an answer of one token that the model gives with right "
            f"labels and is less sure of with shuffled ones. The right answer is `{answer}`.")


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
    return _beside(_shaded_prompt(prompt_of(example, kind), kind, f"Attention of {names[kind]}") for kind in _ORDER)


def sampled_prompts(samples: pd.DataFrame) -> str:
    """The prompt with right and with shuffled labels of a table `samples`, as HTML."""
    of_labels = {words: samples[samples["prompts"] == words.lower()] for words in ("Clean", "Shuffled")}
    return _beside(_shaded_prompt(
        rows.sort_values("to_position"), "induction", f"{words}. Attention of {head_name(rows)} from the last token")
        for words, rows in of_labels.items())


def _beside(parts: Iterable[str]) -> str:
    grid = "display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17em, 100%), 1fr)); gap: 0 2em"
    return f'<div style="{grid}">{"".join(parts)}</div>'


def _shaded_prompt(rows: pd.DataFrame, kind: str, words: str) -> str:
    """A prompt, each `token` shaded by a head's attention from the last one, `value`, in a kind's colour, as HTML."""
    full = rows.loc[rows["token"] != "BOS", "value"].max()
    red, green, blue = (int(COLOUR[kind][i : i + 2], 16) for i in (1, 3, 5))
    spans = []
    for row in rows.itertuples():
        share = f"<sub>{100 * row.value:.0f}</sub>" if row.value >= _NAMED else ""
        shade = f"rgba({red}, {green}, {blue}, {_FULL * min(1, row.value / full):.3f})"
        told, text = f"{row.value:.1%} of the attention", escape(row.token).replace("↵", "<br/>")
        share += "<br/>" * (text == "BOS")
        spans.append(f'<span style="background: {shade}" title="{told}">{text}{share}</span>')
    style = ("white-space: pre-wrap; line-height: 1.5; margin: 0; padding: 0; border: 0; background: none; "
             "color: inherit; font-size: inherit; overflow: visible; -webkit-print-color-adjust: exact; "
             "print-color-adjust: exact")
    return (f'<figure class="shaded-prompt"><pre style="{style}">{"".join(spans)}</pre>'
            f"<figcaption>{escape(words)}. Full shade: {full:.0%}. {numbers_link(rows)}</figcaption></figure>")


def looking_table(example: pd.DataFrame) -> pd.DataFrame:
    """How each head's attention from the last token is shared out among labels, what copying looks at, and BOS."""
    rows, names = {}, names_of(example)
    for kind in _ORDER:
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
        row = {"experiment": words}
        for kind in _ORDER:
            at, name = (*experiment, "none" if experiment[1] == "none" else kind), names[kind]
            row[name] = f"{answer.at[at, 'value']:.3f}"
            row[f"likeliest, {name.split()[0]}"] = f"{top.at[at, 'token'].strip()} ({top.at[at, 'value']:.3f})"
        rows.append(row)
    return f'<div class="wide" tabindex="0">{pd.DataFrame(rows).to_html(index=False, border=0)}</div>'


def expected_table(example: pd.DataFrame) -> pd.DataFrame:
    """What was expected of the experiments, each head's number, and whether the FV head's is the larger.

    Way back: the probability that the head put back regains, as a share of what shuffling cost; to be larger than the
    other head's and than the FV head's mean over all tasks.
    """
    answer = outcomes(example, "answer_probability")["value"]
    clean, shuffled = answer["clean", "none", "none", "none"], answer["shuffled", "none", "none", "none"]
    back = {kind: answer["shuffled", "task_mean", "last", kind] for kind in _ORDER}
    share = {kind: (value - shuffled) / (clean - shuffled) for kind, value in back.items()}
    found = [("put back: share of the way back", share,
              back["fv"] > max(back["induction"], answer["shuffled", "mean", "last", "fv"]))]
    for where, words in (("last", "the last token"), ("all", "every token")):
        drop = {kind: clean - answer["clean", "mean", where, kind] for kind in _ORDER}
        found.append((f"ablated at {words}: drop of probability", drop, drop["fv"] > drop["induction"]))
    names = names_of(example)
    rows = {words: {names[kind]: f"{value:.3f}" for kind, value in of.items()} | {"it is": "yes" if larger else "no"}
            for words, of, larger in found}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("the FV head's is expected to be the larger")


def averages_table(example: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """The FV scores of both heads on the task and over all scoring tasks."""
    task, rows, heads = example["task"].iloc[0], {}, top_head_of_each_kind(scores)
    for kind in _ORDER:
        of = fv_by_task(scores, *heads[kind])
        rows[names_of(example)[kind]] = {
            f"on {task}": f"{of[task]:.4f}", f"mean of {len(of)} tasks": f"{of.mean():.4f}",
            "lowest": f"{of.min():.4f} ({of.idxmin()})", "highest": f"{of.max():.4f} ({of.idxmax()})"}
    n = int(scores.query("score == 'fv' and task == @task")["n_prompts"].iloc[0])
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(f"FV score, {n} prompts per task")
