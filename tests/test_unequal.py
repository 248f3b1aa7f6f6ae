"""Heads that do not grow alike: different scales at the start, one second moment for all heads of a layer."""

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lab import train as trainer
from lab.unequal import dropped_layers, head_views, share_moments, without_attention

SHAPE = {"layers": 2, "heads": 4, "d_model": 32, "rotary": 0.5, "init_std": 0.06, "tied": True}


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(trainer.TOKENIZER)


def views(model, of=lambda weight: weight.data):
    """Of each layer four tensors `[head, d_head, d_model]`."""
    return [list(head_views(layer.attention, {p: of(p) for p in layer.attention.parameters()}))
            for layer in model.gpt_neox.layers]


def test_a_head_is_cut_out_where_it_writes_and_reads(tokenizer):
    model = trainer.new_model(SHAPE, tokenizer, seed=0).eval()
    tokens, heads = torch.arange(12)[None], []
    model.gpt_neox.layers[1].attention.dense.register_forward_pre_hook(lambda _, given: heads.append(given[0].clone()))
    model(tokens)
    keep = heads[0].view(1, 12, 4, 8)
    assert all((keep[:, :, head] != 0).any() for head in range(4))
    *_, values, _ = views(model)[1]
    values[2] = 0
    model.gpt_neox.layers[1].attention.query_key_value.bias.data.zero_()
    model(tokens)
    silent = [bool((heads[1].view(1, 12, 4, 8)[:, :, head] == 0).all()) for head in range(4)]
    assert silent == [False, False, True, False]


def test_heads_start_at_scales_of_their_own_and_layers_add_less(tokenizer):
    plain, scaled = (trainer.new_model(SHAPE | more, tokenizer, seed=3)
                     for more in ({}, {"head_ratio": 0.5, "output_scale": 0.25}))
    halves = torch.tensor([1.0, 0.5, 0.25, 0.125]) * 2**1.5  # of geometric mean 1
    for before, after in zip(views(plain), views(scaled), strict=True):
        for a, b, scale in zip(before, after, (1, 1, 1, 0.25), strict=True):  # queries, keys, values, outputs
            torch.testing.assert_close(b, a * (scale * halves)[:, None, None])
    others = dict(scaled.named_parameters())
    for name, weight in plain.named_parameters():
        if "attention" not in name:
            assert torch.equal(others[name], weight * (0.25 if name.endswith("dense_4h_to_h.weight") else 1))


@pytest.mark.parametrize(("shared", "ratio"), [(True, 0.1), (False, 1.0)])
def test_a_head_with_a_tenth_of_the_gradient_takes_a_tenth_of_the_step_where_moments_are_shared(
    tokenizer, shared, ratio
):
    model = trainer.new_model(SHAPE, tokenizer, seed=0)
    optimizer = trainer.new_optimizer(model, {"lr": 0.001, "weight_decay": 0.0})
    for _ in range(20):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        for layer in views(model, of=lambda weight: weight.grad):
            for view in layer:
                view[1] = 0.1
        before = [[view.clone() for view in layer] for layer in views(model)]
        optimizer.step()
        if shared:
            share_moments(model, optimizer)
    for old, new in zip(before, views(model), strict=True):
        for a, b in zip(old, new, strict=True):
            steps = (b - a).flatten(1).mean(1)
            assert float(steps[1] / steps[0]) == pytest.approx(ratio, rel=0.12)
            assert float(steps[2] / steps[0]) == pytest.approx(1.0, rel=0.01)


def test_layers_are_left_out_from_a_step_on_but_never_the_first():
    drop, rng = {"share": 0.25, "from": 10}, np.random.default_rng(0)
    assert dropped_layers(None, 4, step=99, rng=rng) == dropped_layers(drop, 4, step=9, rng=rng) == []
    drawn = [dropped_layers(drop, 4, step=10, rng=np.random.default_rng(seed)) for seed in range(2000)]
    shares = np.bincount(np.concatenate(drawn).astype(int), minlength=4) / len(drawn)
    assert shares[0] == 0 and shares[1:] == pytest.approx(0.25, abs=0.04)


def test_a_layer_that_is_left_out_adds_nothing_and_learns_nothing_until_it_is_back(tokenizer):
    model, tokens = trainer.new_model(SHAPE, tokenizer, seed=0), torch.arange(12)[None]
    usual = model(tokens).logits
    with without_attention(model, [1]):
        logits = model(tokens).logits
        logits.sum().backward()
    assert not torch.equal(logits, usual) and torch.equal(model(tokens).logits, usual)
    first, second = (layer.attention.query_key_value.weight.grad for layer in model.gpt_neox.layers)
    assert (first != 0).any() and (second is None or not second.any())
    silent = trainer.new_model(SHAPE, tokenizer, seed=0)
    silent.gpt_neox.layers[1].attention.dense.weight.data.zero_()
    silent.gpt_neox.layers[1].attention.dense.bias.data.zero_()
    torch.testing.assert_close(silent(tokens).logits, logits)
