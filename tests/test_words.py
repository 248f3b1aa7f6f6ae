"""How much there is to read: the words of the book's main text. BOOK names the html folder of a rendered book.

The main text is every page of `_toc.yml` outside its part "Appendix". A word is a run of two or more letters; counted
is what stands in the page's article: text, captions and tables, without code, formulas and what opens on a click.
"""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from tests.project import ROOT

LIMIT = 12_000  # words of a rendered book
WRITTEN = 6_500  # of them by hand, in book/*.md and in the notebooks' markdown; the rest is made from tables
WORD = re.compile(r"[^\W\d_]{2,}(?:['’-][^\W\d_]+)*")
UNREAD = {"pre", "details", "script", "style", "svg", "button", "nav"}


def words(text):
    return len(WORD.findall(text))


def main_pages():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = [c["file"] for part in toc["parts"] if part["caption"] != "Appendix" for c in part["chapters"]]
    return [toc["root"], *chapters]


def written(name):
    """The words of a page's markdown."""
    page, notebook = ROOT / "book" / f"{name}.md", ROOT / "notebooks" / f"{name}.ipynb"
    if page.is_file():
        text = page.read_text(encoding="utf-8")
    else:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return words(re.sub(r"```.*?```|\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)", " ", text, flags=re.S))


class Article(HTMLParser):
    """The text of a page's article that is read without a click."""

    def __init__(self, html):
        super().__init__()
        self.text, self.open, self.unread = [], 0, []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        unread = tag in UNREAD and "open" not in given or {"cell_input", "math"} & set(
            (given.get("class") or "").split())
        if self.unread:
            self.unread.append(tag) if tag == self.unread[0] else None
        elif self.open and unread:
            self.unread = [tag]
        self.open += tag == "article"

    def handle_endtag(self, tag):
        if self.unread and tag == self.unread[0]:
            self.unread.pop()
        self.open -= tag == "article"

    def handle_data(self, data):
        if self.open and not self.unread:
            self.text.append(data)


def test_the_main_text_is_written_in_few_words():
    found = {name: written(name) for name in main_pages()}
    assert len(found) > 10 and min(found.values()) > 50
    assert sum(found.values()) <= WRITTEN, found


@pytest.mark.browser  # of a built book; needs no browser
@pytest.mark.skipif("BOOK" not in os.environ, reason="BOOK names no rendered book")
def test_the_main_text_of_the_book_is_read_in_few_words():
    texts = {name: " ".join(Article((Path(os.environ["BOOK"]) / f"{name}.html").read_text("utf-8")).text)
             for name in main_pages()}
    found = {name: words(text) for name, text in texts.items()}
    print(found)
    assert min(found.values()) > 50 and sum(found.values()) <= LIMIT, found


def test_what_is_not_read_is_not_counted():
    html = ('<p>out</p><article><p>two words</p><div class="cell_input docutils"><div>code<div>more</div></div></div>'
            "<details><summary>click</summary>folded</details><details open><p>unfolded</p></details>"
            "<figure><figcaption>its caption</figcaption></figure>"
            '<span class="math">x y</span><table><td>cell 0.5</td></table></article>')
    assert "".join(Article(html).text).split() == ["two", "wordsunfoldedits", "captioncell", "0.5"]
    assert words("L2H3 is 0.5 of a head's 10-shot label-shuffled prompts") == 6
