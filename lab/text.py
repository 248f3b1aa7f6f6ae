"""What lab models read: few-shot prompts, made-up glossaries, and documents with repeats, as token ids.

One seeded stream of batches. A row carries a loss weight per token: 1 for what the context determines (labels,
recurring entries, repeated text), less or 0 for what is drawn at random (inputs, first mentions).
"""

from dataclasses import dataclass

import numpy as np
import torch

from icl_lib.data.tasks import Task
from lab.world import words

BOS = "<|endoftext|>"
FIRST_QUESTION, QUESTION, ANSWER = "Q:", "\n\nQ:", "\nA:"

SEPARATOR_WEIGHT = 0.3  # the line that ends an answer: easy, but a model must know when its answer is complete
FIRST_MENTION_WEIGHT = 0.2  # document text that the context does not determine


@dataclass(frozen=True)
class Rows:
    """Rows of one kind of text: token ids `[batch, pos]`, the loss weight of predicting each (0 for BOS and padding).

    `attention`, if given, is added to the attention logits of every head, `[batch, query, key]`.
    """

    kind: str
    tokens: np.ndarray
    weights: np.ndarray
    attention: np.ndarray | None = None


def story(world: dict, rng: np.random.Generator, *, repeats: float = 1.0) -> str:
    """One sentence-wise text: a few names and things recur, and passages come again word for word.

    `repeats`: the share of such passages that stay, the others are new sentences.
    """
    documents, categories = world["documents"], world["categories"]
    names = [str(n) for n in rng.choice(documents["names"], 4, replace=False)]
    places = [str(p) for p in rng.choice(documents["places"], 2, replace=False)]
    nouns = world["tables"]["nouns"]["rows"]
    things = [nouns[i] for i in rng.choice(len(nouns), 3, replace=False)]
    animals = [str(a) for a in rng.choice(categories["animal"], 2, replace=False)]
    pick = lambda options: str(options[rng.integers(len(options))])  # noqa: E731
    adjectives = [row[0] for row in world["tables"]["adjectives"]["rows"]]
    sentences: list[str] = []
    while len(sentences) < 70:
        if len(sentences) > 6 and rng.random() < 0.25 * repeats:
            start = int(rng.integers(len(sentences) - 3))
            sentences += sentences[start : start + int(rng.integers(1, 4))]
            continue
        name, other = (names[i] for i in rng.choice(4, 2, replace=False))
        thing = things[rng.integers(3)]
        sentences.append(pick(documents["templates"]).format(
            name=name, other=other, place=pick(places), thing=thing[0], things=thing[1],
            animal=pick(animals), color=pick(categories["color"]), instrument=pick(categories["instrument"]),
            adjective=pick(adjectives), number=pick(world["orders"]["numbers"]["words"][1:]),
            weekday=pick(world["orders"]["weekdays"]["words"]),
            month=pick(world["orders"]["months"]["words"]),
        ))
    return " ".join(sentences)


class Generator:
    """Draws rows of every kind from one tokenizer and one set of tasks; `rng` is always an argument.

    `repeats`: the share of repeated segments and passages in listings and documents that stay.
    """

    def __init__(self, tokenizer, tasks: dict[str, Task], *, repeats: float = 1.0):
        self.repeats = repeats
        self.tokenizer = tokenizer
        self.bos = tokenizer.bos_token_id
        self.world = words()
        self.first, self.question, self.answer = (self.ids(t) for t in (FIRST_QUESTION, QUESTION, ANSWER))
        self.groups = self.task_groups(tasks)
        self.pairs = {
            name: [(self.ids(" " + a), self.ids(" " + b)) for a, b in task.training_pairs]
            for names in self.groups.values() for name in names for task in [tasks[name]]
        }
        single = {w for o in self.world["orders"].values() for w in o["words"]}
        single |= {w for c in self.world["categories"].values() for w in c}
        self.entries = [self.ids(" " + w) for w in sorted(single)]
        self.ordinary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)

    def ids(self, text: str) -> np.ndarray:
        return np.array(self.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)

    @staticmethod
    def task_groups(tasks: dict[str, Task]) -> dict[str, list[str]]:
        """Trained tasks in three groups that are drawn with weights of their own: orders, look-ups, lists."""
        groups = {"orders": [], "lookups": [], "lists": []}
        for name, task in sorted(tasks.items()):
            if task.split != "unseen":
                order = task.type == "abstractive" and task.inputs == task.labels
                groups["lists" if task.type == "extractive" else "orders" if order else "lookups"].append(name)
        return groups

    def questions(self, pairs: list[tuple[np.ndarray, np.ndarray]], counted: list[bool]):
        """One prompt row; the label of a pair has weight 1 where `counted`."""
        ids, weights = [np.array([self.bos])], [np.zeros(1)]
        for i, ((question, label), count) in enumerate(zip(pairs, counted, strict=True)):
            opening = self.question if i else self.first
            ids += [opening, question, self.answer, label]
            weights += [
                np.full(len(opening), SEPARATOR_WEIGHT if i else 0.0),
                np.zeros(len(question) + len(self.answer)),
                np.full(len(label), float(count)),
            ]
        return np.concatenate(ids), np.concatenate(weights)

    def few_shot(self, rng: np.random.Generator, group: str, n_pairs: int, uncounted: int):
        """A prompt of one task: `n_pairs` different pairs in random order, all labels but the first counted."""
        names = self.groups[group]
        pairs = self.pairs[names[rng.integers(len(names))]]
        chosen = rng.permutation(len(pairs))[:n_pairs]
        return self.questions([pairs[i] for i in chosen], [i >= uncounted for i in range(len(chosen))])

    def glossary(self, rng: np.random.Generator, n_pairs: int):
        """A prompt over a mapping made up for it, in which inputs recur; only recurring entries count."""
        n_entries = int(rng.integers(3, max(4, n_pairs // 2)))
        inputs = rng.choice(len(self.entries), n_entries, replace=False)
        labels = rng.choice(len(self.entries), n_entries, replace=False)
        drawn = rng.integers(n_entries, size=n_pairs)
        seen, counted = set(), []
        for entry in drawn:
            counted.append(entry in seen)
            seen.add(entry)
        return self.questions([(self.entries[inputs[e]], self.entries[labels[e]]) for e in drawn], counted)

    def listing(self, rng: np.random.Generator, length: int, *, repeats: float = 1.0):
        """Random segments that come again at once; only the repeats count. Three rows in four are of whole words.

        Of the copies a share of `repeats` stays, in place of the others stand new random tokens, which do not count.
        """
        ids, weights = [np.array([self.bos])], [np.zeros(1)]
        alphabet = self.ordinary if rng.random() < 0.25 else np.concatenate(self.entries)
        new, = rng.spawn(1)  # leaves the stream of what stays alone
        total = 1
        while total < length:
            segment = rng.choice(alphabet, int(rng.integers(4, 50)))
            copies = int(rng.integers(2, 5))
            kept = [True] + [new.random() < repeats for _ in range(copies - 1)]
            ids += [segment if keep else new.choice(alphabet, len(segment)) for keep in kept]
            weights += [np.full(len(segment), float(keep and i > 0)) for i, keep in enumerate(kept)]
            total += copies * len(segment)
        return np.concatenate(ids)[:length], np.concatenate(weights)[:length]

    def document(self, rng: np.random.Generator, length: int):
        """BOS and a story cut to `length` ids; every token counts a little."""
        ids = np.concatenate([[self.bos], self.ids(story(self.world, rng, repeats=self.repeats))])[:length]
        weights = np.full(len(ids), FIRST_MENTION_WEIGHT)
        weights[0] = 0.0
        return ids, weights

    def batch(self, rng: np.random.Generator, mixture: dict) -> list[Rows]:
        """One optimiser step's rows: for each kind in `mixture` rows of one length.

        `mixture`: {kind: {rows, length}}, for few-shot kinds also `uncounted`, how many first labels have no loss.
        """
        made = []
        for kind, shape in sorted(mixture.items()):  # the order of a file's keys must not matter
            n, length = shape["rows"], shape["length"]
            if kind in self.groups:
                rows = [self.few_shot(rng, kind, length // 4, shape.get("uncounted", 0)) for _ in range(n)]
            elif kind == "glossary":
                rows = [self.glossary(rng, length // 4) for _ in range(n)]
            elif kind == "listings":
                rows = [self.listing(rng, length, repeats=self.repeats) for _ in range(n)]
            else:
                rows = [self.document(rng, length) for _ in range(n)]
            made.append(self.rows(rows, length, kind))
        return made

    def rows(self, rows: list[tuple[np.ndarray, np.ndarray]], length: int, kind: str) -> Rows:
        """(ids, weights) rows cut or padded to `length`; padding is BOS with weight 0, which causality hides."""
        tokens = np.full((len(rows), length), self.bos, dtype=np.int64)
        weights = np.zeros((len(rows), length), dtype=np.float32)
        for i, (ids, weight) in enumerate(rows):
            n = min(len(ids), length)
            tokens[i, :n], weights[i, :n] = ids[:n], weight[:n]
        return Rows(kind, tokens, weights)


def lab_documents(tokenizer, *, n_documents: int, length: int, seed: int) -> torch.Tensor:
    """Fresh stories for the token loss: ids `[document, pos]`, BOS first, all of `length` tokens.

    Never seen in training: the stream of `seed` is another than any training step's.
    """
    rng = np.random.default_rng([seed, n_documents, length, 1])
    world, rows = words(), []
    while len(rows) < n_documents:
        ids = [tokenizer.bos_token_id, *tokenizer(story(world, rng), add_special_tokens=False)["input_ids"]]
        if len(ids) < length:
            raise ValueError(f"document_length {length}: lab documents have only {len(ids)} tokens")
        rows.append(ids[:length])
    return torch.tensor(rows)
