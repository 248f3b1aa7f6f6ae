"""Tasks and prompts: reading task files, splitting their pairs, writing few-shot prompts in the paper's template."""

import hashlib
import json
import math
import operator
import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import AfterValidator, BaseModel, Field, StrictInt, StrictStr, TypeAdapter, ValidationError

from icl_lib.names import refuse_unknown

LAB_TASKS = Path(__file__).parents[2] / "lab" / "world" / "tasks"
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


def read_json(path: str | Path, form: Any, *, parse_float: Callable[[str], Any] = float) -> Any:
    """The contents of a JSON file as the type `form`; a one-line `ValueError` names the file and the place.

    `parse_float` gets the digits of numbers with a point. Raises FileNotFoundError for a missing file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}; give the path of a JSON file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_digits, parse_float=parse_float)
        json.dumps(content, ensure_ascii=False).encode()  # half of a surrogate pair is text that no tokenizer takes
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of numbers and depths without measure
        raise ValueError(f"{path} is not valid JSON ({error}); mend or download the file again") from None
    try:
        return TypeAdapter(form).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{path}: {list(first['loc'])}: {first['msg']}, found {first['input']!r:.100}") from None


def _digits(number: str) -> str:
    if not math.isfinite(float(number)):
        raise ValueError(f"{number} is no number of JSON")
    return number


def read_prompts(path: str | Path) -> dict[str, TaskPrompts]:
    """Prompts of several tasks from a file `{task: {"clean": [{"text", "answer"}], "shuffled": [...]}}`.

    Errors as in `read_json`; texts and answers must not be empty.
    """
    return read_json(path, Annotated[dict[str, TaskPrompts], Field(min_length=1)])


@dataclass(frozen=True)
class Template:
    """How a prompt is written after its BOS text: first an instruction, then each demonstration, then the query."""

    instruction: str = ""
    demonstration: str = "Q: {}\nA: {}\n\n"
    query: str = "Q: {}\nA:"


PAPER_TEMPLATE = Template()


@dataclass(frozen=True)
class Task:
    """A task's (input, output) pairs in file order; the last `held_out` of them are no training pairs.

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
    template: Template = PAPER_TEMPLATE

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


def _not_blank(field: str | int) -> str:
    if not str(field).strip():
        raise ValueError("an empty field")
    return str(field)


class _Pair(BaseModel):
    input: Annotated[StrictStr | StrictInt, AfterValidator(_not_blank)]
    output: Annotated[StrictStr | StrictInt, AfterValidator(_not_blank)]


class _Card(BaseModel):
    """What `cards.json` says of a task."""

    type: Literal["abstractive", "extractive"]
    split: Literal["scoring", "evaluation", "training", "unseen"]
    inputs: StrictStr
    labels: StrictStr
    relation: StrictStr
    held_out: Annotated[StrictInt, Field(ge=0)]


_Cards = Annotated[dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")], _Card], Field(min_length=1)]


def read_pairs(path: str | Path) -> list[tuple[str, str]]:
    """(input, output) pairs of one task file: a list of {"input", "output"}; numbers are read as their digits."""
    pairs = read_json(path, Annotated[list[_Pair], Field(min_length=1)], parse_float=_digits)
    return [(pair.input, pair.output) for pair in pairs]


def read_tasks(source: str | Path = LAB_TASKS) -> dict[str, Task]:
    """All tasks of a source, in order of names.

    "lab" is the lab world; "upstream" and "upstream:released" are the paper's task files under two splits
    (`icl_lib.data.upstream.upstream_tasks`); "patterns" is generated (`icl_lib.data.patterns`); else a folder
    `<type>/<task>.json` with the cards of `cards.json` beside it.
    Names in brackets choose some of a source: "lab[antonym,country-capital]".
    """
    if chosen := re.fullmatch(r"(.+)\[([^\[\]]+)\]", str(source)):
        return select_tasks(read_tasks(chosen[1]), [name.strip() for name in chosen[2].split(",")])
    if str(source).startswith("upstream"):
        from icl_lib.data.upstream import upstream_tasks

        return upstream_tasks(str(source))
    if source == "patterns":
        from icl_lib.data.patterns import pattern_tasks

        return pattern_tasks()
    folder = LAB_TASKS if source == "lab" else Path(source)
    cards = read_json(folder.parent / "cards.json", _Cards)
    tasks = {}
    for name, card in sorted(cards.items()):
        pairs = read_pairs(folder / card.type / f"{name}.json")
        if card.held_out >= len(pairs):
            raise ValueError(f"{folder}: task {name!r} holds out {card.held_out} of {len(pairs)} pairs")
        siblings = [other for other, its in cards.items() if (its.inputs, its.labels) == (card.inputs, card.labels)]
        tasks[name] = Task(name, pairs=pairs, siblings=siblings, **card.model_dump())
    return tasks


def tasks_sum(tasks: Mapping[str, Task]) -> str:
    """The SHA-256 sum over the tasks' names, types, splits and pairs: what prompts are drawn from."""
    content = [(task.name, task.type, task.split, task.held_out, task.pairs, *_form(task)) for task in tasks.values()]
    return hashlib.sha256(json.dumps(sorted(content), ensure_ascii=False).encode()).hexdigest()


def _form(task: Task) -> tuple:
    return (task.balanced, *astuple(task.template)) if task.balanced or task.template != PAPER_TEMPLATE else ()


def select_tasks(tasks: dict[str, Task], names: list[str]) -> dict[str, Task]:
    """The named tasks; an unknown name is refused with the nearest valid ones."""
    for name in names:
        refuse_unknown("task", name, tasks)
    return {name: tasks[name] for name in names}


def write_prompt(
    demonstrations: list[tuple[str, str]], query: str, bos: str, template: Template = PAPER_TEMPLATE
) -> str:
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
