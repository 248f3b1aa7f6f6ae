"""Heads of one layer that do not grow alike, and layers that do not leave all the work to the first that could do it.

Adam gives every weight the same step, however weak its gradient, which may be why all heads of a layer that could
become induction heads do so at once. Options of a size's file let few win, in more than one layer: `shape.head_ratio`
starts heads at different scales; `shared_moments` steps all heads of a layer by one second moment, so that a head with
a smaller gradient also takes smaller steps (Adam-mini, Zhang et al. 2024, arXiv 2406.16793, has one for each head);
`attention_drop` leaves the attention of layers out in a share of the steps, so that what one layer has learned has a
use in the next (stochastic depth, Huang et al. 2016, arXiv 1603.09382).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import GPTNeoXForCausalLM


def head_views(
    attention: nn.Module, weights: dict[nn.Parameter, Tensor]
) -> Iterator[Float[Tensor, "head d_head d_model"]]:
    """Views by head of what belongs to a GPT-NeoX layer's queries, keys, values and outputs in turn.

    `weights`: for its two matrices a tensor of their shape, such as the weights or an optimiser's state.
    """
    joint, out = weights[attention.query_key_value.weight], weights[attention.dense.weight]
    d_model, d_head = out.shape[0], attention.head_size
    yield from joint.view(-1, 3, d_head, d_model).unbind(1)
    yield out.T.unflatten(0, (-1, d_head))


def scale_weights(model: GPTNeoXForCausalLM, *, head_ratio: float = 1.0, output_scale: float = 1.0) -> None:
    """Scale all weights of each head by `head_ratio` times the one before, and what layers add by `output_scale`.

    The heads' geometric mean stays. With outputs below 1 the first layers' noise hides less of the tokens from the
    later ones; GPT-2 starts them at 1 / sqrt(2 layers).
    """
    heads = torch.arange(model.config.num_attention_heads, dtype=torch.float32)
    factors = head_ratio ** (heads - heads.mean())
    for layer in model.gpt_neox.layers:
        for view in head_views(layer.attention, {p: p.data for p in layer.attention.parameters()}):
            view *= factors[:, None, None]
        for linear in (layer.attention.dense, layer.mlp.dense_4h_to_h):
            linear.weight.data *= output_scale


def share_moments(model: GPTNeoXForCausalLM, optimizer: torch.optim.Optimizer) -> None:
    """Put the mean over all heads in place of Adam's second moments, for queries, keys, values and outputs of a layer.

    To be called after each step: of the next step's moments all but 1 - beta2 are then shared.
    """
    for layer in model.gpt_neox.layers:
        moments = {p: optimizer.state[p]["exp_avg_sq"] for p in layer.attention.parameters() if p in optimizer.state}
        for view in head_views(layer.attention, moments):
            view[:] = view.mean()


def dropped_layers(
    drop: dict[str, float] | None, n_layers: int, *, step: int, rng: np.random.Generator
) -> list[int]:
    """Layers whose attention a step leaves out: from step `from` on each but the first, with probability `share`."""
    if drop is None or step < drop["from"]:
        return []
    return [layer for layer in range(1, n_layers) if rng.random() < drop["share"]]


@contextmanager
def without_attention(model: GPTNeoXForCausalLM, layers: Iterable[int]) -> Iterator[None]:
    """Let the attention of these layers add nothing in the meantime."""
    hooks = [model.gpt_neox.layers[layer].attention.register_forward_hook(
        lambda module, given, put_out: (torch.zeros_like(put_out[0]), *put_out[1:])) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
