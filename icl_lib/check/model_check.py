"""Every model proves itself once on loading: the passes used here against transformers' own forward pass.

Heads' outputs, sweeps over edits, token losses and attention patterns of two short random sequences are held against
the eager pass (`eager_reference`). First with transformers' attention functions, which let prompts be shared; where
these are wrong, with the architecture's own attention, prompt by prompt; where that is wrong too the model is refused.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from icl_lib.check import eager_reference as eager
from icl_lib.forward.edits import Edit
from icl_lib.forward.passes import device_of, last_head_outputs
from icl_lib.forward.run import run_prompts
from icl_lib.metrics.evaluate import edited_token_losses
from icl_lib.scores.induction import reduced_patterns

# Nats, for log-probabilities no lower than -10; proportions of their size for heads' outputs, and patterns.
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.25, torch.bfloat16: 1.0}
_SIZES = ("num_attention_heads", "num_hidden_layers", "hidden_size", "vocab_size")
_EDIT_SIZE = 4  # of the values put in, in standard deviations of heads' outputs


@dataclass(frozen=True)
class Checked:
    """How a model proved itself: the largest difference found, in nats, and by which attention."""

    difference: float
    attention: str  # "shared" or "own"
    uncovered: str  # what was not tried, in words

    def __str__(self) -> str:
        text = f"within {self.difference:.0e} nats of transformers' eager pass, {self.attention} attention"
        return f"{text}; not tried: {self.uncovered}" if self.uncovered else text


def refuse_without_heads(config: Any) -> None:
    """Raise ValueError for a configuration that is not that of a language model with attention heads."""
    missing = [name for name in _SIZES if not isinstance(getattr(config, name, None), int)]
    if missing:
        kind = ", ".join(config.architectures or [config.model_type])
        hint = "; a model of text and images, give its language model alone" if hasattr(config, "text_config") else ""
        raise ValueError(f"architecture {kind} is refused: its config.json has no {missing[0]}{hint}")


@torch.inference_mode()
def eager_log_probabilities(hf_model: nn.Module) -> list[Tensor]:
    """What a transformers model says about the probe sequences, before anything is put around it: `[pos, vocab]` each.

    Raises ValueError in one line where it fails, and where transformers' own attentions give different numbers.
    """
    config = hf_model.config
    before = config._attn_implementation
    found: dict[str, list[Tensor]] = {}
    try:
        with eager.narrow_windows(config), eager.widened(hf_model):
            for name in dict.fromkeys(("eager", before)):
                config._attn_implementation = name
                found[name] = [
                    eager.log_softmax(hf_model(input_ids=tokens.to(hf_model.device), use_cache=False).logits)[0]
                    for tokens in eager.probe_sequences(config)]
        differences = _Differences(found["eager"])
        for of_eager, other in zip(found["eager"], found[before], strict=True):
            differences.add(f"transformers' {before} attention", other, of_eager)
    except eager.Refused as error:
        raise refusal(hf_model, line_of(error)) from None
    except Exception as error:  # an architecture's modules raise errors of every kind
        raise refusal(hf_model, f"transformers' own forward pass fails ({line_of(error)})") from None
    finally:
        config._attn_implementation = before
    return found["eager"]


def prove(model: nn.Module, expected: list[Tensor]) -> None:
    """Set the model's `own_attention` and `checked`, or raise ValueError in one line that says what differs.

    `expected`: `eager_log_probabilities` of the model before the bridge.
    """
    reasons = [_lacks(model)]
    for own in () if reasons[0] else (False, True):
        model.own_attention = own
        try:
            hf_model = model.original_model
            with eager.narrow_windows(hf_model.config), eager.widened(hf_model), torch.inference_mode():
                model.checked = _compared(model, expected)
            return
        except Exception as error:  # an architecture's modules raise errors of every kind when called otherwise
            reasons.append(line_of(error))
    raise refusal(model.original_model, reasons[-1])


def _lacks(model: nn.Module) -> str:
    """What a bridge has no part for, in words."""
    for layer, block in enumerate(model.blocks):
        if not hasattr(block, "attn") or not hasattr(block.attn, "o"):
            return f"layer {layer} has no attention with an output projection, so no heads to replace"
    norm = getattr(model, "ln_final", None)
    has_norm = norm is not None and norm.original_component is not None
    return "" if has_norm else "it has no norm between its last layer and its logits"


def refusal(hf_model: nn.Module, reason: str) -> ValueError:
    """The error that refuses a model, in one line."""
    return ValueError(f"architecture {type(hf_model).__name__} is refused: {reason}")


def line_of(error: Exception, length: int = 160) -> str:
    """An error's text in one line, the beginning of it."""
    if "Could not determine supported architecture" in str(error):
        return "it has no adapter for this architecture"  # the rest is a list of all that it has
    return " ".join(str(error).split())[:length] or type(error).__name__


def _compared(model: nn.Module, expected: list[Tensor]) -> Checked:
    config, device = model.original_model.config, device_of(model)
    sequences = [tokens.to(device) for tokens in eager.probe_sequences(config)]
    ids = [tokens[0].tolist() for tokens in sequences]
    z = last_head_outputs(model, ids)
    masks, values, found = _masks(model).to(device), _values(z[:1]), _Differences(expected)
    # every mask at all positions; one head a layer and one head at the last two; one head a layer at one position
    rows, everywhere, at_last, apart = masks[[0, 1, 2, 3, 1, 2, 1, 1]], [0, 1, 2, 3], [0, 4, 5], [6, 7]
    references = []
    for tokens, wanted in zip(sequences, expected, strict=True):
        from_end = torch.arange(-tokens.shape[1], 0, device=device)
        places = torch.stack([from_end < 0] * 4 + [from_end >= -2] * 2 + [from_end == -4, from_end == -2])
        references.append(eager.reference(model, tokens, rows, places, values))
        found.add("the forward pass in the bridge", references[-1].log_probabilities[0], wanted)
    if all(torch.allclose(r.log_probabilities[1], r.log_probabilities[0], atol=found.limit) for r in references):
        raise eager.Refused("replacing heads' outputs at the output projection changes nothing")

    targets = torch.stack([r.log_probabilities[0, -2:].argmax(-1) for r in references])
    edits = [Edit(mask, values) for mask in masks[:3]] + [Edit(mask, values, "all") for mask in masks]
    readout = run_prompts(model, ids, targets, edits, batch_size=2).log_probability.to(device)
    for of_edits, own, target in zip(readout, references, targets, strict=True):
        said = _said(own.log_probabilities[:, -2:], target)
        found.add("the sweep over edits at the last position", of_edits[:3], said[at_last])
        found.add("the sweep over edits at all positions", of_edits[3:], said[everywhere])
    n, said = len(ids[0]), _said(references[0].log_probabilities[:, :-1], sequences[0][0, 1:])
    for positions, unedited, at, wanted in (("all", [None], None, said[:2]),
                                            ("last", [], [n - 4, n - 2], said[apart, [n - 4, n - 2]][None])):
        losses = edited_token_losses(model, sequences[0], [*unedited, Edit(masks[1], values, positions)], at=at)[:, 0]
        found.add(f"token losses under an edit at {positions} positions", losses.to(device), -wanted)
    # relative to their size, in the units of a log-probability of one nat
    wanted = torch.stack([own.z[:, -1] for own in references])
    found.add("heads' outputs", z / wanted.std(), wanted / wanted.std())
    patterns = reduced_patterns(model, sequences[0], lambda pattern: pattern[0])
    uncovered = _compare_patterns(torch.stack(patterns), references[0].patterns, config, found)
    if values.dtype in (torch.float16, torch.bfloat16):
        uncovered = "; ".join([*filter(None, [uncovered]), "float32, for which there is no room"])
    return Checked(found.worst, "own" if model.own_attention else "shared", uncovered)


def _compare_patterns(patterns: Tensor, wanted: Tensor | None, config: Any, found: "_Differences") -> str:
    """Compare attention patterns; in words what neither they nor windows let be tried."""
    if wanted is None:
        return "attention patterns, which the architecture does not give"
    found.add("attention patterns", patterns, wanted)
    n_pos = patterns.shape[-1]
    beyond = torch.ones(n_pos, n_pos, dtype=torch.bool, device=wanted.device).tril(-eager.WINDOW)
    seen = wanted[..., beyond].flatten(1).amax(1) > 0
    names = [name for name in eager.WINDOWS if isinstance(getattr(config, name, None), int)]
    return "" if not names or not bool(seen.all()) else f"{names[0]}, which hides nothing in a prompt as it is set"


class _Differences:
    """The largest difference so far; one beyond the rounding of log-probabilities like those expected is refused."""

    def __init__(self, expected: list[Tensor]):
        lowest = max(-float(log_probabilities.min()) for log_probabilities in expected)
        self.limit, self.worst = _TOLERANCE[expected[0].dtype] * max(1.0, lowest / 10), 0.0

    def add(self, what: str, actual: Tensor, expected: Tensor) -> None:
        if actual.shape != expected.shape:
            raise eager.Refused(f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
        difference = float((actual.double() - expected.double()).abs().max())
        if not difference <= self.limit:  # NaN too
            raise eager.Refused(f"{what} differs by {difference:.2g} from transformers' eager forward pass, where "
                                f"rounding is {self.limit:.0e}")
        self.worst = max(self.worst, difference)


def _masks(model: nn.Module) -> Bool[Tensor, "row layer head"]:
    """No head; one in each layer; one in the middle; one in the last layer."""
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    one = torch.arange(n_heads) == (torch.arange(n_layers) % n_heads)[:, None]
    layer = torch.arange(n_layers)[:, None]
    return torch.stack([one & False, one, one & (layer == n_layers // 2), one & (layer == n_layers - 1)])


def _values(z: Float[Tensor, "1 layer head d_head"]) -> Float[Tensor, "1 layer head d_head"]:
    """What heads are replaced by: noise larger than their outputs, so that each edit shows."""
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
    return noise.to(z) * z.std(dim=(2, 3), keepdim=True) * _EDIT_SIZE


def _said(log_probabilities: Float[Tensor, "row pos vocab"], tokens: Int[Tensor, "pos"]) -> Float[Tensor, "row pos"]:
    """What each row says of the one token asked for at each position."""
    return log_probabilities.gather(-1, tokens.expand(len(log_probabilities), -1)[..., None])[..., 0]
