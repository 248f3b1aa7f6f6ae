"""Heads of one layer that do not grow alike.

Adam gives every weight the same step, however weak its gradient, which may be why all heads of a layer that could
become induction heads do so at once. Two options of a size's file let some heads win: `shape.head_ratio` starts them at
different scales, `shared_moments` steps all heads of a layer by one second moment, so that a head with a smaller
gradient also takes smaller steps (Adam-mini, Zhang et al. 2024, arXiv 2406.16793, has one for each head). With few
heads at work in a layer a later one took part too (lab-450k-unequal).
"""

from collections.abc import Iterator

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
    """Scale all weights of head h of a layer by `head_ratio` to the power of h, and what layers add by `output_scale`.

    With outputs below 1 the first layers' noise hides less of the tokens from the later ones; GPT-2 starts them at
    1 / sqrt(2 layers).
    """
    factors = head_ratio ** torch.arange(model.config.num_attention_heads, dtype=torch.float32)
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
