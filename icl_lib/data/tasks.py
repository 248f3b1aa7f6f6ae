"""Tasks and prompts: splitting a task's pairs, drawing and writing few-shot prompts in the paper's template."""

import hashlib
import json
import operator
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field, StrictStr

from icl_lib.names import WORDS

SPLITS = WORDS["splits"]
_NonEmpty = Annotated[StrictStr, Field(min_length=1)]


@dataclass(frozen=True)
class Prompt:
    """Text up to the last answer's colon, beginning with the BOS text, and the answer with its leading space."""

    text: _NonEmpty
    answer: _NonEmpty


@dataclass(frozen=True)
class TaskPrompts:
    """One task's prompts: `clean`, and `shuffled` with the demonstrations' labels permuted among themselves."""

    clean: list[Prompt]
    shuffled: list[Prompt]


@dataclass(frozen=True)
class Template:
    """How a prompt is written after its BOS text: first an instruction, then each demonstration, then the query."""

    instruction: str = ""
    demonstration: str = "Q: {}\nA: {}\n\n"
    query: str = "Q: {}\nA:"


@dataclass(frozen=True)
class Task:
    """A task's (input, output) pairs in file order; the last `held_out` of them are no training pairs.

    `split`: one of `SPLITS`, what the task is used for.
    `balanced`: each label as often among queries, and among demonstrations as far as their number allows.
    """

    name: str
    type: str
    split: str
    pairs: list[tuple[str, str]]
    held_out: int = 0
    inputs: str = ""
    labels: str = ""
    relation: str = ""
    siblings: list[str] = field(default_factory=list)
    faults: tuple[str, ...] = ()
    balanced: bool = False
    template: Template = Template()

    @property
    def training_pairs(self) -> list[tuple[str, str]]:
        return self.pairs[: len(self.pairs) - self.held_out]

    @property
    def query_pairs(self) -> list[tuple[str, str]]:
        """The pairs that queries are drawn from: the held-out ones where there are any, else all (known facts)."""
        return self.pairs[len(self.pairs) - self.held_out :] if self.held_out else self.pairs

    @property
    def label_names(self) -> list[str]:
        """The different labels of the pairs, in order of names."""
        return sorted({label for _, label in self.pairs})

    @property
    def floor(self) -> float:
        """Accuracy of always giving the commonest label, 0..1."""
        labels = [label for _, label in self.query_pairs]
        return max(labels.count(label) for label in set(labels)) / len(labels)


def tasks_sum(tasks: Mapping[str, Task]) -> str:
    """The SHA-256 sum over the tasks' names, types, splits and pairs: what prompts are drawn from."""
    content = [(task.name, task.type, task.split, task.held_out, task.pairs, *_form(task)) for task in tasks.values()]
    return hashlib.sha256(json.dumps(sorted(content), ensure_ascii=False).encode()).hexdigest()


def _form(task: Task) -> tuple:
    return (task.balanced, *astuple(task.template)) if task.balanced or task.template != Template() else ()


def bos_text(model: Any) -> str:
    """The text that prompts begin with, as the paper's code puts it before each (section 2).

    The BOS policy is one for all models: this text is part of the prompt's text, prompts are
    tokenised without adding special tokens. Raises ValueError if the tokenizer has no BOS.
    """
    if model.tokenizer.bos_token is None:
        raise ValueError(f"the tokenizer of {model.cfg.model_name} has no BOS token")
    return model.tokenizer.bos_token


def write_prompt(demonstrations: list[tuple[str, str]], query: str, bos: str, template: Template = Template()) -> str:
    """The paper's template: BOS, "Q:" input, "A:" output, a blank line between, ending at the query's "A:"."""
    shown = "".join(template.demonstration.format(*pair) for pair in demonstrations)
    return f"{bos}{template.instruction}{shown}{template.query.format(query)}"


def draw_prompts(
    task: Task, *, n_prompts: int, n_shots: int, bos: str, seed: int, any_permutation: bool = False
) -> TaskPrompts:
    """Clean prompts of one task and the same prompts with labels shuffled among the demonstrations.

    A query is drawn from the task's query pairs with replacement over prompts, `n_shots` demonstrations from its
    training pairs without the query's input (fewer where the task has fewer pairs). The shuffle is a permutation
    that leaves no label in its place where the labels allow it, so that a shuffled prompt is never a clean one,
    or `any_permutation` as in the released code (F8) and in a balanced task, where it would swap the labels. The same
    task and seed give the same prompts, whatever else is drawn. Raises ValueError where most shuffled prompts would
    equal their clean ones, because the task's labels are too much alike.
    """
    # crc32, not hash(): Python salts the hash of a string anew in every process.
    rng = np.random.default_rng([seed, n_shots, zlib.crc32(task.name.encode()), *[1] * any_permutation])
    clean, shuffled = [], []
    for i in range(n_prompts):
        queries = task.query_pairs
        if task.balanced:
            queries = [pair for pair in queries if pair[1] == task.label_names[i % len(task.label_names)]]
        query, answer = queries[rng.integers(len(queries))]
        pool = [pair for pair in task.training_pairs if pair[0] != query]
        chosen = rng.permutation(len(pool)).tolist()
        chosen = _balanced(chosen, [pool[i][1] for i in chosen], n_shots) if task.balanced else chosen[:n_shots]
        demonstrations = [pool[i] for i in chosen]
        inputs, labels = [q for q, _ in demonstrations], [label for _, label in demonstrations]
        n_draws = 1 if any_permutation or task.balanced else 100
        moved = list(zip(inputs, _moved_labels(labels, rng, n_draws), strict=True))
        for prompts, shown in ((clean, demonstrations), (shuffled, moved)):
            prompts.append(Prompt(write_prompt(shown, query, bos, task.template), f" {answer}"))
    refuse_unshuffled(task, clean, shuffled, n_shots)
    return TaskPrompts(clean, shuffled)


def _balanced(order: list[int], labels: list[str], n: int) -> list[int]:
    """The first `n` of an order with each label as often as the others, or once more."""
    times = pd.Series(labels).groupby(labels).cumcount()
    return [order[i] for i in sorted(np.argsort(times, kind="stable")[:n])]


def refuse_unshuffled(task: Task, clean: list[Prompt], shuffled: list[Prompt], n_shots: int) -> None:
    """Raise ValueError where most shuffled prompts are their clean ones, and not by the chance of few prompts.

    What counts is the task: demonstrations drawn from it have one label all in more than three quarters of prompts.
    """
    same, pairs = sum(map(operator.eq, clean, shuffled)), task.training_pairs
    counts = Counter(label for _, label in pairs)
    alike = sum((n / len(pairs)) ** min(n_shots, len(pairs)) for n in counts.values())
    if n_shots > 1 and same and alike > 0.75:
        labels = sorted(counts)
        raise ValueError(f"task {task.name!r}: {same} of {len(clean)} shuffled prompts equal their clean ones; "
                         f"{len(task.training_pairs)} pairs have {len(labels)} different labels, such as {labels[:2]}; "
                         "leave the task out or give it more")


def _moved_labels(labels: list[str], rng: np.random.Generator, n_draws: int) -> list[str]:
    """A permutation with as few labels in their old place as the draws find, of 100 none where that is possible."""
    if len(labels) < 2:
        return labels
    best, fewest = labels, len(labels) + 1
    for _ in range(n_draws):
        draw = [labels[i] for i in rng.permutation(len(labels))]
        kept = sum(map(operator.eq, labels, draw))
        if kept < fewest:
            best, fewest = draw, kept
        if fewest == 0:
            break
    return best
