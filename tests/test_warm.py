"""Modules that a warm process forks do what they would do cold, and none outlives whoever wanted it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pytest

from tests.project import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="modules start cold there")
ASK = [sys.executable, "-S", str(ROOT / "workflow" / "warm.py"), "--module"]
SERVE = ("import sys; sys.path.insert(0, {root!r}); from workflow.warm import serve; import {preloaded}; "
         "sys.exit(serve(sys.argv[1:], lambda: {may_fork}))")
TOLD = """
import json, os, sys
print(json.dumps([sys.argv[1:], os.getcwd(), os.environ.get("GIVEN"), "colorsys" in sys.modules, __name__]))
print("to stderr", file=sys.stderr)
"""


@pytest.fixture(autouse=True)
def temporary(monkeypatch):
    """The folder for temporary files; its path is short, for the path of a socket may not be long."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def warm(*command, may_fork=True, **how):
    """Run a command beside a warm process that has imported `colorsys`."""
    server = SERVE.format(root=str(ROOT), preloaded="colorsys", may_fork=may_fork)
    return subprocess.run([sys.executable, "-c", server, *command], capture_output=True, text=True, timeout=60, **how)


def module(folder, source):
    (folder / "asked.py").write_text(source)
    return [*ASK, "asked"]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def eventually(condition):
    end = time.monotonic() + 10
    while time.monotonic() < end and not condition():
        time.sleep(0.05)
    return condition()


@pytest.mark.parametrize("may_fork", [True, False], ids=["fork", "cold"])
def test_a_module_gets_arguments_folder_environment_and_streams(tmp_path, may_fork):
    done = warm(*module(tmp_path, TOLD), "a b", "-f", may_fork=may_fork, cwd=tmp_path,
                env=os.environ | {"GIVEN": "1", "PYTHONPATH": str(tmp_path)})
    told = f'[["a b", "-f"], "{tmp_path}", "1", {"true" if may_fork else "false"}, "__main__"]\n'
    assert (done.stdout, done.stderr, done.returncode) == (told, "to stderr\n", 0)


def test_the_processor_seconds_of_each_fork_are_added_to_a_file(tmp_path):
    seconds = tmp_path / "seconds"
    busy = "import time\nwhile time.process_time() < 0.5: pass\n"
    for made_from in ("", "logs/scoring/m.json"):
        warm(*module(tmp_path, busy), "a", cwd=tmp_path, env=os.environ | {
            "PYTHONPATH": str(tmp_path), "ICL_SECONDS": str(seconds), "ICL_LIB_MADE_FROM": made_from})
    told = [json.loads(line) for line in seconds.read_text().splitlines()]
    assert [entry[:3] for entry in told] == [["asked", ["a"], ""], ["asked", ["a"], "logs/scoring/m.json"]]
    assert all(0.3 < entry[3] < 5 for entry in told)


def test_without_a_warm_process_it_starts_cold(tmp_path):
    cold = {name: value for name, value in os.environ.items() if name != "ICL_WARM"}
    done = subprocess.run(module(tmp_path, TOLD), cwd=tmp_path, env=cold, capture_output=True, text=True, timeout=60)
    assert '"__main__"' in done.stdout and done.returncode == 0
    assert "false" in done.stdout


@pytest.mark.parametrize(("source", "status", "said"), [
    ("import sys; sys.exit(3)", 3, ""),
    ("import sys; sys.exit(200)", 200, ""),
    ("import sys; sys.exit('no such file')", 1, "no such file\n"),
    ("raise ValueError('wrong')", 1, "ValueError: wrong\n"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 128 + 9, ""),
    ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 128 + 15, ""),
], ids=["3", "200", "words", "error", "SIGKILL", "SIGTERM"])
def test_the_status_is_the_modules(tmp_path, source, status, said):
    command = [sys.executable, "-c", "import subprocess, sys; print(subprocess.call(sys.argv[1:]))"]
    done = warm(*command, *module(tmp_path, source), cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert done.stdout == f"{status}\n" and done.stderr.endswith(said)


def test_the_commands_status_is_returned():
    assert warm(sys.executable, "-c", "raise SystemExit(7)").returncode == 7


@pytest.mark.parametrize(("whom", "may_fork"), [
    *((whom, True) for whom in ("asker", "parent", "command", "server", "shell")), ("parent", False), ("shell", False)])
def test_whoever_wanted_it_takes_the_module_along(tmp_path, whom, may_fork):
    """The module says its process, then sleeps, as do the asker's parent and the command, which outlive the asker.

    The server and its command end with what started the server, the shell of a makefile.
    """
    asked = module(tmp_path, "import os, time; open('module', 'w').write(f'{os.getpid()}\\n'); time.sleep(60)")
    parent = ("import os, subprocess, sys, time; asker = subprocess.Popen(sys.argv[1:], start_new_session=True); "
              "open('asker', 'w').write(f'{asker.pid} {os.getpid()} {os.getppid()}\\n'); asker.wait(); time.sleep(60)")
    command = ("import os, subprocess, sys, time; open('command', 'w').write(f'{os.getppid()}\\n'); "
               "subprocess.call(sys.argv[1:]); time.sleep(60)")
    server = SERVE.format(root=str(ROOT), preloaded="os", may_fork=may_fork)
    python = [sys.executable, "-c"]
    shell = subprocess.Popen(["sh", "-c", '"$@" || exit 1', "sh", *python, server, *python, command, *python, parent,
                              *asked], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    files = [tmp_path / name for name in ("module", "asker", "command")]
    try:
        assert eventually(lambda: all(file.exists() and file.read_text().endswith("\n") for file in files))
        pid, asker, of_parent, of_command, of_server = (int(word) for f in files for word in f.read_text().split())
        assert alive(pid) and shell.pid not in (pid, asker, of_parent, of_command, of_server)
        os.kill({"asker": asker, "parent": of_parent, "command": of_command, "server": of_server,
                 "shell": shell.pid}[whom], signal.SIGTERM if whom == "shell" else signal.SIGKILL)
        if may_fork or whom == "parent":  # a cold module ends with its asker's parent alone
            assert eventually(lambda: not alive(pid) and not alive(asker))
        if whom in ("server", "shell"):
            assert eventually(lambda: not alive(of_server) and not alive(of_command))
    finally:
        for one in (of_parent, of_command, of_server, asker):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        shell.kill()
        shell.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, None], ids=["SIGTERM", "SIGHUP", "preload"])
def test_whatever_ends_the_server_ends_its_command_and_leaves_no_folder(tmp_path, temporary, number):
    """None: what should be imported once for all fails, while the command waits for it."""
    asked = module(tmp_path, "import os, time; open('up', 'w').write(''); time.sleep(60)")
    command = ("import os, subprocess, sys; open('command', 'w').write(f'{os.getpid()}\\n'); "
               "subprocess.call(sys.argv[1:])")
    server = SERVE.format(root=str(ROOT), preloaded="os", may_fork=True if number else "1 / 0")
    python = [sys.executable, "-c"]
    process = subprocess.Popen([*python, server, *python, command, *asked], cwd=tmp_path, stderr=subprocess.PIPE,
                               env=os.environ | {"PYTHONPATH": str(tmp_path)}, text=True)
    try:
        if number:
            assert eventually((tmp_path / "up").exists) and list(temporary.iterdir())
            process.send_signal(number)
        said = process.communicate(timeout=30)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == (128 + number if number else 1)
    assert said == "" if number else said.endswith("ZeroDivisionError: division by zero\n")
    assert eventually(lambda: not alive(int((tmp_path / "command").read_text())))
    assert not list(temporary.iterdir())


def test_a_library_that_cannot_be_imported_starts_cold(tmp_path):
    """In one line: the runs that need it say what is wrong."""
    (tmp_path / "icl_lib").mkdir()
    (tmp_path / "icl_lib" / "__init__.py").touch()
    (tmp_path / "icl_lib" / "broken.py").write_text("1 / 0")
    server = ("import sys; from workflow import warm; warm.PRELOADED = (); "
              "sys.exit(warm.serve(sys.argv[1:], warm._preload))")
    done = subprocess.run([sys.executable, "-c", server, *module(tmp_path, "print('done')")], cwd=tmp_path, text=True,
                          env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert done.stderr == "warning: modules start cold: icl_lib.broken: ZeroDivisionError: division by zero\n"


def test_an_interrupt_is_left_to_the_command(tmp_path):
    """A terminal's goes to all, and the shell that started the server ends at once."""
    command = ("import os, signal, time; signal.signal(signal.SIGINT, lambda *_: None); "
               "open('command', 'w').write(f'{os.getppid()}\\n'); time.sleep(2); open('done', 'w').write('')")
    server = SERVE.format(root=str(ROOT), preloaded="os", may_fork=True)
    python = [sys.executable, "-c"]
    shell = subprocess.Popen(["sh", "-c", '"$@" || exit 1', "sh", *python, server, *python, command], cwd=tmp_path,
                             start_new_session=True)
    file = tmp_path / "command"
    assert eventually(lambda: file.exists() and file.read_text().endswith("\n"))
    os.killpg(shell.pid, signal.SIGINT)
    shell.wait()
    assert eventually(lambda: not alive(int(file.read_text())))
    assert (tmp_path / "done").exists()


def test_a_module_runs_in_the_askers_folder(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    asked = module(tmp_path, "import os; print(os.getcwd())")
    move = "import os, subprocess, sys; os.chdir('elsewhere'); sys.exit(subprocess.call(sys.argv[1:]))"
    done = warm(sys.executable, "-c", move, *asked, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert done.stdout == f"{tmp_path / 'elsewhere'}\n"


def test_a_notebook_finds_the_warm_kernel(tmp_path):
    """Papermill's kernel is a fork of the process that has the module already, and may die without taking it along."""
    cells = ["import os, sys\nprint('colorsys' in sys.modules, os.getppid())"]
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "in.ipynb")
    done = warm(*ASK, "papermill", "in.ipynb", "out.ipynb", "--no-progress-bar", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    output = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[0].outputs[0].text
    assert output.startswith("True ")
