"""What heads write to the residual stream where that is not just their output projection.

Between projection and stream an architecture may multiply (Granite) or norm (OLMo2, Gemma). Its layers are asked:
with nothing in the stream, no MLP and a given output of attention, a layer's output is what attention writes.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from icl_lib.forward import passes
from icl_lib.heads import HeadMask

_FAR = 1024.0  # a factor at which the small constant in a norm's root is nothing


@torch.inference_mode()
def written(model: nn.Module, output: Float[Tensor, "layer row d_model"]) -> Float[Tensor, "layer row d_model"]:
    """What each layer's attention writes to the residual stream when its projection gives each row of `output`."""
    seen: list[Tensor] = []

    def empty(_layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        hidden, args, kwargs = passes.without_hidden(args, kwargs)
        return (torch.zeros_like(hidden), *args), kwargs

    def read(_layer: nn.Module, _args: tuple, result: Any) -> None:
        seen.append(passes.hidden_of(result))

    handles, stubbed = [], passes.attentions(model)
    for i, (layer, block) in enumerate(zip(passes.layers(model), model.blocks, strict=True)):
        mlp = getattr(block.mlp, "out", block.mlp).original_component  # some MLPs add the stream themselves
        handles.append(layer.register_forward_pre_hook(empty, with_kwargs=True))
        handles.append(layer.register_forward_hook(read))
        handles.append(mlp.register_forward_hook(_silent))
        stubbed[i].forward = lambda *_args, i=i, **_kwargs: (output[i][None], None)
    try:
        with passes.plain_transformers(model) as hf_model, passes.hooked(handles):
            passes.feed(hf_model, torch.zeros(1, output.shape[1], dtype=torch.long, device=output.device))
    finally:
        for attention in stubbed:
            del attention.forward
    return torch.cat(seen)


def _silent(_mlp: nn.Module, _args: tuple, result: Any) -> Any:
    if isinstance(result, tuple):
        return (torch.zeros_like(result[0]), *result[1:])
    return torch.zeros_like(result)


@torch.inference_mode()
def function_vector(
    model: nn.Module, mean_z: Float[Tensor, "layer head d_head"], heads: HeadMask, *, bias_per_head: bool = False
) -> Float[Tensor, "d_model"]:
    """The sum over `heads` of what their mean outputs write to the residual stream (appendix A.6).

    That is the output projection applied to them, times what the architecture multiplies it by. With a norm after
    attention (OLMo2, Gemma 2 and 3), which takes its scale from all heads together, that scale is the one of all
    heads at their means; the released code has no such model. Without the projection's bias, which is no head's
    output; the released code adds it once per head (V3), which `bias_per_head` does. Raises ValueError
    for an architecture in which heads do not write a sum.
    """
    weight = next(model.original_model.parameters())
    mean_z, mask = mean_z.to(weight.device, weight.dtype), torch.from_numpy(heads).to(weight.device)
    chosen, some = torch.where(mask[..., None], mean_z, 0), mask.any(1)
    projections = passes.output_projections(model)
    bias, part, whole = (
        torch.stack([projection(z.flatten()) for projection, z in zip(projections, of, strict=True)])
        for of in (torch.zeros_like(mean_z), chosen, mean_z)
    )
    part = part - bias + bias * mask.sum(1)[:, None] * bias_per_head
    rows = torch.stack([torch.zeros_like(part), part, _FAR * part, 2 * _FAR * part, whole, _FAR * whole], dim=1)
    nothing, once, far, farther, all_heads, all_far = written(model, rows)[some].unbind(1)
    if torch.allclose(far - nothing, _FAR * (once - nothing), rtol=1e-2, atol=1e-3):
        return (once - nothing).sum(0)
    if not torch.allclose(farther, far, rtol=1e-2, atol=1e-3):
        raise ValueError(f"{type(model.original_model).__name__}: what a head writes to the residual stream depends on "
                         "the other heads other than by a norm's scale, so there is no function vector")
    scale = _size(all_heads) / _size(all_far) / _size(whole[some])  # of the norm, with all heads at their means
    return (far * _size(part[some]) * scale).sum(0)


def _size(vectors: Float[Tensor, "layer d_model"]) -> Float[Tensor, "layer 1"]:
    return vectors.double().square().mean(-1, keepdim=True).sqrt().to(vectors.dtype)
