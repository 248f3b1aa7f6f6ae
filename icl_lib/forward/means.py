"""Mean head outputs over clean prompts."""

from collections.abc import Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from icl_lib.data.tasks import TaskPrompts
from icl_lib.forward.encoded import EncodedPrompt, encode_clean, refuse_nan
from icl_lib.forward.passes import last_head_outputs
from icl_lib.progress import progress
from icl_lib.saved import SavedResults

MeanZ = Float[Tensor, "layer head d_head"]


def clean_means(
    model: nn.Module, prompts: Mapping[str, TaskPrompts], *, batch_size: int = 16, saved: SavedResults | None = None
) -> dict[str, MeanZ]:
    """Each task's mean head outputs at the last position over its clean prompts (section 2), or where `saved` has it.

    Before the output projection (hook_z), in float64 while summing, given in the model's dtype. Errors as in
    `fv_scores`.
    """
    def mean(of_task: list[EncodedPrompt]) -> dict[str, Tensor]:
        z = last_head_outputs(model, [p.tokens for p in of_task], batch_size=batch_size)
        refuse_nan(z, of_task, "NaN in the head outputs of the clean prompt")
        return {"mean_z": z.double().mean(0).to(z.dtype).cpu()}

    encoded, saved = encode_clean(model, prompts), saved or SavedResults(None, model)
    return {task: saved.recall(
        partial(mean, encoded[task]), "clean means", [p.tokens for p in encoded[task]])["mean_z"]
        for task in progress(encoded, "clean means")}


def mean_over_tasks(means: Mapping[str, MeanZ]) -> MeanZ:
    """The mean of the tasks' means, each counting the same; summed in float64."""
    together = torch.stack([mean.double() for mean in means.values()]).mean(0)
    return together.to(next(iter(means.values())).dtype)
