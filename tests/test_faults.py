"""What goes wrong in one run is named, stays there, and is made good by the next sweep; the other runs finish.

One sweep over a stand-in project meets most faults at once, a model for each; the others need a sweep of their own.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from icl_lib.tables import table_fingerprint
from tests.project import BODIES, make_project, write_suite, write_template
from workflow.run import main as run_main

SNAKEMAKE = [sys.executable, "-m", "snakemake", "--cores", "2", "--keep-going", "--rerun-incomplete", "--nolock"]

# What a run of the model meets, and what is said about it. The notebook goes on as ever if the fault does not bite.
FAULTS = {
    "notebook_raises": ("raise ValueError('no such head')", "ValueError: no such head"),
    "kernel_dies": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "DeadKernelError: Kernel died"),
    "disk_full": ("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500, -1))",
                  "OSError: [Errno 27] File too large"),
    "out_of_memory": (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**32, -1)); x = bytearray(2**33)", "MemoryError"),
    "checkpoint_vanishes": (
        "import shutil; shutil.move(model, model + '.away'); open(f'{model}/step8/config.json')",
        "FileNotFoundError: [Errno 2] No such file or directory: 'models/checkpoint_vanishes/step8/config.json'"),
    "truncated_weights": (
        "import safetensors.torch as s; s.load_file(f'{model}/step8/model.safetensors')",
        "SafetensorError: Error while deserializing header"),
    "no_table": ("write = lambda *a, **k: None", "FileNotFoundError: it ended without writing results/lab/scores/"),
    "foreign_table": (
        "write = lambda k, s, **c: (__import__('os').makedirs(f'{results}/{k}/{model}', exist_ok=True), "
        "pd.DataFrame([c]).to_parquet(f'{results}/{k}/{s}.parquet'))",
        "is a parquet file but not one of icl_lib"),
}  # fmt: skip


def environment():
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


def sweep(project, *arguments, prefix=()):
    done = subprocess.run([*prefix, *SNAKEMAKE, *(arguments or ["sweep"])], cwd=project, capture_output=True,
                          text=True, timeout=600, env=environment())
    return done.returncode, done.stdout + done.stderr


def write_faulty_scoring():
    """A template whose runs meet the faults while a file says so: what heals them is no edit of the notebook."""
    body = "faulty = __import__('os').path.exists('faulty')\n"
    body += "".join(f"if faulty and model == 'models/{name}':\n    {code}\n" for name, (code, _) in FAULTS.items())
    write_template(".", "scoring", body + BODIES["scoring"])
    Path("faulty").touch()


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A sweep that meets every fault, what it printed, and the next one with the causes gone."""
    project = make_project(tmp_path_factory.mktemp("faults"))
    before = Path.cwd()
    os.chdir(project)
    try:
        for name in FAULTS:
            shutil.copytree("models/tiny/step8", f"models/{name}/step8")
        from safetensors.torch import save_file
        from torch import zeros

        weights = project / "models/truncated_weights/step8/model.safetensors"
        save_file({"w": zeros(100)}, weights)
        sound = weights.read_bytes()
        weights.write_bytes(sound[:40])
        write_suite(".", models=[{"name": "models/tiny", "steps": [8]}, *({"name": f"models/{n}"} for n in FAULTS)])
        write_faulty_scoring()
        first = sweep(project)
        shutil.copytree("results", "results_of_the_first")
        finished = {path: _identity(path) for path in Path("results/lab").rglob("tiny/*.parquet")}
        os.unlink("faulty")
        shutil.move("models/checkpoint_vanishes.away", "models/checkpoint_vanishes")
        weights.write_bytes(sound)
        yield project, first, sweep(project), finished
    finally:
        os.chdir(before)


def _identity(path):
    state = path.stat()
    return state.st_ino, state.st_mtime_ns


@pytest.mark.faults
@pytest.mark.parametrize("name", FAULTS)
def test_a_failing_run_is_named_kept_and_healed(broken, name):
    project, (status, output), (status_after, output_after), _ = broken
    assert status == 1
    assert FAULTS[name][1] in output, output
    stem = f"models/{name}/step8"
    first = project / "results_of_the_first/lab"
    failing = "ablation" if name == "foreign_table" else "scoring"  # the run that reads the table finds it out
    assert f"log results/lab/logs/{failing}/{stem}.log" in output
    log = (first / f"logs/{failing}/{stem}.log").read_text()
    assert "Traceback" in log or "ended without" in log
    if failing == "scoring":
        assert (first / f"logs/scoring/{stem}.ipynb").is_file()
    assert not (first / f"notebooks/{failing}/{stem}.ipynb").exists()
    assert not list(first.rglob("*.tmp"))
    # the next sweep, with the cause gone
    assert status_after == 0, output_after
    assert (project / f"results/lab/scores/{stem}.parquet").is_file()
    assert (project / f"results/lab/ablations/{stem}.parquet").is_file()
    assert not (project / f"results/lab/logs/scoring/{stem}.ipynb").exists()


@pytest.mark.faults
def test_the_other_runs_finish(broken):
    project, (_, output), _, finished = broken
    first = project / "results_of_the_first/lab"
    for path in ("scores/models/tiny/step8.parquet", "ablations/models/tiny/step8.parquet"):
        assert (first / path).is_file(), output
    assert not (first / "notebooks/model_scaling.ipynb").exists()  # it needs all
    assert finished and all(_identity(project / path) == known for path, known in finished.items())  # not repeated


def in_namespace(project, mount):
    """A sweep with a mount of its own over the results; skips where that is not allowed."""
    unshare = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    (project / "results").mkdir(exist_ok=True)
    if subprocess.run([*unshare, f"mount {mount} results"], cwd=project, capture_output=True).returncode:
        pytest.skip("no mount in a user namespace here")
    # the results are copied out, since the mount ends with the sweep
    return sweep(project, prefix=[*unshare, f'mount {mount} results && "$0" "$@"; e=$?; cp -r results seen; exit $e'])


@pytest.mark.faults
def test_read_only_results_are_refused_in_one_line(project):
    status, output = in_namespace(project, "-t tmpfs -o ro none")
    assert status == 1 and not list((project / "seen").iterdir())
    assert output.splitlines()[-1].startswith("error: ") and "Read-only file system" in output.splitlines()[-1]
    assert "Traceback" not in output
    status, output = sweep(project)
    assert status == 0, output


@pytest.mark.faults
def test_a_full_disk_is_named_and_leaves_no_half_table(project):
    status, output = in_namespace(project, "-t tmpfs -o size=28k none")
    assert status == 1 and "No space left on device" in output, output
    assert not list((project / "seen").rglob("*.tmp"))
    for path in (project / "seen").rglob("*.parquet"):
        assert table_fingerprint(path)  # what is there can be read
    status, output = sweep(project)
    assert status == 0, output


@pytest.mark.faults
def test_a_clock_that_goes_back_reruns_nothing_for_ever(project):
    status, output = sweep(project)
    assert status == 0, output
    ahead = time.time() + 3600
    for path in [*Path("results/lab/scores").rglob("*.parquet"), Path("notebooks/lab.ipynb")]:
        os.utime(path, (ahead, ahead))  # made an hour from now
    shutil.copytree("results/lab", "first")
    assert sweep(project)[0] == 0
    status, output = sweep(project)
    assert status == 0 and "Nothing to be done" in output, output
    tables = list(Path("first").rglob("*.parquet"))
    assert tables and all(
        table_fingerprint(t) == table_fingerprint(Path("results/lab", t.relative_to("first"))) for t in tables)


@pytest.mark.parametrize("change", [
    lambda: Path("results").mkdir() or Path("results/lab").touch(),
    lambda: shutil.copy("config/lab.yaml", "config/mine.yaml"),
])  # fmt: skip
def test_results_that_would_be_lost_stop_the_sweep_in_one_line(project, change):
    """A file in their place, and the suite file of others under a new name."""
    change()
    file = sorted(Path("config").glob("[lm]*.yaml"))[-1]
    status, output = sweep(project, "-n", "--configfile", str(file))
    assert status == 1 and output.startswith("error: ") and output.count("\n") == 1
    assert ("results/lab is no folder, expected" in output) or "mine.yaml: suite is 'lab', expected 'mine'" in output


def run_ablation(*arguments):
    table = "results/lab/scores/models/tiny/step8.parquet"
    given = json.dumps({"model": "models/tiny", "step": 8, "results": "results/lab"})
    return run_main(["notebooks/ablation.ipynb", "out.ipynb", "--parameters", given, "--log", "logs/a.log",
                     "--results", "results/lab", "--inputs", "notebooks/ablation.ipynb", table, *arguments])


@pytest.mark.parametrize("content", [b"", b"PAR1", b"model,step\n"])
def test_a_damaged_table_is_set_aside_for_the_next_sweep_to_make(project, capsys, content):
    table = Path("results/lab/scores/models/tiny/step8.parquet")
    table.parent.mkdir(parents=True)
    table.write_bytes(content)
    assert run_ablation() == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{table} is truncated or not a parquet file" in error
    assert "set aside as *.damaged, run the suite again" in error and "(log logs/a.log)" in error
    assert not table.exists() and table.with_name("step8.parquet.damaged").read_bytes() == content


def test_a_table_that_vanished_is_named(project, capsys):
    assert run_ablation() == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "No such file or directory" in error and "step8.parquet" in error


def test_what_a_killed_run_was_writing_is_removed_by_the_next_and_nothing_else(project):
    folder = Path("results/lab/ablations/models/tiny")
    folder.mkdir(parents=True)
    own = [folder / ".step8.parquet.123.tmp"]
    others = [folder / ".step80.parquet.123.tmp", folder / "step0.parquet"]
    for path in own + others:
        path.touch()
    assert run_ablation("--tables", str(folder / "step8.parquet")) == 1  # its scores are missing
    assert not any(path.exists() for path in own) and all(path.exists() for path in others)
