"""Mixed precision: matrix products of the linear layers in bfloat16, everything else in float32.

The residual stream, norms, softmax and logits stay in float32, so a difference of probabilities is not lost in the
eight bits of bfloat16; what is rounded is what enters and leaves a product. Processors with bfloat16 units multiply
several times faster so, and the weights take half the memory.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Bfloat16Linear(nn.Linear):
    """A linear layer with weights in bfloat16; takes and gives the type it is called with."""

    def forward(self, given: Tensor) -> Tensor:
        return functional.linear(given.to(torch.bfloat16), self.weight, self.bias).to(given.dtype)


class _RoundedLinear(nn.Linear):
    """A linear layer whose factors are rounded to bfloat16 and whose sums are float32: for the logits."""

    def forward(self, given: Tensor) -> Tensor:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        try:
            return super().forward(given)
        finally:
            torch.set_float32_matmul_precision(before)


def to_mixed(model: nn.Module) -> None:
    """Put the linear layers of a bridge in float32 into mixed precision, in place. Embeddings are as they were.

    Which products are rounded depends on the processor for the logits alone: one without bfloat16 units forms these
    in float32.
    """
    head = model.original_model.get_output_embeddings()
    head = getattr(head, "original_component", head)
    for module in model.original_model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _RoundedLinear if module is head else _Bfloat16Linear
            if module is not head:
                module.to(torch.bfloat16)
