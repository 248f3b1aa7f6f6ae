"""Few-shot metrics and token losses, with and without edited heads."""

from collections.abc import Mapping, Sequence
from itertools import chain

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from icl_lib.data.tasks import Prompt
from icl_lib.forward.edits import Edit
from icl_lib.forward.encoded import EncodedPrompt, TokenBatch, encode_prompts, refuse_nan, refuse_unknown_tokens
from icl_lib.forward.passes import device_of
from icl_lib.forward.readout import Readout
from icl_lib.forward.run import RUN_TOKENS, run, run_prompts
from icl_lib.metrics.generation import generated_f1s

PLACES = (50, 500)  # the losses whose difference is taken


def answer_metrics(
    model: nn.Module, prompts: Mapping[str, Sequence[Prompt | EncodedPrompt]],
    edits: Mapping[str, Edit | Mapping[str, Edit] | None] | None = None, *, f1: bool = False, reach_back: bool = False,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Few-shot metrics per prompt: what makes "few-shot ICL accuracy" (section 4).

    One row per edit, task and prompt, with `edit, task, prompt, exact_match, first_token_correct,
    first_token_probability`. `exact_match`: greedy decoding gives the whole answer, every token of it (checked by
    feeding the answer: it is the greedy continuation if each token is the likeliest one). With `f1` also
    `generated_f1`, what the released code calls accuracy: the F1 on five greedy tokens (`icl_lib.metrics.generation`;
    `reach_back` as there). `edits`: name to an edit, or to an edit per task, or to None for the unedited model (the
    default). An edit at the last position also acts where answer tokens are fed, as when they are generated. Edits
    share what they leave alone. BOS as in the prompts' text; nothing is averaged. Errors as in `fv_scores`, and for an
    edit that lacks a task.
    """
    edits = {"none": None} if edits is None else edits
    encoded = {task: encode_prompts(model, task_prompts, task) for task, task_prompts in prompts.items()}
    for prompt in chain.from_iterable(encoded.values()):
        prompt.refuse_too_long(model, len(prompt.answer) - 1)
    for name, edit in edits.items():
        if isinstance(edit, Mapping) and (missing := [task for task in prompts if task not in edit]):
            raise ValueError(f"edit {name!r} has nothing for task {missing[0]!r}")
    # edits that are the same for every prompt let short tasks fill a batch together
    alike = all(edit is None or isinstance(edit, Edit) and len(edit.values) == 1 for edit in edits.values())
    frames = []
    for tasks in [list(prompts)] if alike else [[task] for task in prompts]:
        of_tasks = [prompt for task in tasks for prompt in encoded[task]]
        chosen = [edit[tasks[0]] if isinstance(edit, Mapping) else edit for edit in edits.values()]
        readouts = answer_readouts(model, of_tasks, chosen, batch_size=batch_size)
        values = {
            "exact_match": torch.stack([r.correct.all(1) for r in readouts]),
            "first_token_correct": torch.stack([r.correct[:, 0] for r in readouts]),
            "first_token_probability": torch.stack([r.log_probability[:, 0].double().exp() for r in readouts]),
        }
        if f1:
            values["generated_f1"] = generated_f1s(model, of_tasks, chosen, reach_back=reach_back)
        places = [(name, prompt.task, prompt.index) for prompt in of_tasks for name in edits]
        frames.append(pd.DataFrame(places, columns=["edit", "task", "prompt"]).assign(
            **{name: of_prompts.flatten().numpy() for name, of_prompts in values.items()}))
    return pd.concat(frames, ignore_index=True)


def answer_readouts(
    model: nn.Module, encoded: Sequence[EncodedPrompt], edits: Sequence[Edit | None], *, batch_size: int = 16
) -> list[Readout]:
    """For each prompt what the model says about its answer's tokens under each edit (`[edit, token]`); see `run`.

    Raises ValueError for values of another number of prompts and, naming task and prompt, for NaN logits.
    """
    for edit in edits:
        if edit is not None and len(edit.values) not in (1, len(encoded)):
            raise ValueError(f"an edit has values for {len(edit.values)} prompts, there are {len(encoded)}")
    readouts: list[Readout | None] = [None] * len(encoded)
    for n in sorted({len(prompt.answer) for prompt in encoded}):
        same = [i for i, prompt in enumerate(encoded) if len(prompt.answer) == n]
        fed = [encoded[i].tokens + encoded[i].answer[:-1] for i in same]
        targets = torch.tensor([encoded[i].answer for i in same])
        found = run_prompts(model, fed, targets, edits, batch_size=batch_size, rows=same)
        refuse_nan(found.log_probability, [encoded[i] for i in same], "NaN logits")
        for i, *of_prompt in zip(same, found.log_probability, found.correct, strict=True):
            readouts[i] = Readout(*of_prompt)
    return readouts


def label_metrics(
    model: nn.Module, encoded: Sequence[EncodedPrompt], labels: Sequence[str], edits: Sequence[Edit | None],
    *, batch_size: int = 16,
) -> dict[str, Float[Tensor, "edit prompt"]]:
    """Metrics of a task whose answers are among a few labels, from the first token of each label.

    `label_correct`: the answer is the likeliest of the labels (Crosbie & Shutova 2024); `first_token_correct` and
    `first_token_probability` as in `answer_metrics`. All labels are read in one pass. Raises ValueError for labels that
    begin with the same token, for an answer that is none of them and, naming task and prompt, for NaN logits.
    """
    written = [Prompt(encoded[0].task, f" {label}") for label in labels]
    first = [label.answer[0] for label in encode_prompts(model, written, encoded[0].task)]
    answers = [prompt.answer[0] for prompt in encoded]
    if len(set(first)) < len(first) or not set(answers) <= set(first):
        raise ValueError(f"task {encoded[0].task!r}: expected every answer to be one of {', '.join(labels)} and "
                         "these to begin with different tokens")
    targets = torch.tensor(first).expand(len(encoded), -1)
    found = run_prompts(model, [p.tokens for p in encoded], targets, edits, batch_size=batch_size, at_last=True)
    refuse_nan(found.log_probability, encoded, "NaN logits")
    rows, chosen = torch.arange(len(encoded)), torch.tensor([first.index(answer) for answer in answers])
    return {"label_correct": (found.log_probability.argmax(2).T == chosen).double(),
            "first_token_correct": found.correct[rows, :, chosen].T.double(),
            "first_token_probability": found.log_probability[rows, :, chosen].T.exp()}


def token_losses(
    model: nn.Module, tokens: Int[Tensor, "row pos"], edit: Edit | None = None, *, batch_size: int | None = None
) -> Float[Tensor, "row loss"]:
    """The loss of every token but the first, in nats, by position (section 2, token-loss difference).

    Entry `i` of a row is -log P(token i+1 | tokens 0..i); token 0 is BOS where the rows have one.
    Nothing is averaged. `edit`: heads replaced meanwhile, with values for all rows or for each; at the
    last position each loss is read with the heads replaced where it is read from, and nothing before.
    Raises ValueError for rows longer than the context or of one token, and naming the row for NaN.
    """
    return edited_token_losses(model, tokens, [edit], batch_size=batch_size)[0]


def edited_token_losses(
    model: nn.Module, tokens: Int[Tensor, "row pos"], edits: Sequence[Edit | None], *, at: Sequence[int] | None = None,
    batch_size: int | None = None,
) -> Float[Tensor, "edit row loss"]:
    """`token_losses` under several edits, which share what they leave alone; `at`: the losses wanted, in order."""
    n_rows, n_pos = tokens.shape
    if not 2 <= n_pos <= model.cfg.n_ctx:
        raise ValueError(f"rows of {n_pos} tokens: expected 2 to the context of {model.cfg.n_ctx}")
    refuse_unknown_tokens(model, int(tokens.max()), "the rows of tokens")
    at = torch.arange(n_pos - 1) if at is None else torch.as_tensor(at)
    n_fed = int(at.max()) + 1
    n_apart = len(at) * sum(edit is not None and edit.positions == "last" for edit in edits)
    weight, device = next(model.original_model.parameters()), device_of(model)
    losses = torch.empty(len(edits), n_rows, len(at), dtype=torch.promote_types(weight.dtype, torch.float32))
    for rows in torch.arange(n_rows).split(batch_size or max(1, RUN_TOKENS // max(n_fed, n_apart))):
        part = tokens[rows].to(device)
        batch = TokenBatch(part[:, :n_fed], torch.full((len(rows),), n_fed, device=device), rows.tolist())
        readout = run(model, batch, edits, part[:, at + 1], at=at.to(device).expand(len(rows), -1))
        losses[:, rows] = -readout.log_probability.transpose(0, 1).to(losses)
    if losses.isnan().any():
        raise ValueError(f"row {int(losses.isnan().any(2).any(0).nonzero()[0])} of the tokens: NaN loss")
    return losses


def token_loss_differences(
    model: nn.Module, tokens: Int[Tensor, "row pos"], edits: Sequence[Edit | None], *, windows: Sequence[int] = (0,)
) -> Float[Tensor, "window edit row"]:
    """Loss at the 50th token minus loss at the 500th, in nats, per row (section 2; Olsson et al. 2022).

    Indices 50 and 500 of the shifted losses, as evaluate_icl_score.py takes them: the losses on tokens 51 and 501 with
    BOS as token 0. Positive where the later token is predicted better. With a window each is the mean over that many
    positions to either side, which the paper does not do: the loss of one token is noisy, and short runs have few
    documents. Raises ValueError for rows too short for the window and as `token_losses`.
    """
    widest, n_losses = max(windows), tokens.shape[1] - 1
    if not 0 <= widest <= 50:
        raise ValueError(f"window {widest!r}: expected a whole number of positions from 0 to 50")
    if n_losses < 501 + widest:
        raise ValueError(
            f"token-loss difference with window {widest} needs {502 + widest} tokens with BOS, "
            f"these rows have {n_losses + 1}; give longer documents or a smaller window")
    at = [place + shift for place in PLACES for shift in range(-widest, widest + 1)]
    losses = edited_token_losses(model, tokens, edits, at=at).double().unflatten(2, (2, -1))
    early, late = torch.stack([losses[..., widest - n : widest + n + 1].mean(3) for n in windows]).unbind(3)
    return early - late
