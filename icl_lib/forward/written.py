"""What heads write to the residual stream where that is not just their output projection.

Between projection and stream an architecture may multiply (Granite) or norm (OLMo2, Gemma). Its layers are asked:
with nothing in the stream, no MLP and a given output of attention, a layer's output is what attention writes.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from icl_lib.forward import passes

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


def writes_projection(model: nn.Module) -> bool:
    """Whether the output projection's output reaches the residual stream as it is; asked of a model once."""
    if not hasattr(model, "writes_as_is"):
        given = torch.randn(model.cfg.n_layers, 2, model.cfg.d_model, generator=torch.Generator().manual_seed(0))
        weight = next(model.original_model.parameters())
        given = given.to(weight.device, weight.dtype)
        one, other = written(model, given).unbind(1)
        model.writes_as_is = torch.allclose(one - other, given[:, 0] - given[:, 1], rtol=1e-2, atol=1e-3)
    return model.writes_as_is


@torch.inference_mode()
def written_by_heads(
    model: nn.Module, mean_z: Float[Tensor, "layer head d_head"], heads: Bool[Tensor, "layer head"], *,
    bias_per_head: bool = False,
) -> Float[Tensor, "d_model"]:
    """The sum over layers of what the chosen heads write at their means; see `task_execution.function_vector`."""
    weight = next(model.original_model.parameters())
    mean_z = mean_z.to(weight.device, weight.dtype)
    chosen = torch.where(heads.to(weight.device)[..., None], mean_z, 0)
    projections = passes.output_projections(model)
    bias, part, whole = (
        torch.stack([projection(z.flatten()) for projection, z in zip(projections, of, strict=True)])
        for of in (torch.zeros_like(mean_z), chosen, mean_z)
    )
    part = part - bias + bias * heads.sum(1).to(weight.device)[:, None] * bias_per_head
    rows = torch.stack([torch.zeros_like(part), part, _FAR * part, 2 * _FAR * part, whole, _FAR * whole], dim=1)
    nothing, once, far, farther, all_heads, all_far = written(model, rows).unbind(1)
    some = heads.any(1).to(weight.device)
    if torch.allclose((far - nothing)[some], _FAR * (once - nothing)[some], rtol=1e-2, atol=1e-3):
        return (once - nothing)[some].sum(0)
    if not torch.allclose(farther[some], far[some], rtol=1e-2, atol=1e-3):
        raise ValueError(f"{type(model.original_model).__name__}: what a head writes to the residual stream depends on "
                         "the other heads other than by a norm's scale, so there is no function vector")
    scale = _size(all_heads) / _size(all_far) / _size(whole)  # of the norm, with all heads at their means
    return (far * _size(part) * scale)[some].sum(0)


def _size(vectors: Float[Tensor, "layer d_model"]) -> Float[Tensor, "layer 1"]:
    return vectors.double().square().mean(-1, keepdim=True).sqrt().to(vectors.dtype)
