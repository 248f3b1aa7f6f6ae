"""Where a model goes: device, number type, and whether it fits."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch

from icl_lib.models.packaged import packaged_models
from icl_lib.models.paper_models import GIB, PaperModel, paper_models
from icl_lib.names import refuse_unknown

_BIG = 800e6  # parameters from which a model that is not in the table gets bfloat16 on a GPU
_NAMES = ("float32", "float64", "bfloat16", "float16")
MIXED = "mixed"  # see icl_lib.models.mixed


def choose_device(device: str | torch.device) -> torch.device:
    """The device of a name; "auto" is the first GPU where there is one. Raises ValueError for another name."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}; valid are auto, cpu, cuda, cuda:<n>") from None


def choose_dtype(dtype: str | torch.dtype, device: torch.device, name: str, config: Any) -> tuple[torch.dtype, bool]:
    """The number type that weights are loaded in, and whether products then become bfloat16 (`icl_lib.models.mixed`).

    "auto" on a CPU is float32, mixed for packaged models whose table says so; on a GPU it is what the table of the
    paper's models says, or goes by size. Raises ValueError for an unknown name.
    """
    if isinstance(dtype, torch.dtype):
        return dtype, False
    if dtype != "auto":
        refuse_unknown("dtype", dtype, ["auto", *_NAMES, MIXED])
    elif device.type != "cuda":
        dtype = packaged_models()[name].cpu_dtype if name in packaged_models() else "float32"
    elif name in paper_models():
        dtype = paper_models()[name].gpu_dtype
    else:
        dtype = "bfloat16" if shape_of(config).parameters > _BIG else "float32"
    return (torch.float32, True) if dtype == MIXED else (getattr(torch, dtype), False)


def refuse_too_large(device: torch.device, dtype: torch.dtype, config: Any) -> None:
    """Raise ValueError with the GiB that are needed where the device has fewer free; before anything is loaded."""
    shape, name = shape_of(config), str(dtype).removeprefix("torch.")
    needed, half, free = shape.memory_gib(name), shape.memory_gib("bfloat16"), free_gib(device)
    if free is None or needed <= free:
        return
    hint = f"dtype='bfloat16' needs {half:.1f} GiB, " if half <= free and half < needed else ""
    raise ValueError(f"it needs about {needed:.1f} GiB in {name} with its scores, {device} has {free:.1f} GiB free; "
                     f"{hint}or take a device with more memory")


def shape_of(config: Any) -> PaperModel:
    """The shape that a transformers configuration has; its parameters are an estimate, without norms and biases."""
    d_model, heads, layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
    d_mlp = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * d_model
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    mlp_matrices = 3 if config.model_type in ("llama", "qwen2", "mistral", "qwen3") else 2
    layer = 2 * d_model**2 + 2 * d_model * (d_model // heads * kv_heads) + mlp_matrices * d_model * d_mlp
    embeddings = (1 if config.tie_word_embeddings else 2) * config.vocab_size * d_model
    return PaperModel(config.model_type, layers, heads, kv_heads, d_model, d_mlp, config.vocab_size,
                      layers * layer + embeddings)


@contextmanager
def in_dtype(tensors: Iterable[torch.Tensor], dtype: torch.dtype | None) -> Iterator[None]:
    """Parameters and buffers in another number type for the time being; None leaves them as they are."""
    tensors = list(tensors)
    before = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors if dtype else ():
            tensor.data = tensor.data.to(dtype)
        yield
    finally:
        for tensor, data in zip(tensors, before, strict=True):
            tensor.data = data


def free_gib(device: torch.device) -> float | None:
    """Free memory of a GPU, or what the system could give a process; None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / GIB
    return psutil.virtual_memory().available / GIB if device.type == "cpu" else None
