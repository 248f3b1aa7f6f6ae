"""Train one rung of the lab's ladder: `python -m lab.train RUNG [--seed K]`.

A rung is a file `lab/rungs/RUNG.yaml`. Checkpoints go to `lab/models/RUNG/seed<K>/step<N>/` as ordinary Hugging
Face folders in half precision, the training curve to `curve.csv` beside them. Step N's batch depends on seed and N
alone, so an interrupted training goes on from its last checkpoint with the batches it would have seen.
"""

import argparse
import math
import os
import shutil
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from icl_lib.data.sources import read_tasks
from icl_lib.files import whole
from lab.files import MODELS, last_checkpoint, locked, read_rung, rungs
from lab.interventions import clamp, read_intervention
from lab.text import Generator, Rows
from lab.tokenizer import FOLDER as TOKENIZER
from lab.unequal import dropped_layers, scale_weights, share_moments, without_attention
from workflow import command

RESUME = "resume.safetensors"
GRADIENT_NORM = 1.0


def new_model(shape: dict, tokenizer, seed: int) -> GPTNeoXForCausalLM:
    """A GPT-NeoX of the rung's shape with seeded random weights, float32."""
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer), hidden_size=shape["d_model"], num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"], intermediate_size=4 * shape["d_model"],
        max_position_embeddings=1024, hidden_act="gelu", use_parallel_residual=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0,
                         "partial_rotary_factor": shape["rotary"]},
        initializer_range=shape["init_std"], bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, attention_dropout=0.0, hidden_dropout=0.0,
        tie_word_embeddings=shape["tied"],
    )
    model = GPTNeoXForCausalLM(config)
    scale_weights(model, **{name: shape[name] for name in ("head_ratio", "output_scale") if name in shape})
    return model


def learning_rate(step: int, config: dict) -> float:
    """Linear warm-up, then a cosine from `lr` to a tenth of it at the last step."""
    warm = min(1.0, (step + 1) / config["warmup"])
    return config["lr"] * warm * (0.55 + 0.45 * math.cos(math.pi * step / config["steps"]))


def weighted_loss(model: GPTNeoXForCausalLM, batch: list[Rows], device: str) -> torch.Tensor:
    """Next-token loss in nats, averaged over all tokens of the batch by their weights."""
    total = sum(float(rows.weights[:, 1:].sum()) for rows in batch)
    loss = 0.0
    for rows in batch:
        tokens = torch.from_numpy(rows.tokens).to(device)
        weights = torch.from_numpy(rows.weights[:, 1:]).to(device)
        row, place = weights.nonzero(as_tuple=True)
        mask = None if rows.attention is None else torch.from_numpy(rows.attention[:, None]).to(device)
        hidden = model.gpt_neox(tokens, attention_mask=mask).last_hidden_state[row, place]
        nats = torch.nn.functional.cross_entropy(
            model.get_output_embeddings()(hidden), tokens[row, place + 1], reduction="none")
        loss = loss + (nats * weights[row, place]).sum() / total
    return loss


def new_optimizer(model: torch.nn.Module, config: dict) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices alone."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config["weight_decay"]}, {"params": plain, "weight_decay": 0.0}],
        lr=config["lr"], betas=(0.9, 0.98), fused=True)


def training_step(model, optimizer, batch: list[Rows], device: str) -> float:
    """One optimiser step on a batch; the loss before it, in nats. Raises FloatingPointError for no finite loss."""
    loss = weighted_loss(model, batch, device)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"loss is {loss.item()}")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
    optimizer.step()
    return loss.item()


def tokens_per_step(config: dict) -> int:
    """Tokens of a step's batch, padding included."""
    return sum(shape["rows"] * shape["length"] for shape in config["mixture"].values())


def save_checkpoint(model, tokenizer, optimizer, steps: list[tuple[float, float]], folder: Path) -> None:
    """Write `step<N>/` in half precision and the state to go on from, with loss and seconds of the steps until then.

    A kill leaves neither half-written.
    """
    step = len(steps)
    target, partial = folder / f"step{step}", folder / f".partial-step{step}"
    shutil.rmtree(partial, ignore_errors=True)
    # named_parameters holds tied weights once, as the files do
    half = {name: p.detach().to(torch.float16) for name, p in model.named_parameters()}
    model.save_pretrained(partial, state_dict=half)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)

    state = {"steps": torch.tensor(steps, dtype=torch.float64).reshape(-1, 2)}
    for name, parameter in model.named_parameters():
        state[f"model.{name}"] = parameter.detach()
        state |= {f"{key}.{name}": value for key, value in optimizer.state[parameter].items()}
    save_file(state, folder / f".{RESUME}")
    os.replace(folder / f".{RESUME}", folder / RESUME)


def resume(model, optimizer, folder: Path) -> list[tuple[float, float]]:
    """Put the saved state back into model and optimiser; loss and seconds of the steps until then, none without one.

    Raises ValueError for a state without them.
    """
    path = folder / RESUME
    if not path.is_file():
        return []
    state = load_file(path)
    if "steps" not in state:
        raise ValueError(f"{path} was left by an earlier trainer, which this one cannot go on from: remove {folder} to "
                         "train anew")
    for name, parameter in model.named_parameters():
        parameter.data.copy_(state[f"model.{name}"])
        if f"step.{name}" in state:
            optimizer.state[parameter] = {
                key: state[f"{key}.{name}"].to(parameter.device) for key in ("exp_avg", "exp_avg_sq", "step")}
    return [(loss, seconds) for loss, seconds in state["steps"].tolist()]


def training_curve(steps: list[tuple[float, float]], config: dict) -> pd.DataFrame:
    """Mean loss over every `log_every` steps and up to the last; of the tokens how many there were, and a second."""
    n_tokens, rows = tokens_per_step(config), []
    for start in range(0, len(steps), config["log_every"]):
        loss, seconds = np.transpose(steps[start : start + config["log_every"]])
        done = start + len(loss)
        if len(loss) == config["log_every"] or done == config["steps"]:
            rows.append((done, loss.mean(), done * n_tokens, round(len(loss) * n_tokens / seconds.sum())))
    return pd.DataFrame(rows, columns=["step", "loss", "tokens", "tokens_per_second"])


def train(rung: str, *, seed: int = 0, models: Path = MODELS, config: dict | None = None) -> Path:
    """Train a rung from its last saved state to its last step, where it has not got there; the folder with checkpoints.

    Raises ValueError for a seed below 0 and for a model that another process trains.
    """
    config, folder = config or read_rung(rung), models / rung / f"seed{seed}"
    if seed < 0:
        raise ValueError(f"seed {seed}: expected a whole number from 0")
    with locked(folder.with_name(f".seed{seed}.lock"), wait=False) as mine:
        if not mine:
            raise ValueError(f"{folder} is being trained by another process: wait until that has ended, or end it")
        if (folder / f"step{config['steps']}").is_dir() and not (folder / RESUME).is_file():
            print(f"{folder} is finished, nothing is trained: `make lab RUNG={rung} SEED={seed}` trains it again to "
                  "compare; to replace it remove it")
        else:
            _train(rung, seed, folder, config)
    return folder


def _train(rung: str, seed: int, folder: Path, config: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
    unread = config.get("leave_out", [])
    tasks = {n: t for n, t in read_tasks().items() if not any(fnmatch(n, pattern) for pattern in unread)}
    intervention = read_intervention(config)
    generator = Generator(tokenizer, tasks, repeats=intervention.repeats)
    model = new_model(config["shape"], tokenizer, seed).to(device)
    clamp(model, intervention.heads)
    optimizer = new_optimizer(model, config)
    steps = resume(model, optimizer, folder)
    if not steps:
        save_checkpoint(model, tokenizer, optimizer, steps, folder)

    left = range(len(steps), config["steps"])
    bar = tqdm(left, initial=len(steps), total=config["steps"], desc=f"{rung} seed {seed}", disable=None)
    for step in bar:
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        batch = generator.batch(np.random.default_rng([seed, step]), config["mixture"])
        batch = intervention.apply(batch, generator, config["mixture"], rng=np.random.default_rng([seed, step, 1]),
                                   progress=step / config["steps"])
        left_out = dropped_layers(config.get("attention_drop"), config["shape"]["layers"], step=step,
                                  rng=np.random.default_rng([seed, step, 2]))
        try:
            with without_attention(model, left_out):
                loss = training_step(model, optimizer, batch, device)
        except FloatingPointError as error:
            raise FloatingPointError(f"rung {rung} seed {seed}: {error} at step {step}; lower its lr") from None
        if config.get("shared_moments"):
            share_moments(model, optimizer)
        steps.append((loss, time.perf_counter() - began))
        done = step + 1
        if done % config["log_every"] == 0:
            bar.set_postfix(loss=f"{np.mean(steps[-config['log_every']:], axis=0)[0]:.3f}")
        if done in config["checkpoints"] or done == config["steps"]:
            with whole(folder / "curve.csv") as partial:
                training_curve(steps, config).to_csv(partial, index=False)
            save_checkpoint(model, tokenizer, optimizer, steps, folder)
    (folder / RESUME).unlink(missing_ok=True)


@command
def main(given: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rung", nargs="?", help="default: every rung that is not trained yet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", type=Path, default=MODELS, help="folder for the checkpoints (default: lab/models)")
    arguments = parser.parse_args(given)
    disable_progress_bar()  # of writing files; training has its own
    seed, models = arguments.seed, arguments.models
    chosen = [arguments.rung] if arguments.rung else [
        rung for rung in rungs() if not last_checkpoint(rung, seed, models).is_dir()]
    for rung in chosen:
        print(f"checkpoints: {train(rung, seed=seed, models=models)}")


if __name__ == "__main__":
    sys.exit(main())
