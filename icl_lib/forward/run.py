"""The one way to run edits over prompts: each goes to the sweep that shares most with the unedited pass.

Edits at the last position share the rest of the prompt, edits at all positions the layers below the first that each
edits; an architecture with an attention of its own is fed whole prompts.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from icl_lib.forward import shared_layers, shared_prefix, whole_prompts
from icl_lib.forward.edits import Edit, by_positions, row_edits
from icl_lib.forward.encoded import TokenBatch, in_batches
from icl_lib.forward.passes import device_of, last_positions
from icl_lib.forward.readout import Readout, read_targets

RUN_TOKENS = 4096  # positions of edited texts that are read at a time, where each is a text of its own


@torch.inference_mode()
def run(
    model: nn.Module, batch: TokenBatch, edits: Sequence[Edit | None], targets: Int[Tensor, "batch pos"], *,
    at: Int[Tensor, "batch pos"] | None = None,
) -> Readout:
    """What the model says about target tokens under each edit (row = edit; None is the unedited model).

    `targets[:, i]` is predicted at the i-th of the last `pos` positions of a prompt; an edit at the last position acts
    on all of these, as when an answer is generated. With positions `at`, in rising order or one again and again, each
    target is predicted at the one of these, as if the text ended there: there alone an edit at the last position then
    acts. Log-probabilities are float64 whatever the model's dtype.
    """
    apart, device = at is not None, targets.device
    whole = apart and at.shape == batch.tokens.shape and bool((at.diff(dim=1) == 1).all())
    at = last_positions(batch.lengths, targets.shape[1]) if at is None else at
    shape = (len(targets), len(edits), targets.shape[1])
    log_probability = torch.empty(shape, dtype=torch.float64, device=device)
    correct = torch.empty(shape, dtype=torch.bool, device=device)
    for where, chosen in by_positions(edits, unedited="all" if apart else "last").items():
        at_once = len(chosen)  # edits whose residual streams are held together
        if apart and where == "last":
            at_once = max(1, RUN_TOKENS // at.numel())
        elif whole:  # texts of every edit would be too much
            at_once = max(1, 4 * RUN_TOKENS // batch.tokens.numel())
        for some in torch.tensor(chosen).split(at_once):
            rows = row_edits(model, [edits[i] for i in some], batch.rows)
            if where == "all":
                sweep = whole_prompts if model.own_attention else shared_layers
                residual = sweep.edited_residuals(model, batch.tokens, rows, None if whole else at)
            else:
                sweep = whole_prompts if model.own_attention else shared_prefix
                residual = sweep.edited_rows(model, batch.tokens, rows, at, apart=apart)
            readout = read_targets(model, residual, targets)
            log_probability[:, some], correct[:, some] = readout.log_probability.double(), readout.correct
    return Readout(log_probability, correct)


def run_prompts(
    model: nn.Module, prompts: Sequence[Sequence[int]], targets: Int[Tensor, "prompt pos"],
    edits: Sequence[Edit | None], *, batch_size: int, rows: Sequence[int] | None = None, at_last: bool = False,
) -> Readout:
    """`run` of prompts in batches, put together on the CPU, prompts on the first axis.

    `rows`: their places among the sequences that edits have values for, if they are not all of these. `at_last`: all
    targets are predicted at the last position.
    """
    device = device_of(model)

    def read(batch: TokenBatch) -> Tensor:
        wanted = targets[batch.rows].to(device)
        at = (batch.lengths - 1)[:, None].expand_as(wanted) if at_last else None
        batch = batch if rows is None else replace(batch, rows=[rows[i] for i in batch.rows])
        readout = run(model, batch, edits, wanted, at=at)
        return torch.stack([readout.log_probability, readout.correct.double()]).movedim(0, 1).cpu()

    log_probability, correct = in_batches(read, prompts, batch_size, device).unbind(1)
    return Readout(log_probability, correct.bool())


@torch.inference_mode()
def run_added(
    model: nn.Module, batch: TokenBatch, vectors: Float[Tensor, "row d_model"], layer: Int[Tensor, "row"],
    targets: Int[Tensor, "batch 1"],
) -> Readout:
    """The same with a vector added to the output of a layer, counted from 0, at the last position.

    Row by row: `vectors` at the output of `layer`. A zero vector is the unedited model.
    """
    sweep = whole_prompts if model.own_attention else shared_prefix
    residual = sweep.added_rows(model, batch.tokens, vectors, layer, last_positions(batch.lengths, 1))
    return read_targets(model, residual, targets)
