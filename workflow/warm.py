"""A sweep's notebooks without each importing everything anew: `python -m workflow.warm snakemake ...`.

A notebook is two Python processes, papermill's and its kernel, and to import torch, transformers and the rest takes
them longer than many notebooks take to run. The process of this command imports all of it once. What the command starts
as `python workflow/warm.py --module NAME ARGUMENTS` is a fork of it that does what `python -m NAME ARGUMENTS` would,
with the folder, environment and standard streams of the process that asked. That one waits, ends as the fork ends, and
takes the fork with it where it is killed. Kernels are started so too. Modules start cold where no such command runs,
where it cannot fork (not Linux) and where there is a GPU, which does not survive a fork.
"""

import contextlib
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
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

SOCKET = "ICL_WARM"  # the environment variable with the path of the socket
PRELOADED = ("papermill", "ipykernel.kernelapp", "seaborn", "torch", "transformers", "transformer_lens")
_EVERY = 0.05  # seconds between two looks at what has ended
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_READY, _GONE = b"\0\0", b"\0\1"  # a status is two bytes too


def run_module(module: str, arguments: list[str]) -> int:
    """Run a module in a fork of the warm process, else in this one. Its exit status; dies of the signal it died of."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(os.environ[SOCKET])
        if not _answer(connection):
            raise OSError("there is a GPU")
    except (KeyError, OSError):
        os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
    asked = json.dumps([module, arguments, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(connection, [len(asked).to_bytes(8)], [0, 1, 2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the fork decides; a kernel's shutdown begins with one
    connection.sendall(asked)
    status = int.from_bytes(_answer(connection) or _GONE, signed=True)
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL cannot be handled
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def _answer(connection: socket.socket) -> bytes:
    """What the warm process says next, nothing where it is gone; ends this process where nobody waits for it."""
    parent = os.getppid()
    while not select.select([connection], [], [], 1)[0]:
        if os.getppid() != parent:
            sys.exit(1)
    return connection.recv(2)


def serve(command: list[str], preload: Callable[[], bool]) -> int:
    """Run a command and the modules that it asks for; its exit status.

    The first of them waits for `preload`, which says whether to fork at all.
    """
    with tempfile.TemporaryDirectory(prefix="icl_warm.") as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/socket")
        listener.listen()
        kernel = Path(folder, "kernels", "python3", "kernel.json")
        kernel.parent.mkdir(parents=True)
        kernel.write_text(json.dumps({
            "argv": [sys.executable, "-S", __file__, "--module", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": "Python 3", "language": "python"}), encoding="utf-8")
        paths = os.pathsep.join(filter(None, [folder, os.environ.get("JUPYTER_PATH")]))
        with subprocess.Popen(command, env=os.environ | {SOCKET: f"{folder}/socket", "JUPYTER_PATH": paths}) as process:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command and the forks get it too, and decide
            while process.poll() is None and not select.select([listener], [], [], _EVERY)[0]:
                pass
            if process.poll() is None and preload():
                _answer_requests(listener, process)
            listener.close()  # who has asked starts cold
            return process.wait()


def _preload() -> bool:
    """Import what notebooks import; whether this process may fork, which it may not with a GPU."""
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # the latter asks without CUDA
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of progress bars for Jupyter, which a sweep has no use for
        for name in PRELOADED:
            importlib.import_module(name)
    for file in Path("icl_lib").rglob("*.py"):
        importlib.import_module(".".join(file.with_suffix("").parts).removesuffix(".__init__"))
    gc.collect()
    gc.freeze()  # forks share these pages
    return sys.platform == "linux" and not sys.modules["torch"].cuda.is_available()


def _answer_requests(listener: socket.socket, process: subprocess.Popen) -> None:
    forks: dict[socket.socket, int] = {}
    while process.poll() is None:
        for ready in select.select([listener, *forks], [], [], _EVERY)[0]:
            if ready is listener:
                connection, _ = listener.accept()
                with contextlib.suppress(OSError):  # who asked is gone already
                    forks[connection] = _fork(connection, [listener, *forks])
            else:  # nobody waits for it any more
                os.kill(forks[ready], signal.SIGKILL)
        for connection, pid in list(forks.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                with contextlib.suppress(OSError):
                    connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(2, signed=True))
                connection.close()
                del forks[connection]
    for pid in forks.values():
        os.kill(pid, signal.SIGKILL)


def _fork(connection: socket.socket, others: list[socket.socket]) -> int:
    """The process that runs what is asked for over the connection."""
    connection.sendall(_READY)
    size, streams, _, _ = socket.recv_fds(connection, 8, 3)
    asked = bytearray()
    while part := connection.recv(int.from_bytes(size) - len(asked)):
        asked += part
    server = os.getpid()
    if pid := os.fork():
        for stream in streams:
            os.close(stream)
        return pid
    status = 1
    try:
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        for other in [connection, *others]:
            other.close()
        for place, stream in enumerate(streams):
            os.dup2(stream, place)
            os.close(stream)
        status = _as_main(*json.loads(asked), server)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _as_main(module: str, arguments: list[str], folder: str, environment: dict[str, str], server: int) -> int:
    """Do as `python -m module arguments` in a folder and environment; the exit status."""
    os.chdir(folder)
    os.environ.clear()
    os.environ |= environment
    if "JPY_PARENT_PID" in environment:  # a kernel ends when this is not its parent
        os.environ["JPY_PARENT_PID"] = str(server)
    if "torch" in sys.modules and (threads := environment.get("OMP_NUM_THREADS")):
        sys.modules["torch"].set_num_threads(int(threads))
    signal.signal(signal.SIGINT, signal.default_int_handler)
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
    sys.exit(serve(sys.argv[1:], _preload))
