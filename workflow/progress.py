"""One line in the terminal: how many runs are done, how many are at work, about how many minutes are left.

Without a terminal a line for each finished run. Errors and warnings are printed as ever, by whoever has them.
"""

import logging
import math
import statistics
import sys
import time
from typing import Any

_TARGETS = ("all", "sweep", "committed")  # rules that run nothing


class Progress(logging.Handler):
    """Follows the jobs of a sweep by what Snakemake logs."""

    def __init__(self, dag: Any):
        super().__init__()
        self.jobs = {dag.jobid(job): job for job in dag.needrun_jobs() if job.rule.name not in _TARGETS}
        self.began: dict[int, float] = {}
        self.seconds: dict[int, float] = {}  # of finished jobs
        self.at_once = 1  # the most that ran

    def emit(self, record: logging.LogRecord) -> None:
        now, event, finished = time.monotonic(), getattr(record, "event", None), ""
        started = [job for job in record.jobs if job in self.jobs] if event == "job_started" else []
        job = getattr(record, "job_id" if event == "job_finished" else "jobid", None)
        if event in ("job_finished", "job_error") and job in self.began:
            seconds = now - self.began.pop(job)
            told = f"{self.jobs[job].output[-1]} ({seconds:.0f} s)"
            if event == "job_finished":
                self.seconds[job] = seconds
                finished = f"{told}: "
            else:  # a run that was killed says nothing itself
                log = f"; see {self.jobs[job].log}" if self.jobs[job].log else ""
                print(f"error: {told} failed{log}", file=sys.stderr)
        elif not started:
            return
        self.began |= dict.fromkeys(started, now)
        self.at_once = max(self.at_once, len(self.began))
        if sys.stderr.isatty():  # the cursor goes back, so that an error takes the line's place
            end = "\r" if len(self.seconds) < len(self.jobs) else "\n"
            print(f"\033[K{self.line(now)}", end=end, file=sys.stderr, flush=True)
        elif finished:
            print(finished + self.line(now), file=sys.stderr, flush=True)

    def line(self, now: float) -> str:
        """With an estimate: as many at a time as ever, each as long as finished ones of its rule, or of all rules."""
        text = f"{len(self.seconds)} of {len(self.jobs)} done, {len(self.began)} running"
        if not self.seconds or len(self.seconds) == len(self.jobs):
            return text
        took: dict[str, list[float]] = {}
        for job, seconds in self.seconds.items():
            took.setdefault(self.jobs[job].rule.name, []).append(seconds)
        left = [statistics.fmean(took.get(job.rule.name, self.seconds.values())) - (now - self.began.get(i, now))
                for i, job in self.jobs.items() if i not in self.seconds]
        return f"{text}, about {math.ceil(sum(max(0.0, each) for each in left) / self.at_once / 60)} min left"


def quiet_terminal() -> None:
    """Of what Snakemake prints leave warnings, errors, and that there is nothing to do; its own log keeps all.

    Not the command of a run that failed, pages of file names: the run has said why, and `Progress` which one it is.
    """
    for handler in logging.getLogger("snakemake.logging").handlers:
        if handler.name == "DefaultStreamHandler":
            handler.addFilter(lambda of: "Nothing to be done" in str(of.msg) or (
                of.levelno >= logging.WARNING and not str(of.msg).startswith("RuleException:\nCalledProcessError")))
