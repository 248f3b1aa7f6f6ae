"""Mean head outputs over clean prompts."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from icl_lib.data.tasks import TaskPrompts
from icl_lib.forward.encoded import EncodedPrompt, encode_clean
from icl_lib.forward.passes import last_head_outputs
from icl_lib.progress import progress
from icl_lib.saved import SavedResults

MeanZ = Float[Tensor, "layer head d_head"]


def clean_means(
    model: nn.Module, prompts: Mapping[str, TaskPrompts], *, batch_size: int = 16, save_to: str | Path | None = None
) -> dict[str, MeanZ]:
    """Each task's mean head outputs at the last position over its clean prompts (section 2).

    Before the output projection (hook_z), in float64 while summing, given in the model's dtype.
    `save_to` and errors as in `fv_scores`.
    """
    return means_of(model, encode_clean(model, prompts), SavedResults(save_to, model), batch_size)


def mean_over_tasks(means: Mapping[str, MeanZ]) -> MeanZ:
    """The mean of the tasks' means, each counting the same; summed in float64."""
    together = torch.stack([mean.double() for mean in means.values()]).mean(0)
    return together.to(next(iter(means.values())).dtype)


def means_of(
    model: nn.Module, encoded: Mapping[str, list[EncodedPrompt]], saved: SavedResults, batch_size: int = 16
) -> dict[str, MeanZ]:
    """`clean_means` of encoded prompts, read where `saved` has them."""
    def mean(task: str) -> dict[str, Tensor]:
        z = last_head_outputs(model, [p.tokens for p in encoded[task]], batch_size=batch_size)
        refuse_nan(z.flatten(1), encoded[task], range(len(z)), "head outputs of the clean")
        return {"mean_z": z.double().mean(0).to(z.dtype).cpu()}

    means = {}
    for task in progress(encoded, "clean means"):
        tokens = [p.tokens for p in encoded[task]]
        means[task] = saved.recall(partial(mean, task), "clean means", tokens)["mean_z"]
    return means


def refuse_nan(
    values: Float[Tensor, "row value"], encoded: list[EncodedPrompt], rows: Sequence[int], what: str
) -> None:
    """Raises ValueError naming task and prompt for a row with NaN."""
    bad = values.isnan().any(1)
    if bad.any():
        raise ValueError(f"{encoded[rows[int(bad.nonzero()[0])]].place}: NaN in the {what} prompt")
