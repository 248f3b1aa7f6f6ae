"""Any architecture is exact or refused: random small models against their untouched copies, edited by plain hooks."""

from collections import Counter
from contextlib import contextmanager

import pandas as pd
import pytest
import torch

from icl_lib import Edit, previous_token_scores, token_losses
from icl_lib.forward.encoded import EncodedPrompt, TokenBatch
from icl_lib.forward.generate import generate
from icl_lib.forward.run import run_added
from icl_lib.metrics.evaluate import answer_readouts
from tests.architectures import KINDS, SEEDS, TABLE, table, tried

LIMIT = 1e-5  # nats; eager attention takes its softmax in float32
# last parts of the names of output projections and layers in transformers
PROJECTIONS = ("o_proj", "c_proj", "out_proj", "dense")


def projections(hf_model):
    return [module for name, module in hf_model.named_modules()
            if name.endswith(PROJECTIONS) and "attn" in name + name.replace("attention", "attn") and "mlp" not in name]


@contextmanager
def replaced(hf_model, n_heads, edit, places):
    """Heads of the edit replaced at some positions of a single sequence by plain hooks."""
    def hook(layer):
        def replace(_module, args):
            z = args[0].unflatten(-1, (n_heads, -1)).clone()
            for head in edit.heads[layer].nonzero()[:, 0].tolist():
                z[:, places, head] = edit.values[0, layer, head]
            return (z.flatten(-2),)
        return replace

    handles = [p.register_forward_pre_hook(hook(i)) for i, p in enumerate(projections(hf_model))]
    assert len(handles) == len(edit.heads)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def log_probabilities(hf_model, ids):
    return hf_model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)


class Case:
    """A model, its untouched copy, random tokens, and edits by positions.

    Random values of one random head of each layer, of others, and of one of the last layer: two edits start together.
    """

    def __init__(self, kind, seed):
        self.model, self.plain, self.line = tried(kind, seed)
        if self.model is None:
            return
        generator = torch.Generator().manual_seed(seed)
        n_layers, self.n_heads = self.model.cfg.n_layers, self.model.cfg.n_heads
        self.ids = torch.randint(1, 420, (2, 12), generator=generator).tolist()
        self.ids[1] = self.ids[1][:9]
        heads = torch.zeros(3, n_layers, self.n_heads, dtype=torch.bool)
        drawn = torch.randint(self.n_heads, (3, n_layers, 1), generator=generator)
        heads = heads.scatter(2, drawn, True)
        heads[2, :-1] = False
        d_head = projections(self.plain)[0].weight.numel() // self.model.cfg.d_model // self.n_heads
        values = torch.randn(1, n_layers, self.n_heads, d_head, generator=generator, dtype=torch.float64)
        self.edits = {p: [Edit(some, values, p) for some in heads] for p in ("last", "all")}
        self.layer_output = next(m for m in self.plain.modules() if isinstance(m, torch.nn.ModuleList))

    def brute(self, ids, edit=None, from_place=0):
        if edit is None:
            return log_probabilities(self.plain, ids)
        places = list(range(from_place if edit.positions == "last" else 0, len(ids)))
        with replaced(self.plain, self.n_heads, edit, places):
            return log_probabilities(self.plain, ids)


CASES = [(kind, seed) for kind in KINDS for seed in SEEDS]


@pytest.fixture(params=CASES, ids=lambda of: f"{of[0]}-{of[1]}", scope="module")
def case(request):
    return Case(*request.param)


def close(actual, expected):
    assert actual.shape == expected.shape
    assert (actual.double().cpu() - expected).abs().max() < LIMIT


def test_exact_or_refused_in_one_line(case):
    if case.model is None:
        assert type(case.plain).__name__ in case.line and "\n" not in case.line and len(case.line) < 400
        return
    ids, everywhere, at_last = case.ids[0], case.edits["all"][0], case.edits["last"][0]
    after = torch.tensor(ids[1:])[:, None]
    close(token_losses(case.model, torch.tensor([ids]))[0], -case.brute(ids)[:-1].gather(1, after)[:, 0])
    close(token_losses(case.model, torch.tensor([ids]), everywhere)[0],
          -case.brute(ids, everywhere)[:-1].gather(1, after)[:, 0])
    apart = torch.stack([case.brute(ids[: n + 1], at_last, n)[-1, ids[n + 1]] for n in range(len(ids) - 1)])
    close(token_losses(case.model, torch.tensor([ids]), at_last)[0], -apart)
    with torch.no_grad():
        eager = case.plain(input_ids=torch.tensor([ids]), output_attentions=True, use_cache=False)
    patterns = torch.stack(eager.attentions)[:, 0]
    close(previous_token_scores(case.model, torch.tensor([ids])), patterns.diagonal(-1, 2, 3).mean(-1).double())


def test_answers_under_edits_are_exact(case):
    if case.model is None:
        return
    prompts = [EncodedPrompt("t", i, ids[:-2], ids[-2:]) for i, ids in enumerate(case.ids)]
    edits = [None, *case.edits["last"], *case.edits["all"]]
    readouts = answer_readouts(case.model, prompts, edits)
    for prompt, readout in zip(prompts, readouts, strict=True):
        ids, n = prompt.tokens + prompt.answer[:1], len(prompt.tokens)
        for row, edit in enumerate(edits):
            expected = case.brute(ids, edit, n - 1)[-2:]
            close(readout.log_probability[row], expected.gather(1, torch.tensor(prompt.answer)[:, None])[:, 0])


def test_generated_tokens_are_exact(case):
    if case.model is None:
        return
    prompts = [EncodedPrompt("t", i, ids, [1]) for i, ids in enumerate(case.ids)]
    edits = [None, *case.edits["last"], *case.edits["all"]]
    found = generate(case.model, prompts, edits, n_tokens=3)
    for i, prompt in enumerate(prompts):
        for row, edit in enumerate(edits):
            ids = list(prompt.tokens)
            for _ in range(3):
                ids.append(int(case.brute(ids, edit, len(prompt.tokens) - 1)[-1].argmax()))
            assert found[i, row].tolist() == ids[-3:]


def test_vectors_added_to_a_layer_are_exact(case):
    if case.model is None:
        return
    vectors = torch.randn(2, case.model.cfg.d_model, dtype=torch.float64)
    lengths = torch.tensor([len(ids) for ids in case.ids])
    tokens = torch.tensor([ids + [0] * (12 - len(ids)) for ids in case.ids])
    targets = torch.tensor([[7], [9]])
    readout = run_added(case.model, TokenBatch(tokens, lengths, [0, 1]), vectors, torch.tensor([1, 0]), targets)
    for row, at in enumerate((1, 0)):
        def add(_layer, _args, output, row=row):
            hidden = output[0] if isinstance(output, tuple) else output
            hidden[:, -1] += vectors[row]

        handle = case.layer_output[at].register_forward_hook(add)
        try:
            for i, ids in enumerate(case.ids):
                close(readout.log_probability[i, row], log_probabilities(case.plain, ids)[-1, targets[i]])
        finally:
            handle.remove()


def test_the_table_of_the_book_is_what_a_run_gives():
    shown = pd.read_csv(TABLE, keep_default_na=False, dtype=str)
    columns = ["architecture", "verdict", "attention", "refused with"]
    pd.testing.assert_frame_equal(shown[columns], table()[columns])
    assert shown.loc[shown["difference (nats)"] != "", "difference (nats)"].astype(float).max() < LIMIT
    counts = Counter(shown["verdict"])
    assert counts["exact"] + counts["exact, some refused"] >= 20
