"""Finished parts of long work in a folder, so that interrupted work goes on where it stopped."""

import hashlib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from icl_lib.files import whole

# the code that the saved numbers come from: after a change of it they are computed anew
_CODE = ("forward/*.py", "scores/function_vectors.py", "metrics/*.py", "saved.py")


class SavedResults:
    """Results of one model, a safetensors file each, named by a fingerprint of what they depend on.

    That is: the model's weights, buffers and configuration, its dtype and kind of device, the versions of torch and
    transformers, the text of the engine's modules (`_CODE`), and what is given to `recall`. Batch size and threads are
    not in it: they change rounding at most. With `folder` None nothing is saved. Raises ValueError if `folder` is a
    file.
    """

    def __init__(self, folder: str | Path | None, model: nn.Module):
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"save_to {str(folder)!r} is a file, expected a folder; give another path")
        hf_model = model.original_model
        tensors = [*hf_model.named_parameters(), *hf_model.named_buffers()]
        code = [path.read_text(encoding="utf-8") for name in _CODE for path in sorted(Path(__file__).parent.glob(name))]
        versions = [importlib.metadata.version(package) for package in ("torch", "transformers")]
        self.model = fingerprint(
            code, versions, hf_model.config.to_json_string(use_diff=False), tensors[0][1].device.type,
            *(part for named in tensors for part in named))

    def recall(self, compute: Callable[[], dict[str, Tensor]], *made_from: Any) -> dict[str, Tensor]:
        """The tensors that `compute` gives, read if they were saved under `made_from`, else computed and saved.

        A file that is truncated, altered or from elsewhere is computed anew. The tensors are on the CPU.
        """
        if self.folder is None:
            return compute()
        key = fingerprint(self.model, *made_from)
        path = self.folder / f"{key}.safetensors"
        if (found := _read(path, key)) is not None:
            return found
        tensors = {name: tensor.cpu().contiguous() for name, tensor in compute().items()}
        with whole(path) as temporary:
            save_file(tensors, temporary, metadata=_label(key, tensors))
        return tensors


def fingerprint(*parts: Any) -> str:
    """SHA-256 over strings, numbers, lists of these and tensors (type, shape and bits), as 64 hex digits."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            # a clone: a dimension of one element may have any stride and still count as contiguous
            bits = part.detach().cpu().flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8)
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            digest.update(bits.numpy())
        else:
            text = repr(part).encode()
            digest.update(f"{type(part).__name__}{len(text)}:".encode())
            digest.update(text)
    return digest.hexdigest()


def _read(path: Path, key: str) -> dict[str, Tensor] | None:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (SafetensorError, OSError):
        return None
    return tensors if metadata == _label(key, tensors) else None


def _label(key: str, tensors: dict[str, Tensor]) -> dict[str, str]:
    # one entry only: safetensors writes several in no fixed order
    content = fingerprint(*(part for name in sorted(tensors) for part in (name, tensors[name])))
    return {"icl_lib": f"{key} {content}"}
