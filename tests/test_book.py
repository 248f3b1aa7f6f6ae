"""Pages of the book: what is made of an executed notebook, and the data dictionary."""

import re

import nbformat
import pandas as pd

from icl_lib.tables import KEYS, SCHEMAS
from tests.project import notebook
from workflow.book import _as_page
from workflow.runs import data_of_page, dictionary_page


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
        html = "".join(output.data["text/html"] for output in page.cells[-2].outputs)
        assert '<a href="../ablation.html">' in html
        numbers = re.findall(r'<figure id="figure-(\d)">.*?<b>Figure (\d)\.</b> It rises. <a download="([^"]+)"', html)
        assert numbers == [(n, n, f"{name.replace('/', '-')}-figure-{n}.csv") for n in "123"]
        assert re.search(r"<thead><tr[^>]*><th>model</th>\s*<th>value</th>\s*</tr></thead>", html)
        assert f'<a download href="../tables/notebooks/{name}.ipynb.gz">' in page.cells[-1].source
    table = results / "scores" / "a" / "b" / "step8.parquet"
    table.parent.mkdir(parents=True)
    table.write_bytes(b"")
    assert '<a href="tables/scores/a/b/step8.csv">scores</a>' in data_of_page(results, "scoring/a/b/step8", "")


def test_the_data_dictionary_has_a_row_for_every_column():
    page = dictionary_page()
    for name, columns in SCHEMAS.items():
        own = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        stars = dict(re.findall(r"<tr><td><code>(\w+)</code>(\*?)</td>", own))
        assert list(stars) == list(columns) and {c for c, star in stars.items() if star} == set(KEYS[name])
