"""The upstream task files from a local server: download, checksums, splits, faults."""

import hashlib
import json

import pytest

from icl_lib.data import upstream
from icl_lib.data.sources import read_tasks
from icl_lib.data.tasks import draw_prompts
from icl_lib.data.upstream import EVALUATION_TASKS, SCORING_TASKS, find_faults, released_split, upstream_tasks
from tests.support.standin.data import make_tasks
from tests.support.standin.server import serve


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    make_tasks(folder / "task_files")
    with serve(folder) as address:
        yield folder / "task_files", f"{address}/task_files"


@pytest.fixture
def files(site, tmp_path, monkeypatch):
    """The environment of a run against the server, its cache empty."""
    monkeypatch.setenv("ICL_TASK_FILES_URL", site[1])
    monkeypatch.setenv("ICL_TASK_FILES_SUMS", str(site[0] / "SHA256SUMS"))
    monkeypatch.setenv("ICL_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    return site[0]


def test_the_shipped_sums_cover_the_paper_s_tasks():
    names = {line.split()[1] for line in upstream.SUMS.read_text().splitlines()}
    assert len(SCORING_TASKS) == 29 and len(EVALUATION_TASKS) == 19 and not set(SCORING_TASKS) & set(EVALUATION_TASKS)
    assert list(SCORING_TASKS.values()).count("abstractive") == 9
    for task, folder in (SCORING_TASKS | EVALUATION_TASKS).items():
        assert f"{folder}/{task}_val.json" in names
        assert (f"{folder}/{task}_train.json" in names) == (task not in ("bind_capital", "bind_capital_par"))


def test_files_are_downloaded_once_and_then_read_offline(files, monkeypatch):
    first = upstream_tasks()
    assert len(first) == 48 and first["antonym"].split == "scoring" and first["bind_shape"].split == "evaluation"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("ICL_TASK_FILES_URL", "http://127.0.0.1:9")
    assert read_tasks("upstream") == first


def test_the_default_split_shares_no_input_and_uses_every_pair(files):
    for name, task in upstream_tasks().items():
        queries, demonstrations = set(task.query_pairs), set(task.training_pairs)
        assert not {q for q, _ in queries} & {q for q, _ in demonstrations}
        rows = json.loads((files / (SCORING_TASKS | EVALUATION_TASKS)[name] / f"{name}.json").read_text())
        assert queries | demonstrations == {(row["input"], row["output"]) for row in rows}
        assert len(demonstrations) > len(queries) >= 5
    prompts = draw_prompts(task, n_prompts=3, n_shots=4, bos="", seed=0)
    assert all(p.text.count("Q: ") == 5 for p in prompts.clean)


@pytest.mark.parametrize(
    ("n", "outside", "sizes"),  # pairs in the file, share outside, pool and queries in section 4 of the paper's facts
    [(1678, 0.3, (1174, 152)), (522 - 157, 0.3, (255, 33)), (2280, 0.9, (228, 1847)), (136, 0.9, (13, 111)),
     (1000, 0.3, (700, 90)), (19800, 0.9, (1980, 16038))],
)
def test_the_released_split_has_the_sizes_of_the_released_code(n, outside, sizes):
    rows = [(i, i) for i in range(n)]
    demonstrations, queries = released_split(rows, outside, 32)
    assert (len(demonstrations), len(queries)) == sizes
    assert not set(demonstrations) & set(queries)


@pytest.mark.parametrize(
    ("n", "outside", "seed", "demonstrations", "queries"),
    [  # what two calls of scikit-learn's train_test_split gave
        (20, 0.3, 0, [6, 13, 4, 2, 5, 14, 9, 7, 16, 11, 3, 0, 15, 12], [17, 19]),
        (25, 0.9, 32, [11, 23], [9, 8, 24, 7, 10, 20, 4, 14, 1, 0, 21, 22, 16, 5, 15, 12, 2, 19, 18, 17, 3]),
    ],
)
def test_the_released_split_is_scikit_learn_s(n, outside, seed, demonstrations, queries):
    found = released_split([(i, i) for i in range(n)], outside, seed)
    assert [[int(q) for q, _ in part] for part in found] == [demonstrations, queries]


def test_the_released_preset_reads_the_released_files(files):
    task = upstream_tasks("upstream:released")["animal_v_object_5"]  # _val for scoring, unlike the others
    rows = json.loads((files / "extractive" / "animal_v_object_5_val.json").read_text())
    assert set(task.pairs) <= {(row["input"], row["output"]) for row in rows}


def test_faults_are_found_and_left_as_they_are():
    good, other = [("a", "x"), ("b", "y")], [("c", "z")]
    assert find_faults({"": good + other, "_train": good, "_val": other}) == []
    found = find_faults({
        "": None, "_train": [*good, ("a", "x"), ("d", "")], "_val": [("a", "x"), ("e", 3), ("f", "u;")]})
    assert found == [
        "the full file is not valid JSON", "1 pairs are in _train and in _val", "1 pairs with an empty answer",
        "1 pairs whose answer ends with a semicolon", "1 pairs whose answer is a number, not text",
        "1 pairs are repeated within a file"]
    assert find_faults({"_val": [("x of a", "a")]}, new=True) == [
        "no full file", "no _train file", "the answer stands in the query of 1 of 1 pairs"]
    assert find_faults({"": good, "_train": good, "_val": other}) == [
        "the full file (2 pairs) is not _train and _val together (3)"]


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="'upstream:old'.*upstream:released"):
        read_tasks("upstream:old")


def test_what_cannot_be_had_is_said_in_one_line_and_nothing_is_kept(files, tmp_path, monkeypatch):
    def message() -> str:
        with pytest.raises(ValueError) as error:
            upstream_tasks()
        assert "\n" not in str(error.value)
        assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]
        return str(error.value)

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE=0" in message()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("ICL_TASK_FILES_URL", "http://127.0.0.1:9")
    assert "cannot download http://127.0.0.1:9/abstractive/" in message()
    monkeypatch.setenv("ICL_TASK_FILES_URL", files.as_uri() + "/nowhere")
    assert "set ICL_TASK_FILES_URL" in message()
    wrong = files.parent / "WRONG"
    wrong.write_text(f"{hashlib.sha256(b'').hexdigest()}  abstractive/antonym_val.json\n")
    monkeypatch.setenv("ICL_TASK_FILES_URL", files.as_uri())
    monkeypatch.setenv("ICL_TASK_FILES_SUMS", str(wrong))
    assert "SHA-256" in message() and "nothing was kept" in message()
    assert not list(tmp_path.rglob("*.json"))
    monkeypatch.setenv("ICL_TASK_FILES_SUMS", str(files / "SHA256SUMS"))
    (tmp_path / "file").touch()
    monkeypatch.setenv("ICL_CACHE", str(tmp_path / "file"))
    assert "Not a directory" in message() and "ICL_CACHE" in message()


def test_a_file_that_was_altered_in_the_cache_is_downloaded_again(files):
    path = upstream.fetch()["abstractive/antonym_val.json"]
    right = path.read_bytes()
    path.write_bytes(right[:10])
    assert upstream.fetch()["abstractive/antonym_val.json"].read_bytes() == right
