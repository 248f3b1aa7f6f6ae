"""The lab's world: the words and facts of `words.json`, and the in-context tasks made from them.

`python -m lab.world` writes one file per task under `lab/world/tasks/` in the format of the paper's task
files (a list of {"input", "output"}) and a card for each in `cards.json`. Everything else reads those files.
"""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
TASKS = FOLDER / "tasks"
CARDS = FOLDER / "cards.json"

LISTS_PER_TASK = 400
HELD_OUT_LISTS = 120  # the last ones of each extractive file, never trained on

# Orders whose tasks the FV score is averaged over. The tasks of the other orders are kept for evaluation,
# so that scoring and evaluation share no pair (in the paper's own split they do: A19 of the method notes).
SCORING_ORDERS = {"letters", "numbers", "months", "greek_letters", "elements"}

# relation -> how many places it moves along an order
SHIFTS = {"next": 1, "previous": -1, "second_next": 2, "same": 0}
# Tasks of two relations, one for the first half of the order and one for the second: no single pair tells which task
# it is, so that accuracy has to rise with demonstrations even for a model that reads every pair right.
HALVES = [
    ("next", "previous"), ("previous", "next"), ("next", "same"), ("same", "next"),
    ("previous", "second_next"), ("second_next", "previous"), ("same", "second_next"), ("second_next", "same"),
]  # fmt: skip
# (order, relation) that training never sees
UNSEEN_SHIFTS = {("hebrew_letters", "second_next"), ("zodiac_signs", "second_next")}

# (task, source order, target order, number of aligned items, split)
ALIGNED = [
    ("letter-spelling_word", "letters", "spelling_words", 26, "evaluation"),
    ("spelling_word-letter", "spelling_words", "letters", 26, "evaluation"),
    ("number-ordinal", "numbers", "ordinals", 20, "evaluation"),
    ("ordinal-number", "ordinals", "numbers", 20, "evaluation"),
    ("number-element", "numbers", "elements", 20, "scoring"),
    ("element-number", "elements", "numbers", 20, "scoring"),
    ("letter-number", "letters", "numbers", 20, "scoring"),
    ("number-letter", "numbers", "letters", 20, "scoring"),
    ("month-number", "months", "numbers", 12, "scoring"),
    ("number-month", "numbers", "months", 12, "scoring"),
]

# (task, table, source column, target column, split)
LOOKUPS = [
    ("country-capital", "countries", "country", "capital", "scoring"),
    ("capital-country", "countries", "capital", "country", "scoring"),
    ("country-continent", "countries", "country", "continent", "scoring"),
    ("capital-continent", "countries", "capital", "continent", "scoring"),
    ("english-french", "translations", "english", "french", "evaluation"),
    ("english-spanish", "translations", "english", "spanish", "evaluation"),
    ("english-german", "translations", "english", "german", "evaluation"),
    ("french-english", "translations", "french", "english", "evaluation"),
    ("present-past", "verbs", "base", "past", "scoring"),
    ("past-present", "verbs", "past", "base", "scoring"),
    ("present-gerund", "verbs", "base", "gerund", "scoring"),
    ("singular-plural", "nouns", "singular", "plural", "evaluation"),
    ("plural-singular", "nouns", "plural", "singular", "evaluation"),
    ("adjective-comparative", "adjectives", "base", "comparative", "scoring"),
    ("adjective-superlative", "adjectives", "base", "superlative", "scoring"),
    ("antonym", "opposites", "one", "other", "evaluation"),
]

# (task, how many words a list has, which place is picked, split)
POSITIONS = [
    ("choose_first_of_3", 3, 0, "scoring"),
    ("choose_middle_of_3", 3, 1, "scoring"),
    ("choose_last_of_3", 3, 2, "scoring"),
    ("choose_first_of_5", 5, 0, "evaluation"),
    ("choose_last_of_5", 5, 4, "evaluation"),
    ("choose_first_of_4", 4, 0, "unseen"),
    ("choose_last_of_4", 4, 3, "unseen"),
]

# (picked category, category of the two other words, split)
CATEGORY_PICKS = [
    ("animal", "color", "scoring"),
    ("color", "animal", "scoring"),
    ("fruit", "animal", "scoring"),
    ("animal", "fruit", "scoring"),
    ("color", "tool", "evaluation"),
    ("tool", "color", "evaluation"),
    ("instrument", "tool", "evaluation"),
    ("fruit", "instrument", "evaluation"),
    ("fruit", "tool", "unseen"),
    ("tool", "animal", "unseen"),
]


def words() -> dict:
    """The contents of `words.json`: orders, tables, categories, and what documents are made of."""
    return json.loads((FOLDER / "words.json").read_text(encoding="utf-8"))


def shifted(order: list[str], ring: bool, by: int) -> list[tuple[str, str]]:
    """Pairs (word, the word `by` places further); an order that is no ring has no pair across its ends."""
    n = len(order)
    return [(order[i], order[(i + by) % n]) for i in range(n) if ring or 0 <= i + by < n]


def halves(order: list[str], ring: bool, first: int, second: int) -> list[tuple[str, str]]:
    """Pairs shifted by `first` where the input is in the order's first half, by `second` where it is in the second."""
    early = set(order[: len(order) // 2])
    pairs = [pair for pair in shifted(order, ring, first) if pair[0] in early]
    return pairs + [pair for pair in shifted(order, ring, second) if pair[0] not in early]


def abstractive_tasks(world: dict) -> dict[str, dict]:
    """Tasks whose answer is not in the query: shifts along orders, aligned orders, table look-ups, words."""
    tasks = {}

    def add(name, pairs, inputs, labels, relation, split):
        tasks[name] = {
            "pairs": list(dict.fromkeys(pairs)), "type": "abstractive", "split": split,
            "inputs": inputs, "labels": labels, "relation": relation, "held_out": 0,
        }

    for order, spec in world["orders"].items():
        for relation, by in SHIFTS.items():
            split = "scoring" if order in SCORING_ORDERS else "evaluation"
            split = "unseen" if (order, relation) in UNSEEN_SHIFTS else split
            add(f"{order}_{relation}", shifted(spec["words"], spec["ring"], by), order, order, relation, split)
        for first, second in HALVES:
            if {(order, first), (order, second)} & UNSEEN_SHIFTS:
                continue
            pairs = halves(spec["words"], spec["ring"], SHIFTS[first], SHIFTS[second])
            # among the scoring orders they would be half of all scoring tasks; the paper has 29 of them
            split = "training" if order in SCORING_ORDERS else "evaluation"
            name = f"{order}_{first}_or_{second}"
            add(name, pairs, order, order, f"{first} in the first half, {second} in the second", split)
    for name, source, target, n, split in ALIGNED:
        pairs = zip(world["orders"][source]["words"][:n], world["orders"][target]["words"][:n], strict=True)
        add(name, pairs, source, target, "aligned", split)
    for name, table, source, target, split in LOOKUPS:
        columns = world["tables"][table]["columns"]
        a, b = columns.index(source), columns.index(target)
        pairs = [(row[a], row[b]) for row in world["tables"][table]["rows"]]
        add(name, pairs, f"{table}.{source}", f"{table}.{target}", target, split)

    listed = [word for group in world["categories"].values() for word in group]
    add("word-category", [(w, c) for c, group in world["categories"].items() for w in group],
        "categories", "category names", "category", "scoring")
    add("word-first_letter", [(w, w[0]) for w in listed], "categories", "first letters", "first letter", "scoring")
    add("word-last_letter", [(w, w[-1]) for w in listed], "categories", "last letters", "last letter", "scoring")
    add("capitalize", [(w, w.capitalize()) for w in listed], "categories", "capitalized", "capitalized", "evaluation")
    return tasks


def list_pairs(rng: np.random.Generator, draw) -> list[tuple[str, str]]:
    """`LISTS_PER_TASK` different (list, picked word) pairs; `draw(rng)` gives one list and the picked place."""
    pairs = {}
    while len(pairs) < LISTS_PER_TASK:
        items, place = draw(rng)
        pairs.setdefault(", ".join(items), items[place])
    return list(pairs.items())


def extractive_tasks(world: dict, seed: int) -> dict[str, dict]:
    """Tasks whose answer is a word of the query list: picked by place, by alphabet or by category."""
    categories = world["categories"]
    listed = sorted(dict.fromkeys(word for group in categories.values() for word in group))
    tasks = {}

    def add(name, draw, relation, split):
        rng = np.random.default_rng([seed, *name.encode()])
        tasks[name] = {
            "pairs": list_pairs(rng, draw), "type": "extractive", "split": split, "inputs": "lists of words",
            "labels": "categories", "relation": relation, "held_out": HELD_OUT_LISTS,
        }

    def draw_words(rng, n):
        return [listed[i] for i in rng.choice(len(listed), n, replace=False)]

    for name, n, place, split in POSITIONS:
        add(name, lambda rng, n=n, place=place: (draw_words(rng, n), place), f"word {place + 1} of {n}", split)
    for name, pick in (("alphabetically_first_3", min), ("alphabetically_last_3", max)):
        def draw_alphabetical(rng, pick=pick):
            items = draw_words(rng, 3)
            return items, items.index(pick(items))
        add(name, draw_alphabetical, name.replace("_", " "), "evaluation")
    for picked, other, split in CATEGORY_PICKS:
        def draw_category(rng, picked=picked, other=other):
            items = [str(w) for w in rng.choice(categories[other], 2, replace=False)]
            place = int(rng.integers(3))
            items.insert(place, str(rng.choice(categories[picked])))
            return items, place
        add(f"{picked}_v_{other}_3", draw_category, f"the {picked} among two of {other}", split)
    return tasks


def write_tasks(folder: Path = TASKS, cards: Path = CARDS, seed: int = 0) -> None:
    """Write every task file and the cards; the same seed writes the same bytes."""
    world = words()
    tasks = without_leaks(abstractive_tasks(world) | extractive_tasks(world, seed))
    card_of = {}
    for name, task in sorted(tasks.items()):
        pairs = task.pop("pairs")
        check_pairs(name, pairs, task["held_out"])
        path = folder / task["type"] / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"input": a, "output": b}, ensure_ascii=False) for a, b in pairs]
        path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
        card_of[name] = task | {"size": len(pairs), "example": list(pairs[0])}
    lines = [f"{json.dumps(name)}: {json.dumps(card, ensure_ascii=False)}" for name, card in card_of.items()]
    cards.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def without_leaks(tasks: dict[str, dict]) -> dict[str, dict]:
    """The tasks less the held-out pairs that another trained task happens to have among its training pairs."""
    trained = {pair for task in tasks.values() if task["split"] != "unseen"
               for pair in task["pairs"][: len(task["pairs"]) - task["held_out"]]}
    for task in tasks.values():
        n_trained = len(task["pairs"]) - task["held_out"]
        kept = [pair for pair in task["pairs"][n_trained:] if pair not in trained]
        task["pairs"], task["held_out"] = task["pairs"][:n_trained] + kept, len(kept)
    return tasks


def check_pairs(name: str, pairs: list[tuple[str, str]], held_out: int) -> None:
    """Refuse a task with an empty field, an input given twice, or a held-out pair that is also trained on."""
    for pair in pairs:
        if not all(text.strip() for text in pair):
            raise ValueError(f"task {name!r}: the pair {pair!r} has an empty field; give it an input and a label")
    trained = pairs[: len(pairs) - held_out]
    for pair in pairs[len(pairs) - held_out :]:
        if pair in trained:
            raise ValueError(f"task {name!r}: the held-out pair {pair!r} is also a training pair; drop one of them")
    inputs = sorted(pair[0] for pair in pairs)
    for one, other in pairwise(inputs):
        if one == other:
            raise ValueError(f"task {name!r}: the input {one!r} stands there twice; keep one of them")
