"""Files of a hub model: one revision into the local cache, checked, or one line that says why not.

`python -m icl_lib.models.hub ID [REVISION]` downloads a model ahead of a run without network.
"""

import argparse
import errno
import hashlib
import json
import os
import sys
from pathlib import Path

_FILES = ["*.json", "*.txt", "*.model"]
# What else lies in the repositories: other formats in subfolders, and the same weights in a maker's own layout.
_IGNORED = ["*/*", "consolidated*"]
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TRUST = "I trust this repository"  # what a user has to say for weights that run code when they are read


def download(repository: str, revision: str | None = None) -> Path:
    """The folder of a model's revision (a commit, branch or tag; None is main) in the hub's cache, named by its commit.

    What is in the cache is not downloaded again; without network, or with `HF_HUB_OFFLINE=1`, the cache alone counts.
    Large files are compared with the SHA-256 sum that the hub gives for them, once. Pickled weights are taken
    where there are no others and the variable ICL_PICKLED_WEIGHTS has the words "I trust this repository".

    Raises ValueError in one line for a gated or unknown model, an unknown revision, no network and nothing in the
    cache, a cut connection, a wrong checksum, no safetensors, and no room on the disk.
    """
    said = os.environ.get("ICL_PICKLED_WEIGHTS")
    if said and said != TRUST:
        raise ValueError(f"ICL_PICKLED_WEIGHTS is {said!r}, expected {TRUST!r} or nothing")
    what = f"model {repository!r}" + (f" at revision {revision!r}" if revision else "")
    snapshot = _snapshot(what, repository, revision, [*_FILES, "*.safetensors"])
    if not (snapshot / "config.json").is_file():
        raise ValueError(f"{what} has no config.json; expected a model in the format of transformers")
    if absent := _absent_shards(snapshot):
        raise ValueError(f"{what} is not completely in {snapshot} (no {absent[0]}); download it once with "
                         "HF_HUB_OFFLINE=0")
    if not list(snapshot.glob("*.safetensors")):
        if said:
            snapshot = _snapshot(what, repository, revision, [*_FILES, "pytorch_model*.bin"])
        if not list(snapshot.glob("*.bin")):
            _refuse_unlisted(what, repository, revision)
        if not said or not list(snapshot.glob("*.bin")):  # they may be there from before
            raise ValueError(f"{what} has no safetensors weights, and pickled ones run code when they are read; if you "
                             f"trust who made them, set ICL_PICKLED_WEIGHTS={TRUST!r}")
    _verify(what, snapshot)
    return snapshot


def configuration_folder(repository: str, revision: str | None = None) -> Path:
    """The folder with a model's small files alone, for its shape; errors as in `download`."""
    return _snapshot(f"model {repository!r}", repository, revision, ["config.json"])


def _absent_shards(snapshot: Path) -> list[str]:
    """Files of weights that the model's index names and the cache lacks."""
    index = snapshot / "model.safetensors.index.json"
    if not index.is_file():
        return []
    shards = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()
    return sorted(name for name in set(shards) if not (snapshot / name).is_file())


def _refuse_unlisted(what: str, repository: str, revision: str | None) -> None:
    """Raise ValueError where the hub does not say which files there are: weights may be among those not downloaded."""
    import huggingface_hub as hub

    try:
        hub.model_info(repository, revision=revision)
    except Exception as error:  # as in `_snapshot`
        raise ValueError(f"{what}: no weights are in the cache: {_reason(repository, error)}") from None


def _snapshot(what: str, repository: str, revision: str | None, patterns: list[str]) -> Path:
    import huggingface_hub as hub
    from huggingface_hub.utils import disable_progress_bars, logging

    disable_progress_bars()
    logging.set_verbosity(logging.CRITICAL)  # what it tries again by itself needs no line
    options = {"revision": revision, "allow_patterns": patterns, "ignore_patterns": _IGNORED}
    try:
        return Path(hub.snapshot_download(repository, **options))
    except Exception as error:  # the hub's, httpx's and the system's errors, none of which share a class
        raise ValueError(f"{what}: {_reason(repository, error)}") from None


def _reason(repository: str, error: Exception) -> str:
    """Why a download failed and what to do, in one line."""
    import huggingface_hub as hub

    cache, page = hub.constants.HF_HUB_CACHE, f"{hub.constants.ENDPOINT}/{repository}"
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, hub.errors.GatedRepoError):
        return f"is gated: ask for access at {page}, then {log_in} to a token of that account"
    if isinstance(error, hub.errors.RevisionNotFoundError):
        return f"the hub has no such revision; its branches and tags are listed at {page}/tree/main"
    if isinstance(error, hub.errors.RepositoryNotFoundError) or status in (401, 403):
        return (f"the hub has no such model, or it is not open to you; check the id at {page}, and for a private model "
                f"{log_in}")
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return f"no room in {cache} ({error.strerror}); free some or set HF_HOME to another disk, then go on"
    if isinstance(error, hub.errors.HFValidationError):
        return "not an id of the hub; expected owner/name"
    if hub.constants.HF_HUB_OFFLINE:
        return f"is not completely in {cache}, and HF_HUB_OFFLINE=1; download it once with HF_HUB_OFFLINE=0"
    if isinstance(error, hub.errors.LocalEntryNotFoundError):
        return f"the hub at {hub.constants.ENDPOINT} does not answer and {cache} lacks it; try again later"
    text = " ".join(str(error).split())[:160]
    return (f"the download broke off ({type(error).__name__}: {text}); complete files stay in {cache}, start again to "
            "go on")


def _verify(what: str, snapshot: Path) -> None:
    """Compare large files with the SHA-256 sums that the cache names them by; remember those that are right."""
    checked = snapshot.parent.parent / "checked"
    for file in sorted(snapshot.iterdir()):
        blob = file.resolve()
        expected = blob.name
        if len(expected) != 64 or (checked / expected).exists():
            continue
        with open(blob, "rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != expected:
            file.unlink()
            blob.unlink(missing_ok=True)
            raise ValueError(f"{what}: {file.name} has the SHA-256 sum {found[:12]}..., the hub says {expected[:12]}"
                             "...; the file is removed, start again to download it once more")
        checked.mkdir(exist_ok=True)
        (checked / expected).touch()


def main() -> None:
    parser = argparse.ArgumentParser(description="Download a model of the hub into the cache.")
    parser.add_argument("repository", help="owner/name")
    parser.add_argument("revision", nargs="?", help="commit, branch or tag, such as step1000")
    given = parser.parse_args()
    try:
        found = download(given.repository, given.revision)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{found} (commit {found.name})")


if __name__ == "__main__":
    main()
