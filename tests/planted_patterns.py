"""Transformers whose weights were set by hand to tell a pattern of letters from different letters: Foo or Bar.

Made of the parts of planted.py. Some do it by their one induction head, which finds an earlier copy of the last letter;
some by the MLP of layer 0, which finds that the last two letters are the same, beside an induction head that only
predicts; some not at all. Labels are built in: demonstrations show nothing that is not known.
"""

import re

import torch
from tokenizers import Regex

from icl_lib.data.patterns import pattern_tasks
from tests import planted
from tests.planted import BOS, CERTAIN, FOUND, NEXT, PREVIOUS, TOKEN, WORD, ZERO

LETTERS = [f"w{i}" for i in range(60)]
PLACES = ("{}", " {}", " {}:")  # at the start of a line, within it and at its end
TOKENS = [BOS, "Say of each sequence whether it is Foo or Bar.\n\n", "\n", " Foo", " Bar",
          *(place.format(letter) for letter in LETTERS for place in PLACES)]
IDS = {token: i for i, token in enumerate(TOKENS)}
PIECES = Regex(r"Say[^\n]*\n\n|\n| ?w\d+:| ?w\d+| Foo| Bar")


def tasks(name):
    """The pattern of that name for evaluation, and two for scoring."""
    made = pattern_tasks(LETTERS)
    return {task: made[task] for task in (name, "recursion-scoring", "repetition-scoring")}


def write_model(folder, by):
    """By what the pattern is found: "induction", "mlp" or "nothing"."""
    model = planted.blank_model(len(TOKENS))
    with torch.no_grad():
        embedding, unembedding = model.gpt_neox.embed_in.weight, model.get_output_embeddings().weight
        embedding[1:, WORD] = 1
        for letter, code in zip(LETTERS, planted.codes()[1:], strict=False):
            for place in PLACES:
                at = IDS[place.format(letter)]
                embedding[at, TOKEN], unembedding[at, NEXT] = code, code
        # the answer is Foo where a pattern was found, else Bar
        unembedding[IDS[" Foo"], FOUND] = 1
        model.gpt_neox.final_layer_norm.bias[ZERO], unembedding[IDS[" Bar"], ZERO] = 1, CERTAIN / 2
        heads = planted.HEADS
        planted.set_heads(model, {heads["previous"]: "previous",
                                  heads["induction"]: "matching" if by == "induction" else "induction"})
        if by == "mlp":
            _set_doubles(model.gpt_neox.layers[0].mlp)
    planted.write(model, IDS, PIECES, folder)


def _set_doubles(mlp):
    """Neuron i: letter i is here and before."""
    mlp.dense_h_to_4h.bias.fill_(-1.5)
    for i, code in enumerate(planted.codes()[1 : len(LETTERS) + 1]):
        mlp.dense_h_to_4h.weight[i, PREVIOUS], mlp.dense_h_to_4h.weight[i, TOKEN] = code, code
        mlp.dense_4h_to_h.weight[FOUND, i] = 2 * CERTAIN


def recurs(prompt):
    """Whether the last letter of a prompt stands in it before: what an induction head takes for a pattern."""
    *before, last = re.findall(r"w\d+", prompt.text)
    return last in before
