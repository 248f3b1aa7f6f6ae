"""The hub's own client, unpatched, against a local server: what downloads, and what is refused in one line."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys

import pytest
import yaml
from safetensors.torch import load_file, save_file

from icl_lib.models.hub import TRUST
from tests.conftest import GOLDEN
from tests.support.standin.server import commit_of, serve

ROOT = GOLDEN.parents[1]
SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub of one model with two revisions and main, and copies of it with something wrong."""
    folder = tmp_path_factory.mktemp("hub")
    faults = {f"wrong/{fault}": fault for fault in ("gated", "private", "cut", "cut_once", "corrupt")}
    for name in ("fine/neox", "wrong/pickled", *faults):
        for revision in ("main", "step1000"):
            shutil.copytree(GOLDEN / "gpt_neox" / "model", folder / "models" / name / revision)
    marked = folder / "models" / "fine" / "neox" / "step1000" / "config.json"
    marked.write_text(marked.read_text() + "\n")  # so that its commit is another
    for revision in ("main", "step1000"):
        weights = folder / "models" / "wrong" / "pickled" / revision / "model.safetensors"
        weights.rename(weights.with_name("pytorch_model.bin"))
    shards = folder / "models" / "fine" / "sharded" / "main"
    shutil.copytree(GOLDEN / "gpt_neox" / "model", shards)
    weights = load_file(shards / "model.safetensors")
    (shards / "model.safetensors").unlink()
    of = {name: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, name in enumerate(sorted(weights))}
    for shard in SHARDS:
        save_file({name: weights[name] for name in of if of[name] == shard}, shards / shard, {"format": "pt"})
    (shards / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": of}))
    (folder / "faults.yaml").write_text(yaml.safe_dump(faults))
    with serve(folder) as address:
        yield folder, address


def download(hub, cache, *arguments, limit=None, **variables):
    """`icl_lib/models/hub.py` in a process of its own: exit status, output and error."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "ICL_"))}
    env |= {"HF_HOME": str(cache), "HF_ENDPOINT": hub[1], "HF_HUB_OFFLINE": "0"} | variables
    few = None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    # -P: as a file, without the package, which imports torch
    done = subprocess.run([sys.executable, "-P", "icl_lib/models/hub.py", *arguments], cwd=ROOT, env=env,
                          capture_output=True, text=True, timeout=120, preexec_fn=few)
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def test_a_revision_is_downloaded_once_and_then_serves_offline(hub, tmp_path):
    status, out, err = download(hub, tmp_path, "fine/neox", "step1000")
    commit = commit_of(hub[0] / "models" / "fine" / "neox" / "step1000")
    assert (status, err) == (0, "") and out.endswith(f"(commit {commit})"), err
    assert download(hub, tmp_path, "fine/neox", "step1000", HF_HUB_OFFLINE="1")[:2] == (0, out)
    gone = ("folder", "http://127.0.0.1:9")  # nothing answers there
    assert download(gone, tmp_path, "fine/neox", "step1000")[:2] == (0, out)
    assert download(hub, tmp_path, "fine/neox")[1] != out  # main is another commit
    assert download(hub, tmp_path, "fine/neox", commit)[1] == out


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (["fine/neox", "step7"], {}, ["no such revision", "'step7'", "/fine/neox/tree/main"]),
        (["wrong/gated"], {}, ["'wrong/gated': is gated", "ask for access", "HF_TOKEN"]),
        (["wrong/private"], {}, ["'wrong/private'", "not open to you", "HF_TOKEN"]),
        (["nobody/nothing"], {}, ["'nobody/nothing'", "no such model"]),
        (["a/b/c"], {}, ["'a/b/c'", "owner/name"]),
        (["wrong/corrupt"], {}, ["model.safetensors", "SHA-256", "start again"]),
        (["wrong/cut"], {}, ["'wrong/cut'", "broke off", "start again"]),
        (["wrong/pickled"], {}, ["no safetensors", "ICL_PICKLED_WEIGHTS='I trust this repository'"]),
        (["wrong/pickled"], {"ICL_PICKLED_WEIGHTS": "yes"}, ["'yes'", TRUST]),
        (["fine/neox"], {"HF_HUB_OFFLINE": "1"}, ["not completely in", "HF_HUB_OFFLINE=0"]),
        (["fine/neox"], {"HF_ENDPOINT": "http://127.0.0.1:9"}, ["does not answer", "127.0.0.1:9"]),
        (["fine/neox"], {"limit": 4096}, ["no room", "HF_HOME"]),
    ],
)
def test_what_fails_is_said_in_one_line(hub, tmp_path, arguments, options, words):
    status, out, err = download(hub, tmp_path, *arguments, **options)
    assert status == 1 and out == "" and re.fullmatch(r"error: [^\n]+", err), err
    assert all(word in err for word in words), err
    assert not [f for f in tmp_path.rglob("model.safetensors") if "snapshots" in f.parts], "half a file has its name"


@pytest.mark.parametrize(("model", "lost", "words"), [
    ("fine/neox", ["model.safetensors"], "'fine/neox': no weights are in the cache: is not completely in"),
    ("fine/sharded", SHARDS[1:], "not completely in .* .no model-00002-of-00002.safetensors.;"),
    ("fine/sharded", SHARDS, "not completely in .* .no model-00001-of-00002.safetensors.;"),
])
def test_weights_that_a_broken_off_download_lacks_are_not_taken_for_pickles(hub, tmp_path, model, lost, words):
    status, out, err = download(hub, tmp_path, model)
    assert status == 0, err
    for name in lost:
        (file,) = (tmp_path / "hub").rglob(f"snapshots/*/{name}")
        file.resolve().unlink()
        file.unlink()
    for listing in tmp_path.rglob("*trees*"):  # of the hub's client, which older versions of it do not keep
        shutil.rmtree(listing) if listing.is_dir() else listing.unlink()
    status, _, err = download(hub, tmp_path, model, HF_HUB_OFFLINE="1")
    assert status == 1 and re.fullmatch(rf"error: model [^\n]*{words}[^\n]*HF_HUB_OFFLINE=0", err), err
    status, _, err = download((hub[0], "http://127.0.0.1:9"), tmp_path, model)
    assert status == 1 and "PICKLE" not in err and "\n" not in err, err
    assert download(hub, tmp_path, model) == (0, out, "")


def test_a_download_that_broke_off_goes_on(hub, tmp_path):
    status, _, err = download(hub, tmp_path, "wrong/cut_once")
    if status:  # the client may give up or try again by itself
        assert "broke off" in err
        status, _, err = download(hub, tmp_path, "wrong/cut_once")
    assert status == 0, err


def test_pickled_weights_are_taken_only_when_that_is_said(hub, tmp_path):
    status, out, _ = download(hub, tmp_path, "wrong/pickled", ICL_PICKLED_WEIGHTS=TRUST)
    assert status == 0 and list((tmp_path / "hub").rglob("pytorch_model.bin"))
    status, _, err = download(hub, tmp_path, "wrong/pickled")  # in the cache now, and still not asked for
    assert status == 1 and "no safetensors" in err
