"""Abstract patterns and category pairs in the manner of Crosbie & Shutova (arXiv 2407.07011), generated here.

Whether a sequence has a pattern is said by labels without meaning, so that only the demonstrations tell which label
stands for what. Sequences of letters: a pattern against as many different letters. Pairs of words: by their categories.
Tasks for evaluation and for scoring are made of different letters and words.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from string import ascii_uppercase

import numpy as np
import yaml

from icl_lib.data.tasks import Task, Template

PER_LABEL = 60  # sequences of letters
LABELS = ("Foo", "Bar", "Mur", "Res")
# What comes of the different letters of a sequence: the pattern as places among them, and how many there are.
LETTERS = {"repetition": (0, 1, 0, 1), "recursion": (0, 1, 1, 1), "centre-embedding": (0, 1, 2, 1, 0)}
_TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
WORDS, PAIRS = _TABLE["words"], _TABLE["pairs"]


def pattern_tasks(letters: Sequence[str] = ascii_uppercase) -> dict[str, Task]:
    """The six tasks for evaluation, and each again for scoring ("repetition-scoring"), in order of names.

    Labels are as frequent among demonstrations and among queries (`Task.balanced`); a third of the pairs are queries
    alone. `letters`: one half for evaluation, the other for scoring.
    """
    half = len(letters) // 2
    tasks = {}
    for split, own, words in (("evaluation", letters[:half], slice(0, None, 2)),
                              ("scoring", letters[half:], slice(1, None, 2))):
        ending = "" if split == "evaluation" else "-scoring"
        for name, pattern in LETTERS.items():
            different = range(len(pattern))
            made = [_sequences(own, places, PER_LABEL, seed) for seed, places in enumerate((pattern, different))]
            tasks[name + ending] = _task(name + ending, split, made, "letters")
        for name, kinds in PAIRS.items():
            every = [list(product(*(WORDS[kind].split()[words] for kind in of_label))) for of_label in kinds]
            made = [[" ".join(pairs[i]) for i in np.random.default_rng(0).permutation(len(pairs))] for pairs in every]
            tasks[name + ending] = _task(name + ending, split, made, "words")
    return dict(sorted(tasks.items()))


def _sequences(letters: Sequence[str], places: Sequence[int], n: int, seed: int) -> list[str]:
    """Different sequences in which letters drawn at random stand at their places."""
    rng, found = np.random.default_rng(seed), {}
    while len(found) < n:
        drawn = rng.permutation(list(letters))
        found[" ".join(drawn[place] for place in places)] = None
    return list(found)


def _task(name: str, split: str, by_label: list[list[str]], inputs: str) -> Task:
    """The labels in turn, so that the held-out last third has as many of each."""
    labels = LABELS[: len(by_label)]
    pairs = [pair for row in zip(*by_label, strict=True) for pair in zip(row, labels, strict=True)]
    asked = f"{', '.join(labels[:-1])} or {labels[-1]}"
    return Task(name, "abstractive", split, pairs, len(by_label[0]) // 3 * len(labels), inputs, "/".join(labels),
                balanced=True, template=Template(f"Say of each sequence whether it is {asked}.\n\n", "{}: {}\n", "{}:"))
