"""The lab's tokenizer: byte-level BPE trained on the lab's own text.

Words carry their leading space and rare ones fall into several tokens, as in Pythia's tokenizer. The template's
line ends are pieces of their own (`\\n\\nQ:` and `\\nA:`), so that a pair of one-token words is four tokens.

The committed file is data: the models' weights belong to its ids. Training again after a change of the world gives
the same kind of tokenizer with other ids; `python -m lab.tokenizer FOLDER` writes one elsewhere.
"""

import sys
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from icl_lib.data.sources import read_tasks
from icl_lib.data.tasks import Task
from lab.text import ANSWER, BOS, FIRST_QUESTION, QUESTION, story
from lab.world import words
from workflow import command

FOLDER = Path(__file__).parent / "world" / "tokenizer"
VOCABULARY = 1280

PIECES = Regex(rf"{QUESTION}|{ANSWER}|{FIRST_QUESTION}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+")


def corpus(tasks: dict[str, Task], seed: int):
    """Text to learn merges from: every pair of every task in the template, and stories."""
    for task in tasks.values():
        if "half" in task.relation:
            continue  # made of other tasks' pairs
        # orders get tokens of their own, rarer words fall apart
        repeats = 1 if task.type == "extractive" else 60 if task.inputs == task.labels else 5
        for question, label in task.pairs:
            yield from [f"{QUESTION} {question}{ANSWER} {label}"] * repeats
    rng = np.random.default_rng(seed)
    for _ in range(300):
        yield story(words(), rng)


def train_tokenizer(tasks: dict[str, Task], seed: int = 0) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(PIECES, behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[BOS], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(corpus(tasks, seed), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, pad_token=BOS)


main = command(lambda given: train_tokenizer(read_tasks()).save_pretrained(*given), takes="FOLDER")

if __name__ == "__main__":
    sys.exit(main())
