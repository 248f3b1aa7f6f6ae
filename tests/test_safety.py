"""Nothing foreign is run: no pickles or code from files, no way out of the results, no script in a page, no network."""

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from icl_lib.provenance import provenance
from icl_lib.tables import SCHEMAS, write_table
from tests.project import ROOT, make_project, notebook, suite, write_suite, write_template
from tests.support.trial import NO_NETWORK, without_network_allowed
from workflow.book import build
from workflow.inert import active, refuse_active
from workflow.suite import check_suite

PACKAGES = ("icl_lib", "workflow", "lab", "benchmarks", "tests/support")
PICKLES = ("pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal")
RUNS_CODE = ("eval", "exec", "compile", "__import__", "torch.load", "np.load", "numpy.load", "pd.read_pickle",
             "yaml.load", "yaml.unsafe_load", "os.system", "os.popen")


@cache
def snakefile():
    """The Snakefile as the Python that Snakemake makes of it."""
    done = subprocess.run([sys.executable, "-m", "snakemake", "--print-compilation"], cwd=ROOT, capture_output=True,
                          text=True, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def sources():
    """All code of the repository but the tests: modules, the Snakefile and the cells of templates."""
    yield "Snakefile", snakefile()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path.read_text()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        yield f"notebooks/{path.name}", "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def unsafe(source):
    """Names of what a module uses that would run code from data or hand text to a shell."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found |= {n for n in names if n.split(".")[0] in PICKLES}
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in RUNS_CODE or name.endswith("to_pickle"):
                found.add(name)
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if keyword.arg in ("trust_remote_code", "shell", "allow_pickle") and value is not False:
                    found.add(f"{keyword.arg}={ast.unparse(keyword.value)}")
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "trust_remote_code" and ast.unparse(value) != "False":
                    found.add(f"trust_remote_code: {ast.unparse(value)}")
    return found


def test_the_source_runs_no_code_from_files():
    found = {name: unsafe(source) for name, source in sources()}
    assert {"Snakefile", "notebooks/scoring.ipynb", *(f"{package}/__init__.py" for package in PACKAGES)} <= set(found)
    assert len(found) > 40
    assert not {name: what for name, what in found.items() if what}


@pytest.mark.parametrize("line", [
    "import pickle", "from joblib import load", "torch.load('a')", "eval('1')", "exec('1')", "yaml.load('a')",
    "f(trust_remote_code=True)", "f(**{'trust_remote_code': given})", "run('ls', shell=True)", "os.system('ls')",
    "np.load('a', allow_pickle=True)", "frame.to_pickle('a')",
])  # fmt: skip
def test_the_search_finds_each_of_them(line):
    assert unsafe(line)


def unquoted(source):
    """What a rule puts into a shell command without quotes: names of files and parameters."""
    texts = [node.value for node in ast.walk(ast.parse(source))
             if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    field = re.compile(r"\{((?:input|output|params|log|wildcards)\b[^{}]*)\}")
    fields = [found for text in texts for found in field.findall(text)]
    assert fields, "there are no shell commands to look at"
    return [found for found in fields if not found.endswith(":q")]


def test_the_snakefile_quotes_what_it_hands_to_a_shell():
    assert not unquoted(snakefile())
    assert unquoted("shell('cp {input.a:q} {output}')") == ["output"]


HOSTILE = ["../up", "..", "a/../../b", "/etc", "a//b", "a/", "-rf", ".hidden", "a b", "a;ls", "a$(ls)", "a`ls`", "a|ls",
           "a\nb", "a'b", 'a"b', "a\\b", "~/a", "a*", "é", "<b>", "a\0b", "{model}"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_cannot_leave_the_results_or_reach_a_shell(tmp_path, monkeypatch, name):
    monkeypatch.chdir(make_project(tmp_path))
    for changes in ({"suite": name}, {"models": [{"name": name}]}):
        with pytest.raises(ValueError, match="does not match") as caught:
            check_suite(suite(**changes))
        assert "\n" not in str(caught.value)


def test_a_task_of_another_is_no_markup_in_a_table(tmp_path):
    row = {"model": "m", "step": 0, "score": "fv", "layer": 0, "head": 0, "task": "<script>alert(1)</script>",
           "value": 0.5, "standard_error": 0.1, "n_prompts": 1}
    made_by = provenance(suite="s", seed=0, dtype="", device="", bos="", parameters={})
    with pytest.raises(ValueError, match="column task holds '<script>.*expected text without < >"):
        write_table(pd.DataFrame([row])[list(SCHEMAS["scores"])], tmp_path / "t", schema_name="scores",
                    provenance=made_by)


@pytest.mark.parametrize(("text", "found"), [
    ("<script>alert(1)</script>", "<script>"), ("<SCRIPT src=x>", "<script>"),
    ("<img src=x onerror=alert(1)>", "onerror"),
    ("a <b onclick='x'>b</b>", "onclick"), ("<a href='java\nscript:alert(1)'>", "link to javascript:"),
    ("<a href='&#106;avascript:x'>", "link to javascript:"), ("<iframe src='x'></iframe>", "<iframe>"),
    ("<svg onload=x>", "onload"), ("```{raw} html\n<script>x</script>\n```", "<script>"),
    ("<a href='data:text/html,x'>", "link to data:"),
    ("<a href='javascript:x' href='#a'>", "link to javascript:"), ("<script type='module'>x</script>", "<script>"),
    ("<table><tr><td>a &lt;script&gt; b</td></tr></table>", ""), ("<a href='scoring.html#a:b'>x</a>", ""),
    ("<script type='application/json'>{}</script>", ""), ("<img src='data:image/svg+xml;base64,x'>", ""),
    ("1 < 2 and $a > b$", ""), ("<details><summary>x</summary></details>", ""),
])  # fmt: skip
def test_what_a_browser_would_run_is_found(text, found):
    assert (found in active(text)) and bool(active(text)) == bool(found)


def output(kind, content):
    return nbformat.v4.new_output("display_data", data={kind: content})


@pytest.mark.parametrize("spoil", [
    lambda nb: nb.cells[0].outputs.append(output("text/html", "<script>x</script>")),
    lambda nb: nb.cells[0].outputs.append(output("text/markdown", "a <img src=x onerror=y>")),
    lambda nb: nb.cells[0].outputs.append(output("application/javascript", "x")),
    lambda nb: nb.cells.append(nbformat.v4.new_markdown_cell("<iframe src=x>")),
])  # fmt: skip
def test_a_notebook_whose_page_would_run_a_script_is_refused(tmp_path, spoil):
    content = notebook("1", parameters=None)
    nbformat.write(content, tmp_path / "n.ipynb")
    refuse_active(tmp_path / "n.ipynb")
    spoil(content)
    nbformat.write(content, tmp_path / "n.ipynb")
    with pytest.raises(ValueError, match="n.ipynb: .* of cell . holds .*, which a page may not; remove") as caught:
        refuse_active(tmp_path / "n.ipynb")
    assert "\n" not in str(caught.value)


WORD = '<script>document.title="ran"</script><img src=x onerror=alert(1)>'


@pytest.mark.slow
def test_text_of_others_is_text_in_the_book(tmp_path, monkeypatch):
    """A word in printed text, a result, an error and a table, as a notebook of somebody else's results may hold it."""
    monkeypatch.chdir(make_project(tmp_path))
    content = notebook("# <script>in the code</script>", parameters=None)
    content.cells.insert(0, nbformat.v4.new_markdown_cell("# Scoring"))
    content.cells[1].outputs = [
        nbformat.v4.new_output("stream", text=WORD),
        output("text/plain", WORD),
        nbformat.v4.new_output("error", ename="ValueError", evalue=WORD, traceback=[f"ValueError: {WORD}"]),
        output("text/html", pd.DataFrame({"task": [WORD]}).to_html()),
    ]
    path = tmp_path / "results/lab/notebooks/scoring/models/tiny/step8.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(content, path)
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: method\nchapters:\n- file: scoring\n")
    results = Path("results/lab")
    monkeypatch.setattr("workflow.book.page", lambda results: results / "book/_build/html/scoring.html")
    html = build(results, [path.relative_to(tmp_path)]).read_text()
    assert "document.title=\"ran\"</script>" not in html and "<img src=x onerror" not in html
    assert "<script>in the code" not in html
    assert len(re.findall("&lt;script&gt;document", html)) >= 3


@pytest.mark.faults
def test_the_workflow_needs_no_network(tmp_path, monkeypatch):
    """A sweep in a network namespace of its own, without a route to anywhere."""
    if not without_network_allowed():
        pytest.skip("no network namespace for users here")
    monkeypatch.chdir(make_project(tmp_path))
    write_suite(".", models=[{"name": "models/tiny", "steps": [8]}])
    write_template(".", "index", "import socket\ntry:\n    socket.create_connection(('192.0.2.1', 80), 1)\n"
                   "except OSError as error:\n    print(error)")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [*NO_NETWORK, sys.executable, "-m", "snakemake", "--cores", "2", "sweep"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    cells = nbformat.read("results/lab/notebooks/index.ipynb", as_version=4).cells
    assert any("unreachable" in o.get("text", "") for c in cells for o in c.get("outputs", []))
