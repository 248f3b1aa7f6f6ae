"""Two sweeps on one suite's results, and what a killed one leaves."""

import signal
import subprocess
import sys

import pytest

from tests.project import ROOT
from workflow.lock import lock_run, lock_sweep

HOLD = "import sys, time; from pathlib import Path; from workflow.lock import *\n{}\nprint('held', flush=True); {}"


@pytest.fixture
def other():
    """Start another process that runs this code and then waits."""
    started = []

    def start(code, then="time.sleep(60)"):
        process = subprocess.Popen([sys.executable, "-c", HOLD.format(code, then)], cwd=ROOT,
                                   stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def end(process):
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_the_second_sweep_is_refused_by_name_until_the_first_is_gone(tmp_path, other):
    first = other(f"held = lock_sweep(Path({str(tmp_path)!r}))")
    with pytest.raises(RuntimeError, match=f"another sweep is at work on .*process {first.pid} on .* since") as caught:
        lock_sweep(tmp_path)
    assert "\n" not in str(caught.value)
    lock_sweep(tmp_path.with_name("another suite")).close()
    end(first)
    lock_sweep(tmp_path).close()  # a killed sweep blocks nobody
    lock_sweep(tmp_path).close()


def test_runs_that_outlive_their_sweep_are_waited_for(tmp_path, other):
    run = other(f"held = lock_run(Path({str(tmp_path)!r})); held.__enter__()")
    with lock_run(tmp_path):  # beside any number of others
        pass
    with pytest.raises(RuntimeError, match="runs of a sweep that was killed are still at work"):
        lock_sweep(tmp_path)
    end(run)
    with lock_sweep(tmp_path), lock_run(tmp_path):  # a sweep's own runs do not meet it
        pass


def test_an_odd_lock_file_does_not_matter(tmp_path):
    for name in (".sweep.lock", ".runs.lock"):
        (tmp_path / name).write_text("process 1 on elsewhere since long ago\n" * 3)
    lock_sweep(tmp_path).close()
    assert (tmp_path / ".sweep.lock").read_text().startswith("process ")
    assert "\n" not in (tmp_path / ".sweep.lock").read_text()
