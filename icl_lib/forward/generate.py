"""Greedy generation under many edits at once: the rows of a batch, each with its own edit, share the prompt's cache."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn

from icl_lib.forward.edits import Edit, RowEdits, by_positions, row_edits
from icl_lib.forward.encoded import EncodedPrompt
from icl_lib.forward.passes import hooked, output_projections, plain_transformers, split_heads
from icl_lib.forward.shared_layers import MAX_TOKENS

N_GENERATED = 5  # tokens, as in the released code


@torch.inference_mode()
def generate(
    model: nn.Module, encoded: Sequence[EncodedPrompt], edits: Sequence[Edit | None], *, n_tokens: int = N_GENERATED
) -> Int[Tensor, "prompt edit token"]:
    """The likeliest next `n_tokens` of each prompt, one by one, under each edit; greedy for every model (A8).

    An edit at the last position acts on the prompt's last token and on each generated one that is fed again, as
    in the released code (A2). Generation goes on after an end-of-text token. Raises ValueError naming task and prompt
    where prompt and new tokens exceed the context.
    """
    for prompt in encoded:
        prompt.refuse_too_long(model, n_tokens - 1)
    generated = torch.empty(len(encoded), len(edits), n_tokens, dtype=torch.long)
    for i, prompt in enumerate(encoded):
        at_once = max(1, MAX_TOKENS // len(prompt.tokens))
        for where, chosen in by_positions(edits, unedited="last").items():
            for some in torch.tensor(chosen).split(at_once):
                rows = row_edits(model, [edits[j] for j in some], [i])
                tokens = _greedy(model, prompt.tokens, rows, n_tokens, everywhere=where == "all")
                generated[i, some] = tokens.cpu()
    return generated


def _greedy(
    model: nn.Module, prompt: list[int], edits: RowEdits, n_tokens: int, *, everywhere: bool
) -> Int[Tensor, "row token"]:
    """Each row's tokens; `everywhere`: its edit acts on the whole prompt, else from the prompt's last token on."""
    projections, n_rows = output_projections(model), len(edits.masks)
    fed = torch.tensor(prompt, device=edits.masks.device).expand(n_rows, -1)
    prefix, token, past, generated = fed[:, :-1], fed[:, -1:], None, []

    def replacing(layer: int):
        mask, values = edits.masks[:, None, layer, :, None], edits.values[0, :, None, layer]

        def replace(_projection: nn.Module, args: tuple) -> tuple:
            z = split_heads(model, args[0])
            return (torch.where(mask, values.to(z.dtype), z).reshape(args[0].shape), *args[1:])

        return projections[layer].register_forward_pre_hook(replace)

    edited = edits.masks.any(2).any(0).nonzero()[:, 0].tolist()  # layers
    with plain_transformers(model) as hf_model:
        if prefix.shape[1]:
            rows = prefix if everywhere else prefix[:1]
            with hooked(map(replacing, edited if everywhere else [])):
                past = hf_model.base_model(input_ids=rows, use_cache=True).past_key_values
            if not everywhere:
                past.batch_repeat_interleave(n_rows)
        with hooked(map(replacing, edited)):
            for _ in range(n_tokens):
                out = hf_model(input_ids=token, past_key_values=past, use_cache=True)
                token, past = out.logits[:, -1:].argmax(-1), out.past_key_values
                generated.append(token)
    return torch.cat(generated, dim=1)
