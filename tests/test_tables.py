import datetime
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from icl_lib import provenance as provenance_file
from icl_lib import tables
from icl_lib.provenance import PROVENANCE_KEYS, provenance
from icl_lib.tables import DICTIONARY, KEYS, SCHEMAS, VALUES, read_table, table_fingerprint, write_table

MADE_BY = {
    "suite": "smoke", "seed": 3, "dtype": "float32", "device": "cpu", "bos": "prepended",
    "versions": {"torch": "1"}, "git_commit": "unknown", "git_dirty": None,
    "time": "2026-01-01T00:00:00+00:00", "parameters": {"n_prompts": 4, "results": "results/smoke"},
    "made_from": {},
}  # fmt: skip


def scores(n_layers=2, n_heads=3):
    rows = [
        ("lab", 8, score, layer, head, task, layer + head / 10, float("nan"), 4)
        for task in ("b", "a")
        for head in range(n_heads)
        for layer in range(n_layers)
        for score in ("fv_null", "fv")
    ]
    return pd.DataFrame(rows, columns=list(SCHEMAS["scores"]))


def test_round_trip_sorts_rows_and_keeps_provenance(tmp_path):
    path = tmp_path / "a" / "b.parquet"
    write_table(scores(), path, schema_name="scores", provenance=MADE_BY)
    found = read_table(path, schema_name="scores")
    assert found.attrs == {"provenance": MADE_BY, "schema": "scores"}
    assert found[found["layer"] >= 0].attrs["provenance"] is found.attrs["provenance"]  # not copied: pages select often
    expected = scores().sort_values(KEYS["scores"], ignore_index=True)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    assert [str(found[c].dtype) for c in ("model", "step", "value")] == ["str", "int64", "float64"]
    assert [p.name for p in path.parent.iterdir()] == ["b.parquet"]


def test_bytes_do_not_depend_on_order_of_rows_columns_or_index(tmp_path):
    shuffled = scores().sample(frac=1, random_state=0)[list(reversed(SCHEMAS["scores"]))]
    for name, frame in (("a", scores()), ("b", shuffled)):
        write_table(frame, tmp_path / name, schema_name="scores", provenance=MADE_BY)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_schema_takes_an_empty_table_and_closed_columns_exist(tmp_path):
    for name, columns in SCHEMAS.items():
        write_table(
            pd.DataFrame(columns=list(columns)), tmp_path / name, schema_name=name, provenance=MADE_BY
        )
        assert list(read_table(tmp_path / name).columns) == list(columns)
        assert set(KEYS[name]) < set(columns)
    assert set(VALUES) <= {column for columns in SCHEMAS.values() for column in columns}


def test_the_dictionary_tells_every_column_and_nothing_else():
    common = DICTIONARY["meanings"]
    for name, table in DICTIONARY["tables"].items():
        meanings = table.get("meanings", {})
        assert table["row"] and set(meanings) <= set(SCHEMAS[name]) <= {*meanings, *common}, name
    assert set(common) <= {column for columns in SCHEMAS.values() for column in columns}


def test_statistics_may_lack_a_number(tmp_path):
    row = (
        "training_dynamics",
        "lab",
        "emergence of L2H3",
        float("inf"),
        512.0,
        float("inf"),
        float("nan"),
        float("nan"),
        8,
    )
    frame = pd.DataFrame([row], columns=list(SCHEMAS["statistics"]))
    write_table(frame, tmp_path / "t", schema_name="statistics", provenance=MADE_BY)
    pd.testing.assert_frame_equal(read_table(tmp_path / "t"), frame, check_dtype=False)


def change(**columns):
    return lambda frame: frame.assign(**columns)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: f.drop(columns=["value", "task"]),
            "lacks the columns task, value; expected model, step, score",
        ),
        (change(kind="x"), "has the extra columns kind"),
        (
            lambda f: f.rename(columns={"value": "val"}),
            "lacks the columns value and has the extra columns val",
        ),
        (change(step=1.0), "column step has the type float64, expected int"),
        (change(step=True), "column step has the type bool, expected int"),
        (change(step="8"), "column step has the type (str|object), expected int"),
        (change(value="high"), "column value has the type (str|object), expected float"),
        (change(model=7), "column model holds 7, expected text"),
        (change(model=None), "column model holds None, expected text"),
        (change(value=np.nan), "column value holds 12 missing numbers"),
        (change(value=np.inf), "column value holds an infinite number"),
        (
            change(score="induction_prefix"),
            "unknown score 'induction_prefix'; valid are .*; nearest: induction_prefix_matching",
        ),
        (change(task="a"), "6 rows with a repeated key, first {'model': 'lab'"),
    ],
)
def test_wrong_frames_are_refused_in_one_line_and_leave_nothing(tmp_path, spoil, message):
    frame = scores()
    frame = spoil(frame[frame.score == "fv"])
    with pytest.raises(ValueError, match=message) as caught:
        write_table(frame, tmp_path / "t.parquet", schema_name="scores", provenance=MADE_BY)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_other_bad_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="unknown table 'score'; nearest valid names: scores"):
        write_table(scores(), tmp_path / "t", schema_name="score", provenance=MADE_BY)
    with pytest.raises(ValueError, match="provenance lacks suite, seed"):
        write_table(scores(), tmp_path / "t", schema_name="scores", provenance={"bos": ""})
    with pytest.raises(ValueError, match="not plain JSON"):
        write_table(scores(), tmp_path / "t", schema_name="scores", provenance=MADE_BY | {"suite": object()})
    with pytest.raises(FileNotFoundError, match="t does not exist"):
        read_table(tmp_path / "t")


def spoiled_files(folder):
    good = folder / "good.parquet"
    write_table(scores(), good, schema_name="scores", provenance=MADE_BY)
    content = good.read_bytes()
    (folder / "truncated").write_bytes(content[: len(content) // 2])
    (folder / "empty").write_bytes(b"")
    (folder / "text").write_text("model,step\nlab,1\n")
    flipped = bytearray(content)
    flipped[-20] ^= 0xFF
    (folder / "flipped").write_bytes(flipped)
    scores().to_parquet(folder / "foreign")
    alike = pa.Table.from_pandas(scores()).replace_schema_metadata({b"icl_lib": b'{"schema": "scores"}'})
    pq.write_table(alike, folder / "alike")
    table = pq.read_table(good)
    pq.write_table(table.drop_columns(["value"]), folder / "altered")
    return good


def test_spoiled_files_are_named_in_one_line(tmp_path):
    good = spoiled_files(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        if path == good:
            continue
        with pytest.raises(ValueError, match=path.name) as caught:
            read_table(path)
        assert "\n" not in str(caught.value), path
    with pytest.raises(ValueError, match="holds the table 'scores', expected 'accuracy'"):
        read_table(good, schema_name="accuracy")


def test_a_write_that_fails_keeps_the_old_table(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    write_table(scores(), path, schema_name="scores", provenance=MADE_BY)
    before = path.read_bytes()

    def full_disk(table, file, **options):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables.pq, "write_table", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_table(scores(3), path, schema_name="scores", provenance=MADE_BY)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_fingerprint_ignores_what_differs_by_nature(tmp_path):
    later = MADE_BY | {"time": "2027", "git_commit": "abc", "git_dirty": True}
    later["parameters"] = {"n_prompts": 4, "results": "elsewhere"}
    nudged = scores()
    nudged.loc[0, "value"] = np.nextafter(nudged.loc[0, "value"], 1)
    write_table(scores(), tmp_path / "a", schema_name="scores", provenance=MADE_BY)
    write_table(scores(), tmp_path / "b", schema_name="scores", provenance=later)
    write_table(nudged, tmp_path / "c", schema_name="scores", provenance=MADE_BY)
    write_table(scores(), tmp_path / "d", schema_name="scores", provenance=MADE_BY | {"seed": 4})
    assert table_fingerprint(tmp_path / "a") == table_fingerprint(tmp_path / "b")
    assert table_fingerprint(tmp_path / "a") != table_fingerprint(tmp_path / "c")
    assert table_fingerprint(tmp_path / "a") != table_fingerprint(tmp_path / "d")


def test_provenance_is_complete_and_plain():
    made = provenance(
        suite="lab", seed=1, dtype="float32", device="cpu", bos="prepended", parameters={"models": {"a": [1]}}
    )
    assert set(made) == {*PROVENANCE_KEYS, "revision", "checked", "sums", "seconds", "processor"}
    assert json.loads(json.dumps(made)) == made
    assert set(made["versions"]) == {"icl_lib", "torch", "transformers", "transformer_lens"}
    assert made["versions"]["torch"][0].isdigit()
    time = datetime.datetime.fromisoformat(made["time"])
    assert abs(datetime.datetime.now(datetime.UTC) - time) < datetime.timedelta(minutes=1)


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)


def test_git_state_is_that_of_the_library(tmp_path):
    copy = tmp_path / "copied.py"
    shutil.copy(provenance_file.__file__, copy)
    program = (
        "import copied as t; print(t._git('rev-parse', 'HEAD'), repr(t._git('status', '--porcelain')))"
    )

    def state():
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip().split(" ", 1)

    assert state() == ["None", "None"]  # no repository
    git(tmp_path, "init")
    (tmp_path / ".gitignore").write_text("__pycache__\n")
    git(tmp_path, "add", ".gitignore")
    git(tmp_path, "commit", "-m", "another project")
    assert state() == ["None", "None"]  # the library is not part of that repository
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "all")
    commit, changes = state()
    assert len(commit) == 40 and changes == "''"
    copy.write_text(copy.read_text() + "\n")
    assert state() == [commit, "'M copied.py'"]
