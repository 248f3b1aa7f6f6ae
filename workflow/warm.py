"""A sweep's notebooks without each importing everything anew: `python -m workflow.warm snakemake ...`.

A notebook is two Python processes, papermill's and its kernel, and to import torch, transformers and the rest takes
them longer than many notebooks take to run. The process of this command imports all of it once. What the command starts
as `python workflow/warm.py --module NAME ARGUMENTS` is a fork of it that does what `python -m NAME ARGUMENTS` would,
with the folder, environment and standard streams of the process that asked. That one waits, ends as the fork ends, and
takes the fork with it where it is killed. Kernels are started so too. Modules start cold where no such command runs,
where it cannot fork (not Linux) and where there is a GPU, which does not survive a fork.
"""

import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

SOCKET = "ICL_WARM"  # the environment variable with the path of the socket
SECONDS = "ICL_SECONDS"  # that with the file, if any, to which every fork adds a line: what it ran, processor seconds
PRELOADED = ("papermill", "ipykernel.kernelapp", "seaborn", "torch", "transformers", "transformer_lens")
MADE_FROM = "ICL_LIB_MADE_FROM"  # that with a file beside the log of the run that a kernel works for
_EVERY = 0.05  # seconds between two looks at what has ended
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def run_module(module: str, arguments: list[str]) -> int:
    """Run a module in a fork of the warm process, else in this one. Its exit status, 128 + n for signal n."""
    parent, connection = os.getppid(), socket.socket(socket.AF_UNIX)
    try:
        connection.connect(os.environ[SOCKET])
        if not connection.recv(1):
            raise OSError("there is a GPU")
    except (KeyError, OSError):
        _end_with(parent)
        os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
    _end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the fork decides; a kernel's shutdown begins with one
    socket.send_fds(connection, [b"\0"], [0, 1, 2])
    connection.sendall(json.dumps([module, arguments, os.getcwd(), dict(os.environ)]).encode() + b"\n")
    return (connection.recv(1) or b"\1")[0]


def _end_with(parent: int) -> None:
    """From now on the system, where it is Linux, kills this process when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def serve(command: list[str], preload: Callable[[], bool]) -> int:
    """Run a command and the modules that it asks for; its exit status.

    The first of them waits for `preload`, which says whether to fork at all. The command is killed where this process
    is ended, or whoever started it has ended without an interrupt: a makefile's shell does not pass on a SIGTERM.
    """
    parent, interrupts = os.getppid(), []
    _when_ended(lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="icl_warm.") as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/socket")
        listener.listen()
        paths = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("JUPYTER_PATH")]))
        with subprocess.Popen(command, env=os.environ | {SOCKET: f"{folder}/socket", "JUPYTER_PATH": paths},
                              preexec_fn=partial(_end_with, os.getpid())) as process:
            signal.signal(signal.SIGINT, lambda *_: interrupts.append(1))  # the command gets it too, and decides
            attended, may_fork = set(), None
            try:
                while process.poll() is None and (os.getppid() == parent or interrupts):
                    if may_fork is False:
                        listener.close()  # who has asked starts cold
                        time.sleep(_EVERY)
                    elif select.select([listener], [], [], _EVERY)[0]:
                        may_fork = may_fork or preload()
                        if may_fork:
                            with listener.accept()[0] as connection:
                                attended.add(_in_fork(_attend, connection, listener))
                    attended = {pid for pid in attended if not os.waitpid(pid, os.WNOHANG)[0]}
            finally:
                process.kill()
        return process.returncode


def _when_ended(handler: Callable[..., None] | signal.Handlers) -> None:
    """What a SIGTERM does, and a SIGHUP where `nohup` does not ignore it."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _preload(own: bool = True) -> bool:
    """Import what notebooks import; whether this process may fork, which it may not with a GPU.

    `own`: the library of this project too, which else each fork imports as it is then in its folder.
    """
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # the latter asks without CUDA
    files = [file.with_suffix("") for file in Path("icl_lib").rglob("*.py") if own]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of progress bars for Jupyter, which a sweep has no use for
        try:
            for name in (*PRELOADED, *(".".join(file.parts).removesuffix(".__init__") for file in files)):
                importlib.import_module(name)
        except Exception as error:  # the runs that need this module say so
            print(f"warning: modules start cold: {name}: {type(error).__name__}: {error}", file=sys.stderr)
            return False
    gc.collect()
    gc.freeze()  # forks share these pages
    return sys.platform == "linux" and not sys.modules["torch"].cuda.is_available()


def _in_fork(work: Callable[..., int], *given: Any) -> int:
    """Do some work, which gives the exit status, in a fork that ends with this process; the fork's id."""
    parent, status = os.getpid(), 1
    if pid := os.fork():
        return pid
    try:
        _end_with(parent)
        status = work(*given)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _attend(connection: socket.socket, listener: socket.socket) -> int:
    """Start what is asked for over the connection, take it along where nobody waits for it, and tell how it ended."""
    listener.close()
    connection.sendall(b"\0")  # ready
    streams = socket.recv_fds(connection, 1, 3)[1]
    with connection.makefile("rb") as lines:
        asked = json.loads(lines.readline())
        pid = _in_fork(_as_main, connection, streams, *asked)
    ended = 0
    while not ended:
        if select.select([connection], [], [], _EVERY)[0]:
            os.kill(pid, signal.SIGKILL)
        ended, status, used = os.wait4(pid, os.WNOHANG)
    if file := asked[-1].get(SECONDS):
        with open(file, "a", encoding="utf-8") as lines:
            lines.write(json.dumps([*asked[:2], asked[-1].get(MADE_FROM, ""), used.ru_utime + used.ru_stime]) + "\n")
    code = os.waitstatus_to_exitcode(status)
    connection.sendall(bytes([code if code >= 0 else 128 - code]))
    return 0


def _as_main(
    connection: socket.socket, streams: list[int], module: str, arguments: list[str], folder: str,
    environment: dict[str, str],
) -> int:
    """Do as `python -m module arguments` in a folder and environment, with other standard streams; the exit status."""
    connection.close()
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ |= environment
    if "JPY_PARENT_PID" in environment:  # a kernel ends when this is not its parent
        os.environ["JPY_PARENT_PID"] = str(os.getppid())
    if "torch" in sys.modules and (threads := environment.get("OMP_NUM_THREADS")):
        sys.modules["torch"].set_num_threads(int(threads))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _when_ended(signal.SIG_DFL)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--module"]:
        sys.exit(run_module(sys.argv[2], sys.argv[3:]))
    if sys.argv[1:2] == ["--others-only"]:
        sys.exit(serve(sys.argv[2:], lambda: _preload(own=False)))
    sys.exit(serve(sys.argv[1:], _preload))
