"""Score the golden prompts, and die at a call: `python -m tests.support.killed_scoring FOLDER TARGET CALL`.

TARGET: `effects`, before a task's effects are computed, or `files`, before a finished file gets its name. With CALL 0
it lives. Prints how often TARGET was called.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import icl_lib.files as files
import icl_lib.forward.run as engine
import icl_lib.scores.function_vectors as fv
from tests.conftest import golden_case

calls = 0


def counted(function: Callable[..., Any], deadly: int) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        global calls
        calls += 1
        if calls == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call


if __name__ == "__main__":
    folder, target, deadly = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if target == "effects":
        engine.run = counted(engine.run, deadly)
    else:
        files.os.replace = counted(files.os.replace, deadly)
    golden = golden_case("gpt_neox")
    fv.fv_scores(golden.model, golden.prompts, batch_size=2, save_to=folder)
    print(calls)
