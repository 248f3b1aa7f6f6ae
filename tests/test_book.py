"""Pages of the book: what is made of an executed notebook, and the data dictionary."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from icl_lib.provenance import provenance
from icl_lib.tables import KEYS, SCHEMAS, write_table
from tests.project import ROOT, notebook
from workflow.book import _as_page, build, stage
from workflow.runs import data_of_page, dictionary_page, write_data


def test_a_page_says_of_which_run_it_is_numbers_its_figures_and_leads_to_its_data(tmp_path):
    results = tmp_path
    made = notebook(parameters=None)
    made.cells.append(nbformat.v4.new_markdown_cell("# Scores\n\nText."))
    figure = ('<figure><img class="figure"/><figcaption>It rises. '
              '<a download="figure.csv" href="data:text/csv;base64,eA==">Numbers</a></figcaption></figure>')
    table = pd.DataFrame({"value": [1.5]}, index=pd.Index(["lab-7k"], name="model")).to_html()
    outputs = [nbformat.v4.new_output("display_data", {"text/html": html})
               for html in (figure, '<a href="ablation.html">', 2 * figure, table)]
    made.cells.append(nbformat.v4.new_code_cell("show()", outputs=outputs))
    titles = {"index": "Scores", "training_dynamics/lab-40k": "Scores: lab-40k", "claims/real": "Scores: real",
              "scoring/smollm2-135m/step-1": "Scores: smollm2-135m", "scoring/a/b/step8": "Scores: a/b at step 8"}
    for name in titles:
        path = results / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(made, path)
    for name, title in titles.items():
        page = nbformat.reads(_as_page(results, name, "../"), as_version=4)
        assert page.cells[0].source == f"# {title}\n\nText."
        html = "".join(output.data["text/html"] for output in page.cells[1].outputs)
        assert '<a href="../ablation.html">' in html
        numbers = re.findall(r'<figure id="figure-(\d)">.*?<b>Figure (\d)\.</b> It rises. <a download="([^"]+)"', html)
        assert numbers == [(n, n, f"{name.replace('/', '-')}-figure-{n}.csv") for n in "123"]
        assert re.search(r"<thead><tr[^>]*><th>model</th>\s*<th>value</th>\s*</tr></thead>", html)
        assert f'<a download href="../tables/notebooks/{name}.ipynb.gz">' in page.cells[-1].source
    table = results / "scores" / "a" / "b" / "step8.parquet"
    made_by = provenance(suite="lab", seed=0, dtype="", device="", bos="", parameters={})
    row = {"model": "a/b", "step": 8, "score": "fv", "layer": 0, "value": 0.1, "standard_error": 0.1, "n_prompts": 1}
    for n_rows, name in ((100, "step8.csv"), (101, "step8.csv.gz")):  # a long table is compressed
        rows = pd.DataFrame([row | {"task": f"t{i:03}", "head": i} for i in range(n_rows)])
        write_table(rows, table, schema_name="scores", provenance=made_by)
        assert f'<a href="tables/scores/a/b/{name}">scores</a>' in data_of_page(results, "scoring/a/b/step8", "")


def test_code_stands_closed_below_what_it_shows(tmp_path):
    def code(source, shows="", tags=()):
        outputs = [nbformat.v4.new_output("display_data", {"text/html": shows})] if shows else []
        return nbformat.v4.new_code_cell(source, outputs=outputs, metadata={"tags": [*tags]}, id=source)

    cells = [nbformat.v4.new_markdown_cell("# Scores"), code("first"), code("given", tags=["injected-parameters"]),
             nbformat.v4.new_markdown_cell("Text."), code("finding", "<b>It rises.</b>", ["hide-input"]),
             code("bare", "<b>No code.</b>", ["remove-input"]), code("shown", "<b>It falls.</b>"), code("last")]
    path = tmp_path / "notebooks/index.ipynb"
    path.parent.mkdir()
    for chosen, order in (
            (cells, ["# Scores", "Text.", "-finding", "first\n\ngiven\n\nfinding", "-bare", "-shown", "shown", "last"]),
            (cells[:4], ["# Scores", "first\n\ngiven", "Text."])):
        nbformat.write(nbformat.v4.new_notebook(cells=chosen), path)
        page = nbformat.reads(_as_page(tmp_path, "index"), as_version=4)
        nbformat.validate(page)
        assert [f"-{cell.id}" if cell.get("outputs") else cell.source for cell in page.cells[:-1]] == order
        for cell in page.cells:
            assert cell.cell_type == "markdown" or cell.metadata.tags == [
                "remove-input" if cell.outputs else "hide-input"]


def a_book(repository=False):
    """Settings as the book has them, with their lines on a `repository`, and executed notebooks: results and paths."""
    settings = (ROOT / "_config.yml").read_text()
    Path("_config.yml").write_text(re.sub(r"(?m)^( +)# (?=\w+: )", r"\1", settings) if repository else settings)
    Path("_toc.yml").write_text("format: jb-book\nroot: index\nchapters:\n- file: scoring\n- file: runs\n")
    shutil.copy(ROOT / "book/references.bib", "book")
    shutil.copytree(ROOT / "book/_static", "book/_static")
    results = Path("results/lab")
    paths = [results / "notebooks" / name for name in ("index.ipynb", "scoring/a/step0.ipynb", "scoring/a/step8.ipynb")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = notebook("1", parameters=None)
        content.cells.insert(0, nbformat.v4.new_markdown_cell("# Title"))
        nbformat.write(content, path)
    return results, paths


@pytest.mark.slow
def test_pages_link_the_repository_that_the_settings_name_and_launch_templates_there(project):
    results, paths = a_book(repository=True)
    html = build(results, paths).parent
    for name, template in {
            "index": "index", "scoring": "scoring", "notebooks/scoring/a/step0": "scoring", "runs": ""}.items():
        found = (html / f"{name}.html").read_text()
        assert 'href="https://github.com/someone/their-icl"' in found, name
        launched = re.findall(r'href="(https://mybinder[^"]*)"', found)
        place = f"https://mybinder.org/v2/gh/someone/their-icl/main?urlpath=lab/tree/notebooks/{template}.ipynb"
        assert launched == ([place] if template else []), name


def test_the_data_of_a_book_are_tables_that_its_runs_wrote_or_read(project):
    results, paths = a_book()
    names = ["scoring/a/step0", "scoring/a/step8"]
    made_by = provenance(suite="lab", seed=0, dtype="", device="", bos="", parameters={})
    tables = [results / f"scores/{name}.parquet" for name in ("a/step0", "b/step0", "c/step0")]
    for table in tables:
        write_table(pd.DataFrame(columns=list(SCHEMAS["scores"])), table, schema_name="scores", provenance=made_by)
    executed = nbformat.read(paths[1], as_version=4)
    executed.metadata["made_from"] = {"files": {}, "tables": {"scores/b/step0.parquet": "0" * 16}, "parameters": {}}
    nbformat.write(executed, paths[1])
    pd.DataFrame({"mine": [1]}).to_parquet(results / "scores/mine.parquet")
    write_data(results, names, project / "html")
    made = project / "html/tables/scores"
    assert sorted(path.relative_to(made).as_posix() for path in made.glob("*/*")) == ["a/step0.csv", "b/step0.csv.gz"]
    tables[1].write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"b/step0.parquet is truncated .*; remove that file and run the suite again$"):
        write_data(results, names, project / "html")


def test_the_data_dictionary_has_a_row_for_every_column():
    page = dictionary_page()
    for name, columns in SCHEMAS.items():
        own = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        stars = dict(re.findall(r"<tr><td><code>(\w+)</code>(\*?)</td>", own))
        assert list(stars) == list(columns) and {c for c, star in stars.items() if star} == set(KEYS[name])


def test_staging_fills_in_the_runs(project):
    results = project / "results" / "lab"
    names = ["scoring/models/a/step0", "scoring/models/a/step8", "scoring/models/b/step8", "model_scaling"]
    paths = [results / "notebooks" / f"{name}.ipynb" for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook(f"# {path.stem}", parameters=None), path)
    (project / "book" / "model_scaling.md").write_text("by hand")
    source = stage(results, paths, [results / "notebooks" / "training_dynamics" / "models" / "c.ipynb"])
    found = {p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()}
    assert found >= {
        "_config.yml", "_toc.yml", "method.md", "scoring.ipynb", "model_scaling.md", "runs.md", "claims.md",
        "notebooks/scoring/models/a/step0.ipynb", "notebooks/scoring/models/a/step8.ipynb",
        "notebooks/model_scaling.ipynb",
    }  # fmt: skip
    assert "scoring.md" not in found
    chapters = yaml.safe_load((source / "_toc.yml").read_text())["parts"][0]["chapters"]
    assert [chapter["file"] for chapter in chapters] == ["scoring", "model_scaling", "training_dynamics", "runs"]
    assert [chapter.get("title") for chapter in chapters] == ["scoring", "model_scaling", None, None]
    assert chapters.pop()["sections"] == [
        {"file": "notebooks/scoring/models/a/step0", "title": "scoring: models/a, step0"},
        {"file": "notebooks/scoring/models/a/step8", "title": "scoring: models/a, step8"},
        {"file": "notebooks/model_scaling", "title": "model_scaling"},
    ]
    assert not any("sections" in chapter for chapter in chapters)
    # A chapter without a run says so, whether nothing was asked for or a run is missing, and so does the page of runs.
    assert (source / "claims.md").read_text().startswith("# claims\n\nNo model of this suite")
    assert "Not finished: `training_dynamics/models/c`" in (source / "training_dynamics.md").read_text()
    assert "**Missing:** `training_dynamics/models/c`" in (source / "runs.md").read_text()


@pytest.mark.slow
def test_a_warning_fails_the_book_in_one_line(project):
    (project / "book" / "index.md").write_text("# Stand-in\n\n[nowhere](missing.md)\n")  # no index notebook
    (project / "_toc.yml").write_text("format: jb-book\nroot: index\n")
    command = [sys.executable, "-m", "workflow.book", "results/lab"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the book has") and "missing" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (project / "results/lab/book/_build/html/index.html").exists()
