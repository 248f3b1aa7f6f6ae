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
        jobs = [job for job in dag.needrun_jobs() if job.rule.name not in _TARGETS]
        self.rules = {dag.jobid(job): job.rule.name for job in jobs}
        self.names = {dag.jobid(job): job.output[-1] for job in jobs}
        self.began: dict[int, float] = {}
        self.seconds: dict[int, float] = {}  # of finished jobs
        self.at_once = 1  # the most that ran

    def emit(self, record: logging.LogRecord) -> None:
        now, event, terminal = time.monotonic(), getattr(record, "event", None), sys.stderr.isatty()
        job = getattr(record, "job_id" if event == "job_finished" else "jobid", None)
        if event == "job_started" and (began := {job: now for job in record.jobs if job in self.rules}):
            self.began |= began
            self.at_once = max(self.at_once, len(self.began))
        elif event in ("job_finished", "job_error") and job in self.began:
            seconds = now - self.began.pop(job)
            if event == "job_finished":
                self.seconds[job] = seconds
                if not terminal:
                    print(f"{self.names[job]} ({seconds:.0f} s): {self.line(now)}", file=sys.stderr, flush=True)
        else:
            return
        if terminal:  # the cursor goes back, so that an error takes the line's place
            end = "\r" if len(self.seconds) < len(self.rules) else "\n"
            print(f"\033[K{self.line(now)}", end=end, file=sys.stderr, flush=True)

    def line(self, now: float) -> str:
        """With an estimate: as many at a time as ever, each as long as finished ones of its rule, or of all rules."""
        text = f"{len(self.seconds)} of {len(self.rules)} done, {len(self.began)} running"
        if not self.seconds or len(self.seconds) == len(self.rules):
            return text
        took = {rule: [self.seconds[job] for job in self.seconds if self.rules[job] == rule]
                for rule in self.rules.values()}
        left = [max(0.0, statistics.fmean(took[rule] or self.seconds.values()) - (now - self.began.get(job, now)))
                for job, rule in self.rules.items() if job not in self.seconds]
        return f"{text}, about {math.ceil(sum(left) / self.at_once / 60)} min left"


def quiet_terminal() -> None:
    """Of what Snakemake prints leave warnings, errors, and that there is nothing to do; its own log keeps all."""
    for handler in logging.getLogger("snakemake.logging").handlers:
        if handler.name == "DefaultStreamHandler":
            handler.addFilter(lambda of: of.levelno >= logging.WARNING or "Nothing to be done" in str(of.msg))


def show_progress(dag: Any) -> None:
    """From now on, for the jobs that a sweep has to run."""
    logging.getLogger("snakemake.logging").addHandler(Progress(dag))
