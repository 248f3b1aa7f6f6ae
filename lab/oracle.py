"""What demonstrations give away without their pairing: an upper line for models that read sets of labels."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from icl_lib.data.tasks import Task


def accuracy_without_pairing(
    task: Task, tasks: Mapping[str, Task], *, n_prompts: int, n_shots: int, rng: np.random.Generator
) -> float:
    """Accuracy, 0..1, of an oracle that sees which inputs and which labels are shown, not which belongs to which.

    It takes every task with the same inputs and labels (`task.siblings`) that gives these labels for these inputs,
    and answers as most of them do; equally common answers share the point. Queries and demonstrations are drawn as
    for prompts.
    """
    known = [dict(tasks[name].pairs) for name in task.siblings]
    right = 0.0
    for _ in range(n_prompts):
        query, answer = task.query_pairs[rng.integers(len(task.query_pairs))]
        pool = [pair for pair in task.training_pairs if pair[0] != query]
        shown = [pool[i] for i in rng.permutation(len(pool))[:n_shots]]
        labels = Counter(label for _, label in shown)
        fitting = [pairs for pairs in known if query in pairs
                   and Counter(pairs.get(question) for question, _ in shown) == labels]
        votes = Counter(pairs[query] for pairs in fitting)
        right += (votes[answer] == max(votes.values())) / list(votes.values()).count(max(votes.values()))
    return right / n_prompts
