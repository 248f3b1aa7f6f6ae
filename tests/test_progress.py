"""What a sweep says while it runs: a line for each finished run, one line in a terminal, and an estimate."""

import io
import logging
from types import SimpleNamespace

import pytest

from workflow import progress

RULES = ("scoring", "scoring", "scoring", "ablation", "ablation", "all")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def sweep(monkeypatch):
    """Tell of an event at a second; what was written then."""
    jobs = [SimpleNamespace(rule=SimpleNamespace(name=rule), output=["table", f"{rule}{i}.ipynb"],
                            log=f"logs/{rule}{i}.log", id=i)
            for i, rule in enumerate(RULES)]
    clock = []
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[-1])
    handler = progress.Progress(SimpleNamespace(needrun_jobs=lambda: iter(jobs), jobid=lambda job: job.id))

    def tell(stream, second, event, **fields):
        clock.append(second)
        monkeypatch.setattr(progress.sys, "stderr", stream)
        handler.emit(logging.makeLogRecord({"event": event, **fields}))
        return stream.getvalue()

    return tell


def test_every_finished_run_has_a_line_with_what_is_left(sweep):
    out = io.StringIO()
    assert sweep(out, 0, "job_started", jobs=[0, 1]) == ""
    assert sweep(out, 60, "job_finished", job_id=0) == (
        # the running one is as long again, no ablation has been seen: 0 + 60 + 2 * 60 seconds, two at a time
        "scoring0.ipynb (60 s): 1 of 5 done, 1 running, about 2 min left\n")
    sweep(out, 60, "job_started", jobs=[3])
    sweep(out, 100, "job_finished", job_id=1)
    said = sweep(out, 360, "job_finished", job_id=3).splitlines()
    assert said[-1] == "ablation3.ipynb (300 s): 3 of 5 done, 0 running, about 4 min left"  # (80 + 300) / 2
    sweep(out, 360, "job_started", jobs=[2, 4, 5])
    said = sweep(out, 400, "job_error", jobid=2)  # it runs no more, and is not done
    assert said.splitlines()[-1] == "error: scoring2.ipynb (40 s) failed; see logs/scoring2.log"
    assert sweep(out, 500, "job_finished", job_id=4).endswith("4 of 5 done, 0 running, about 1 min left\n")
    assert sweep(out, 501, "job_finished", job_id=5).count("\n") == 5, "a target is no run"


def test_a_terminal_has_one_line(sweep):
    out = Terminal()
    sweep(out, 0, "job_started", jobs=[0, 1, 2, 3, 4])
    for job in range(5):
        sweep(out, 60, "job_finished", job_id=job)
    sweep(out, 60, "job_started", jobs=[5])
    sweep(out, 61, "job_info", jobid=5)
    said = out.getvalue()
    assert said.count("\n") == 1 and said.endswith("\033[K5 of 5 done, 0 running\n")
    assert said.startswith("\033[K0 of 5 done, 5 running\r\033[K1 of 5 done, 4 running, about 0 min left\r")


def test_warnings_and_errors_stay():
    logger = logging.getLogger("snakemake.logging")
    handler, other = logging.StreamHandler(io.StringIO()), logging.StreamHandler(io.StringIO())
    handler.name = "DefaultStreamHandler"
    before, level = logger.handlers[:], logger.level
    try:
        logger.handlers[:], logger.propagate = [handler, other], False
        logger.setLevel(logging.INFO)
        progress.quiet_terminal()
        for level_of, message in ((20, "Select jobs to execute..."), (30, "odd"), (40, "wrong"),
                                  (40, "RuleException:\nCalledProcessError in file a:\nCommand 'b c' returned"),
                                  (20, "Nothing to be done (all requested files are present and up to date).")):
            logger.log(level_of, message)
    finally:
        logger.handlers[:], logger.propagate = before, True
        logger.setLevel(level)
    shown, kept = (h.stream.getvalue().splitlines() for h in (handler, other))
    assert shown == ["odd", "wrong", "Nothing to be done (all requested files are present and up to date)."]
    assert len(kept) == 7
