"""A built book in headless Chromium, opened from disk: `make browser-test SUITE=lab`. BOOK names its html folder."""

import gzip
import io
import os
import re
import shutil
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pandas as pd
import pytest

from tests.drawn import figures_in, points_drawn

pytestmark = pytest.mark.browser
BOOK = Path(os.environ.get("BOOK", "results/lab/book/_build/html")).resolve()
WIDTHS = (390, 768, 1280)
SHOWN = ("index", "example", "claims", "scoring", "ablation", "training_dynamics", "model_scaling", "ablation_ladder",
         "causal_test", "paper_figures", "performance")
# Elements of the text that reach out of it and do not scroll by themselves.
BEYOND_ITS_COLUMN = """() => {
  const article = document.querySelector("article");
  if (!article) return [];
  const right = article.getBoundingClientRect().right + 1;
  const scrolls = (e) => e !== article && (/auto|scroll/.test(getComputedStyle(e).overflowX)
    || scrolls(e.parentElement));
  return [...article.querySelectorAll("*")].filter((e) => e.getClientRects().length && !e.closest("mjx-container, svg")
    && e.getBoundingClientRect().right > right && !scrolls(e.parentElement)).map((e) => e.outerHTML.slice(0, 80));
}"""
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def pages():
    found = sorted(path for path in BOOK.rglob("*.html") if "_static" not in path.parts)
    return [path.relative_to(BOOK).as_posix() for path in found]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    assert program, "no Chromium found: install it, e.g. apt-get install chromium"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield chromium
        chromium.close()


@cache
def places(page):
    return set(re.findall(r' id="([^"]*)"', page.read_text("utf-8")))


@contextmanager
def new_page(browser):
    context = browser.new_context()
    page = context.new_page()
    page.faults = []
    page.on("console", lambda m: page.faults.append(f"console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda e: page.faults.append(f"script: {e}"))
    page.on("request", lambda r: page.faults.append(f"request of {r.url[:80]}")
            if urlsplit(r.url).scheme not in ("file", "data", "blob") else None)
    page.on("requestfailed", lambda r: page.faults.append(f"failed: {r.url[:80]}"))
    yield page
    context.close()


@pytest.fixture
def page(browser):
    with new_page(browser) as page:
        yield page


@pytest.fixture(scope="module", params=pages())
def opened(browser, request):
    """Each page of the book as a phone loads it, once for all tests that only look at it."""
    with new_page(browser) as page:
        page.name = request.param
        open_page(page, page.name, width=WIDTHS[0])
        yield page


def open_page(page, name, *, width=1280, theme="light"):
    page.add_init_script(f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')")
    page.set_viewport_size({"width": width, "height": 900})
    page.goto((BOOK / name).as_uri(), wait_until="load")
    page.wait_for_timeout(150)


def test_there_is_a_book():
    assert "index.html" in pages(), f"no book in {BOOK}: make book"
    size = sum(path.stat().st_size for path in BOOK.rglob("*") if path.is_file())
    assert size < 60e6, f"{size / 1e6:.1f} MB"  # with every table, notebook and figure's numbers to save
    assert not [*BOOK.rglob("*.map"), *BOOK.rglob("*.ttf"), *BOOK.rglob("*.mo")], "what no reader opens"


def test_every_page_is_whole_and_asks_nothing_of_the_network(opened):
    page = opened
    page.wait_for_function("!document.querySelector('.math') || document.querySelector('mjx-container')")
    assert page.evaluate("[...document.querySelectorAll('.math')].every(m => m.querySelector('mjx-container'))")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(150)
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{wide} px too wide at {width} px"
        assert not (cut := page.evaluate(BEYOND_ITS_COLUMN)), f"beyond the column at {width} px: {cut[:3]}"
    nameless = page.evaluate("[...document.images].filter(i => !i.alt.trim()).map(i => i.src.slice(0, 80))")
    assert not nameless, nameless
    broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.alt)")
    assert not broken, broken
    assert not page.faults, page.faults


def test_every_figure_shows_something(opened):
    page, name = opened, opened.name
    figures = figures_in((BOOK / name).read_text("utf-8"))
    # the script puts a plot of its own in the place of the map of heads
    assert len(figures) == page.evaluate("document.querySelectorAll('img.figure, .head-map .map').length")
    assert figures or name.removesuffix(".html") not in SHOWN or name == "performance.html"
    blank = [svg for svg in figures if not any(points_drawn(svg)) and "no checkpoint of this model is" not in svg]
    assert not blank, f"{len(blank)} of {len(figures)} figures"
    captions = page.evaluate("[...document.querySelectorAll('figure[id^=figure-]')].map("
                             "f => [f.id, f.querySelector('figcaption b').textContent])")
    assert captions == [[f"figure-{n}", f"Figure {n}."] for n in range(1, len(captions) + 1)]


def test_the_front_page_answers_before_any_code(page):
    open_page(page, "index.html")
    parts = "article table, article img.figure, article .cell_input"
    first = page.evaluate(f"[...document.querySelectorAll('{parts}')].filter(e => e.getClientRects().length)"
                          ".map(e => e.className)")
    assert first[0].startswith("ledger") and "figure" in first
    assert not any("cell_input" in name for name in first[: first.index("figure")])
    assert page.locator(".ledger.front tr:first-child a[href*='#figure-']").count() > 0


def test_no_page_shows_an_object_in_pythons_words():
    shown = {name: re.findall(r"&lt;[\w.]+ object", (BOOK / name).read_text("utf-8")) for name in pages()}
    assert not [name for name, found in shown.items() if found]


def test_a_page_begins_with_its_finding_and_its_code_is_closed():
    for name in pages():
        html = (BOOK / name).read_text("utf-8")
        first = re.search(r'class="cell[ "].*?(cell_input|cell_output)', html, re.DOTALL)
        assert first is None or first[1] == "cell_output" or "cell_output" not in html, name
        assert html.count('class="cell_input') == len(re.findall(r'<details class="[^"]*hide[^"]*">', html)), name


def test_titles_tell_pages_apart():
    titles = [re.search(r"<title>(.*?)</title>", (BOOK / name).read_text("utf-8"), re.DOTALL)[1] for name in pages()]
    assert len(set(titles)) == len(titles), sorted(title for title in titles if titles.count(title) > 1)


def test_what_can_be_saved_can_be_read(opened):
    page = opened
    links = page.evaluate("[...document.querySelectorAll('article a[download]')].map(a => [a.download, a.href])")
    for named, address in links:
        if address.startswith("data:text/csv"):
            table = pd.read_csv(io.StringIO(unquote(address.split(",", 1)[1])))
            assert len(table.columns) > 2 and len(table) and named.endswith(".csv")
        elif urlsplit(address).path.endswith(".gz"):
            nbformat.reads(gzip.decompress(Path(unquote(urlsplit(address).path)).read_bytes()).decode(), as_version=4)
    tables = page.evaluate("[...document.querySelectorAll('.data-of-page a[href*=\"tables/\"]')].map(a => a.href)")
    for path in (Path(unquote(urlsplit(address).path)) for address in tables):
        assert path.name.endswith(".ipynb.gz") or len(pd.read_csv(path, nrows=3).columns) > 2, path
    figures = page.locator("article figure[id^=figure-]").count()
    assert sum(address.startswith("data:text/csv") for _, address in links) == figures


def test_a_table_filters_and_can_be_saved(page):
    open_page(page, "claims.html")
    tools = page.locator(".table-tools", has=page.locator("input")).first
    rows = tools.locator("xpath=following-sibling::table[1]").locator("tbody tr")
    every = rows.count()
    with page.expect_download() as saved:
        tools.locator("a").click()
    table = pd.read_csv(saved.value.path())
    assert len(table) == every > 15 and saved.value.suggested_filename.startswith("claims-table-")
    tools.locator("input").fill("H1, 4a")
    assert 0 < rows.locator("visible=true").count() < every


def test_the_pages_looked_at_are_there():
    assert {f"{name}.html" for name in SHOWN} <= set(pages())


def test_links_lead_to_places_that_exist(opened):
    broken = []
    for href in opened.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.href)"):
        parts = urlsplit(href)
        if parts.scheme == "file":
            target, place = Path(unquote(parts.path)), unquote(parts.fragment)
            exists = target.is_file() and target.is_relative_to(BOOK)
            if not exists or (place and place not in places(target)):
                broken.append(href.removeprefix(BOOK.as_uri()))
    assert not broken, broken


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", [name for name in pages() if name.removesuffix(".html") in SHOWN])
def test_pages_can_be_read_by_everyone(page, name, theme):
    from axe_playwright_python.sync_playwright import Axe

    open_page(page, name, theme=theme)
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    if shots := os.environ.get("SHOTS"):
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            page.screenshot(path=Path(shots) / f"{name}-{theme}-{width}.png", full_page=True)
    rules = ["color-contrast", "heading-order", "image-alt", "link-name", "button-name", "scrollable-region-focusable"]
    found = Axe().run(page, context="article", options={"runOnly": rules}).response["violations"]
    assert not found, [(v["id"], [n["html"][:120] for n in v["nodes"][:3]]) for v in found]
    drawn = page.evaluate("[...document.querySelectorAll('img.figure')].map(i => getComputedStyle(i))"
                          ".map(s => [s.backgroundColor, s.filter])")
    wanted = ["rgba(0, 0, 0, 0)", "invert(1) hue-rotate(180deg)"] if theme == "dark" else ["rgb(255, 255, 255)", "none"]
    assert all(found == wanted for found in drawn), drawn
    svg = page.evaluate("[...document.querySelectorAll('img.figure')].map(i => decodeURIComponent(i.src))")
    assert not any('id="patch_1"' in one and "fill: #ffffff" in one.split('id="axes_1"')[0] for one in svg)


def test_pointing_at_the_head_map_tells_a_heads_scores(page):
    open_page(page, "scoring.html")
    plot = page.locator(".head-map .map .nsewdrag").first
    plot.wait_for()
    plot.scroll_into_view_if_needed()
    plot.hover()
    page.wait_for_selector(".hoverlayer text")
    told = page.locator(".hoverlayer").first.text_content()
    assert re.search(r"L\d+H\d+attention mass \d\.\d{4} \(rank \d+\)prefix matching \d\.\d{4}"
                     r"FV score -?\d\.\d{4} \(rank \d+\)", told), told


def test_the_table_of_heads_sorts_by_keyboard(page):
    open_page(page, "scoring.html")
    table = page.locator(".head-map + details table.sortable")
    page.locator(".head-map + details summary").press("Enter")
    button = table.locator("th button", has_text="attention mass").first
    button.press("Enter")
    column = [float(text) for text in table.locator("tbody tr td:nth-child(3)").all_text_contents()]
    assert len(column) > 1 and column == sorted(column, reverse=True)
    button.press("Enter")
    assert table.locator("th[aria-sort=ascending]").count() == 1


def test_code_is_one_click_away(page):
    open_page(page, "scoring.html")
    cell = page.locator("details.hide:has(.cell_input)").first
    assert not cell.locator("pre").first.is_visible()
    cell.locator("summary").click()
    assert cell.locator("pre").first.is_visible()


def test_search_finds_the_function_vector(page):
    open_page(page, "search.html?q=function+vector".split("?")[0])
    page.goto((BOOK / "search.html").as_uri() + "?q=function+vector")
    page.wait_for_selector("#search-results ul.search li a")
    assert not page.faults, page.faults
