"""Sentences, table and shaded prompts of the worked example, made from its table and the model's scores."""

import re
from html import escape

import pandas as pd

from icl_lib.example.choice import candidate_tasks, fv_by_task
from icl_lib.figures.common import COLOUR, numbers_link
from icl_lib.figures.example import EXPERIMENTS, HEAD
from icl_lib.kinds import DEFINED_BY, KINDS

_FULL = 0.6  # opacity of the full shade: text on it can be read in light and dark mode
_NAMED = 0.05  # share of attention from which a token's share is written beside it


def heads_of(example: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """The (layer, head) that stands for each kind."""
    rows = example.query("ranking in @KINDS").drop_duplicates("ranking").set_index("ranking")
    return {kind: (int(rows.at[kind, "layer"]), int(rows.at[kind, "head"])) for kind in KINDS}


def names_of(example: pd.DataFrame) -> dict[str, str]:
    """The name of each kind's head: "L20H5"."""
    return {kind: f"L{layer}H{head}" for kind, (layer, head) in heads_of(example).items()}


def heads_sentence(example: pd.DataFrame, scores: pd.DataFrame) -> str:
    """Which two heads, of how many, by which scores; the second highest beside each."""
    names, parts = names_of(example), []
    for kind, score in DEFINED_BY.items():
        best, second = scores[scores["score"] == score].groupby(["layer", "head"])["value"].mean().nlargest(2)
        digits = 3 if kind == "induction" else 4
        parts.append(f"**{names[kind]}** ({best:.{digits}f}, the next one {second:.{digits}f})")
    both = " One head is both here." if names["induction"] == names["fv"] else ""
    return (f"{example['model'].iloc[0]} has {scores['layer'].max() + 1} layers with {scores['head'].max() + 1} heads "
            f"each. Its top induction head, by prefix matching (attention to the token after the earlier copy, 0 to "
            f"1), is {parts[0]}: L is the layer, H the head in it, both counted from 0. Its top FV head, by the FV "
            f"score (the rise of the answer's probability that its output brings to prompts with shuffled labels), is "
            f"{parts[1]}.{both}")


def copying(example: pd.DataFrame, kind: str) -> float:
    """Prefix matching on the repeated words: mean attention (0..1) from the words of the second run, the last left out,
    to the word after the first copy."""
    rows = example.query("metric == 'attention' and prompts == 'repeated' and ranking == @kind")
    last, period = rows["position"].max(), (rows["position"].max() + 1) // 2
    on = rows["to_position"] == rows["position"] - period + 1
    return float(rows[on & rows["position"].between(last - period + 1, last - 1)]["value"].mean())


def copying_sentence(example: pd.DataFrame) -> str:
    """How much each head attends to the word after the first copy."""
    names = names_of(example)
    return (f"In the second run {names['induction']} gives {copying(example, 'induction'):.0%} of its attention to the "
            f"word after the first copy, {names['fv']} {copying(example, 'fv'):.0%} (means over words).")


def choice_sentence(example: pd.DataFrame, scores: pd.DataFrame, accuracy: pd.DataFrame, least: float) -> str:
    """Which task and prompt, by which rule."""
    tasks = candidate_tasks(scores, accuracy, least)
    passed = int(example.loc[example["metric"] == "passed_over", "value"].item())
    return (f"The task is **{tasks['task'].iloc[0]}**: of the {len(tasks)} abstractive scoring tasks (the answer does "
            f"not stand in the query) with an accuracy of at least {least:g}, the one on which "
            f"{names_of(example)['fv']} has the largest FV score ({tasks['fv'].iloc[0]:.3f}; accuracy "
            f"{tasks['accuracy'].iloc[0]:.2f}). The prompt is number {passed + 1} of those drawn: the first with an "
            f"answer of one token that the model gives with right labels and is less sure of with shuffled ones. The "
            f"right answer is `{answer_of(example)}`.")


def answer_of(example: pd.DataFrame) -> str:
    """The right answer's token as text."""
    return example.loc[example["metric"] == "answer_probability", "token"].iloc[0].strip()


def prompt_of(example: pd.DataFrame, kind: str, prompts: str = "clean") -> pd.DataFrame:
    """A prompt token by token: `token`; attention from the last one as `value`; whether it is part of the `label` of a
    demonstration, the `end` of one, and right `after` an earlier copy of the last token."""
    rows = example.query("metric == 'attention' and prompts == @prompts and ranking == @kind")
    rows = rows.sort_values("to_position", ignore_index=True)[["token", "value"]]
    spans = [match.span(1) for match in re.finditer(r"A:([^↵]*)↵", "".join(rows["token"]))]
    label = [any(start < end <= stop for start, stop in spans) for end in rows["token"].str.len().cumsum()]
    ends = [here and not after for here, after in zip(label, [*label[1:], False], strict=True)]
    return rows.assign(label=label, end=ends, after=rows["token"].shift() == rows["token"].iloc[-1])


def shaded_prompts(example: pd.DataFrame) -> str:
    """The prompt with right labels, once for each head, side by side where there is room; see `shaded_prompt`."""
    grid = "display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17em, 100%), 1fr)); gap: 0 2em"
    return (f'<div style="{grid}">'
            f"{''.join(shaded_prompt(example, kind) for kind in reversed(KINDS))}</div>")


def shaded_prompt(example: pd.DataFrame, kind: str) -> str:
    """The prompt with right labels, each token shaded by one head's attention from the last one, as HTML."""
    rows = prompt_of(example, kind)
    full = rows.loc[rows["token"] != "BOS", "value"].max()
    red, green, blue = (int(COLOUR[kind][i : i + 2], 16) for i in (1, 3, 5))
    spans = []
    for row in rows.itertuples():
        share = f"<sub>{100 * row.value:.0f}</sub>" if row.value >= _NAMED else ""
        shade = f"rgba({red}, {green}, {blue}, {_FULL * min(1, row.value / full):.3f})"
        told, text = f"{row.value:.1%} of the attention", escape(row.token).replace("↵", "<br/>")
        share += "<br/>" * (text == "BOS")
        spans.append(f'<span style="background: {shade}" title="{told}">{text}{share}</span>')
    style = ("font-family: monospace; white-space: pre-wrap; line-height: 1.5; -webkit-print-color-adjust: exact; "
             "print-color-adjust: exact")
    caption = f"Attention of the {HEAD[kind]} {names_of(example)[kind]}. Full shade: {full:.0%}."
    return (f'<figure class="shaded-prompt"><div style="{style}">{"".join(spans)}</div>'
            f"<figcaption>{escape(caption)} {numbers_link(rows)}</figcaption></figure>")


def looking_sentence(example: pd.DataFrame) -> str:
    """How each head's attention from the last token is shared out among labels, what copying looks at, and BOS."""
    parts, last = [], prompt_of(example, "fv")["token"].iloc[-1]
    for kind, name in reversed(names_of(example).items()):
        rows = prompt_of(example, kind)
        label, end, after = (rows.loc[rows[of], "value"].sum() for of in ("label", "end", "after"))
        parts.append(f"{name} gives {label:.0%} of its attention to the labels of the demonstrations and {end:.0%} to "
                     f"the last tokens of these, {after:.0%} to the tokens after an earlier `{last}`, "
                     f"{rows.loc[rows['token'] == 'BOS', 'value'].sum():.0%} to the beginning of the text")
    return (f"From the last token, `{last}`: {'; '.join(parts)}. Copying looks at what came after the earlier "
            f"`{last}`, which in this form of prompt is where each label begins; a head that names the task has to see "
            "whole labels, and what they are is known at their last tokens.")


def _outcomes(example: pd.DataFrame, metric: str) -> pd.DataFrame:
    return example[example["metric"] == metric].set_index(["prompts", "replacement", "positions", "ranking"])


def answer_table(example: pd.DataFrame) -> str:
    """One row per experiment: the probability of the right answer and the likeliest token, for each head, as HTML."""
    answer, top, rows = _outcomes(example, "answer_probability"), _outcomes(example, "top_probability"), []
    for experiment, words in EXPERIMENTS.items():
        row = {"experiment": words}
        for kind, name in reversed(names_of(example).items()):
            at = (*experiment, "none" if experiment[1] == "none" else kind)
            row[f"{name} ({HEAD[kind]})"] = f"{answer.at[at, 'value']:.3f}"
            row[f"likeliest, {name}"] = f"{top.at[at, 'token'].strip()} ({top.at[at, 'value']:.3f})"
        rows.append(row)
    return f'<div class="wide" tabindex="0">{pd.DataFrame(rows).to_html(index=False, border=0)}</div>'


def answer_sentences(example: pd.DataFrame) -> list[str]:
    """What shuffling, putting back and ablating do to the right answer, and whether that was expected."""
    answer, top = _outcomes(example, "answer_probability")["value"], _outcomes(example, "top_probability")
    clean, shuffled = answer["clean", "none", "none", "none"], answer["shuffled", "none", "none", "none"]
    names, right = names_of(example), answer_of(example)

    def likeliest(*at: str) -> str:
        return f"`{top.at[at, 'token'].strip()}` ({top.at[at, 'value']:.3f})"

    back = {kind: answer["shuffled", "task_mean", "last", kind] for kind in KINDS}
    share = {kind: (value - shuffled) / (clean - shuffled) for kind, value in back.items()}
    other = answer["shuffled", "mean", "last", "fv"]
    without = {kind: [answer["clean", "mean", where, kind] for where in ("last", "all")] for kind in KINDS}
    more = [f"at {words} (by {induction - fv:.3f})" for words, fv, induction in zip(
        ("the last token", "every token"), without["fv"], without["induction"], strict=True) if fv < induction]
    kept = sum(top.at[("clean", "mean", where, kind), "token"].strip() == right
               for where in ("last", "all") for kind in KINDS)
    return [
        f"**Shuffle.** The probability of `{right}` goes from {clean:.3f} to {shuffled:.3f}; the likeliest token is "
        f"then {likeliest('shuffled', 'none', 'none', 'none')}.",
        f"**Put back.** The output of {names['fv']} takes it to {back['fv']:.3f}, {share['fv']:.1%} of the way back, "
        f"and the likeliest token is {likeliest('shuffled', 'task_mean', 'last', 'fv')}; that of {names['induction']} "
        f"takes it to {back['induction']:.3f}, {share['induction']:.1%} of the way, and the mean of {names['fv']} over "
        f"all tasks to {other:.3f}. Expected is that the first is the largest: it is"
        f"{'' if back['fv'] > max(back['induction'], other) else ' not'}.",
        f"**Ablate.** Without {names['fv']} it is {without['fv'][0]:.3f} (replaced at the last token) and "
        f"{without['fv'][1]:.3f} (at every token), without {names['induction']} {without['induction'][0]:.3f} and "
        f"{without['induction'][1]:.3f}; with both {clean:.3f}. Expected is that it drops further without the FV head: "
        f"it does {' and '.join(more) if more else 'not'}. The model answers rightly in {kept} of these 4.",
    ]


def averages_sentence(example: pd.DataFrame, scores: pd.DataFrame) -> str:
    """The FV scores of both heads on the task and over all scoring tasks."""
    task, parts = example["task"].iloc[0], []
    for kind, (layer, head) in reversed(heads_of(example).items()):
        of = fv_by_task(scores, layer, head)
        parts.append(f"{names_of(example)[kind]} has {of[task]:.4f} on {task} and {of.mean():.4f} over all {len(of)} "
                     f"scoring tasks ({of.min():.4f} on {of.idxmin()} to {of.max():.4f} on {of.idxmax()})")
    n = int(scores.query("score == 'fv' and task == @task")["n_prompts"].iloc[0])
    return f"FV scores, means over {n} prompts per task: {'; '.join(parts)}."
