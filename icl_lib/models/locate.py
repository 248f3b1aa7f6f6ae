"""Models by name: where their files are, which checkpoints they have, how large they are; nothing is loaded."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from icl_lib.models.packaged import packaged_models
from icl_lib.models.paper_models import paper_models, published_steps
from icl_lib.models.quiet import quiet
from icl_lib.names import size_of, unknown

LAB_MODELS = Path(__file__).resolve().parents[2] / "lab" / "models"


def locate(name_or_path: str | Path, step: int | None = None) -> tuple[str, str | None]:
    """Where a model's files are: a folder, a packaged model's name, or a hub id with its revision.

    Nothing is fetched. Errors as in `load_model`.
    """
    name = str(name_or_path)
    if step is not None and (isinstance(step, bool) or not isinstance(step, int) or step < 0):
        raise ValueError(f"step {step!r} of model {name!r}: expected a whole number from 0, or None")
    if folder := _folder(name):
        return str(_step_folder(name, folder, step)), None
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"model folder {name!r} does not exist")
    if name in packaged_models():
        _check_step(name, step, [])
        return name, None
    if "/" not in name:
        raise unknown("model", name, _known_models())
    if step is None:
        own = paper_models().get(name)
        return name, None if own is None or own.revision == "main" else own.revision
    if known := published_steps(name):
        _check_step(name, step, known)
    return name, f"step{step}"


def files_sum(model: str, step: int) -> str:
    """The SHA-256 sum of a local model's files, "" for other models and where it is gone; `step` -1: no checkpoint."""
    try:
        folder = Path(locate(model, None if step < 0 else step)[0])
    except (ValueError, OSError):
        return ""
    files = [path for path in sorted(folder.glob("*")) if path.suffix in (".safetensors", ".json", ".txt", ".model")]
    return sum_of(files)


def sum_of(files: Iterable[str | Path]) -> str:
    """The SHA-256 sum over the names and contents of files, "" for none."""
    lines = []
    for path in files:
        with open(path, "rb") as file:
            lines.append(f"{Path(path).name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else ""


def _folder(name: str) -> Path | None:
    """The folder of a local model or a lab model (`lab-450k`, `lab-450k-seed1`), None for others."""
    if Path(name).is_dir():
        return Path(name)
    if not name.startswith("lab") or "/" in name:  # labml/x is an id of the hub
        return None
    size, _, seed = name.partition("-seed")
    folder = LAB_MODELS / size / f"seed{seed or 0}"
    if not any(folder.glob("step*")):  # of a model without weights its training curve may be there
        raise unknown("model", name, _known_models())
    return folder


def steps_of(name_or_path: str | Path) -> list[int]:
    """The checkpoints of a model, as optimiser steps in rising order; empty where there are none.

    For hub ids only the published list of Pythia is known without asking the hub. Errors as in `load_model`.
    """
    if folder := _folder(str(name_or_path)):
        return _steps_in(folder)
    locate(name_or_path)  # refuses what is no model
    return published_steps(str(name_or_path))


def count_parameters(name_or_path: str | Path, step: int | None = None) -> int:
    """Parameters of a model without its embeddings (input, position, output), from its configuration alone.

    The size that models are compared by; nothing but the configuration is read, of a lab model that of any of its
    seeds, so that this one's weights need not be here. Errors as in `load_model`.
    """
    name = str(name_or_path)
    if name.startswith("lab-") and (alike := sorted(LAB_MODELS.glob(f"{size_of(name)}/seed*/step*"))):
        name, step = str(alike[0]), None
    source, revision = locate(name, None if step is None or step < 0 else step)
    if source in packaged_models():
        return packaged_models()[source].parameters
    import torch

    if not Path(source).is_dir():
        from icl_lib.models.hub import configuration_folder

        source = str(configuration_folder(source, revision))
    with quiet():
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    return model.base_model.num_parameters(exclude_embeddings=True)  # what is above the base model is the output


def _known_models() -> list[str]:
    folders = sorted({step.parent for step in LAB_MODELS.glob("*/seed*/step*")})
    lab = [f"{folder.parent.name}-{folder.name}".removesuffix("-seed0") for folder in folders]
    return lab + list(packaged_models()) + list(paper_models())


def _steps_in(folder: Path) -> list[int]:
    found = (re.fullmatch(r"step(\d+)", child.name) for child in folder.iterdir() if child.is_dir())
    return sorted(int(match[1]) for match in found if match)


def _step_folder(name: str, folder: Path, step: int | None) -> Path:
    steps = _steps_in(folder)
    _check_step(name, step, steps)
    if step is None and steps and not (folder / "config.json").is_file():
        step = steps[-1]
    folder = folder if step is None else folder / f"step{step}"
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"model {name!r}{at_step(step)}: the folder holds no config.json with *.safetensors")
    return folder


def _check_step(name: str, step: int | None, known: list[int]) -> None:
    if step is not None and step not in known:
        close = sorted(sorted(known, key=lambda s: abs(s - step))[:4])
        has = f"nearest steps: {', '.join(map(str, close))}" if close else "it has no step<N> checkpoints"
        raise ValueError(f"model {name!r} has no step {step}; {has}")


def at_step(step: int | None) -> str:
    return "" if step is None else f" at step {step}"
