"""The upstream task files: downloaded once, checked, their splits and their faults.

GitHub kayoyin/icl-heads at commit c0ba06e, folder dataset_files; this package ships their SHA-256 sums and none of
them. `python -m icl_lib.data.upstream` downloads what the paper uses and prints every fault that it finds.
"""

import hashlib
import json
import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import yaml

from icl_lib.data.tasks import Task
from icl_lib.files import whole
from icl_lib.names import refuse_unknown

COMMIT = "c0ba06e"
ADDRESS = f"https://raw.githubusercontent.com/kayoyin/icl-heads/{COMMIT}/dataset_files"
SUMS = Path(__file__).with_name("upstream_tasks.sha256")
PRESETS = ("upstream", "upstream:released")
_PARTS = ("", "_train", "_val")

_TABLE = yaml.safe_load(Path(__file__).with_name("upstream_tasks.yaml").read_text(encoding="utf-8"))
SCORING_TASKS, EVALUATION_TASKS = (  # task to its folder
    {task: folder for folder, names in _TABLE[split].items() for task in names.split()}
    for split in ("scoring", "evaluation"))


def upstream_tasks(preset: str = "upstream") -> dict[str, Task]:
    """The paper's 29 scoring and 19 evaluation tasks, in order of names, their faults in `Task.faults`.

    Preset "upstream": the pairs of a task's _train and _val files, each pair once, empty ones left out; queries are
    the pairs of 30 % of the inputs, demonstrations those of the other 70 %, so that the two share no input.
    "upstream:released": the released code's file of each task and its split, 70/30 and the rest 70/30 again for
    scoring (seed 0), 10/90 and 10/90 for evaluation (seed 32); demonstrations are the first part, queries the last.
    Numbers are read as their digits, as there.

    Raises ValueError for an unknown preset and for a file that cannot be downloaded or is not the one expected.
    """
    refuse_unknown("task files", preset, PRESETS)
    files = fetch()
    tasks = {}
    for split, folders in (("scoring", SCORING_TASKS), ("evaluation", EVALUATION_TASKS)):
        for name, folder in folders.items():
            contents = {part: read_rows(files[f"{folder}/{name}{part}.json"])
                        for part in _PARTS if f"{folder}/{name}{part}.json" in files}
            if preset == "upstream":
                demonstrations, queries = split_by_input(contents)
            else:
                part = _TABLE["released_file"].get(name, "_train" if split == "scoring" else "_val")
                demonstrations, queries = released_split(contents[part], *_TABLE["released_split"][split])
            kind = "extractive" if folder == "extractive" else "abstractive"
            tasks[name] = Task(name, kind, split, demonstrations + queries, len(queries),
                               faults=tuple(find_faults(contents, new=folder == "new_tasks")))
    return dict(sorted(tasks.items()))


def split_by_input(contents: dict[str, list | None]) -> tuple[list, list]:
    """Demonstrations and queries of all pairs, no input in both; the same pairs give the same split."""
    rows = [row for part in ("_train", "_val") for row in contents.get(part) or []] or contents[""]
    pairs = list(dict.fromkeys((str(q), str(a)) for q, a in rows if str(q).strip() and str(a).strip()))
    inputs = list(dict.fromkeys(question for question, _ in pairs))
    order = np.random.default_rng(0).permutation(len(inputs))
    asked = {inputs[i] for i in order[: max(1, round(0.3 * len(inputs)))]}
    return [p for p in pairs if p[0] not in asked], [p for p in pairs if p[0] in asked]


def released_split(rows: list, outside: float, seed: int) -> tuple[list, list]:
    """First and last part of two splits, each by scikit-learn's rule: counts outside rounded up, legacy generator."""

    def cut(items: list) -> tuple[list, list]:
        n_outside = int(np.ceil(outside * len(items)))
        order = np.random.RandomState(seed).permutation(len(items))
        return [items[i] for i in order[n_outside:]], [items[i] for i in order[:n_outside]]

    pairs = [(str(question), str(answer)) for question, answer in rows]
    demonstrations, rest = cut(pairs)
    return demonstrations, cut(rest)[1]


def find_faults(contents: dict[str, list | None], *, new: bool = False) -> list[str]:
    """What is odd in a task's files, one line each; None stands for a file that is not valid JSON."""
    found = [f"no {part or 'full'} file" for part in _PARTS if part not in contents]
    found += [f"the {part or 'full'} file is not valid JSON" for part, rows in contents.items() if rows is None]
    read = {part: [(str(q), str(a)) for q, a in rows] for part, rows in contents.items() if rows is not None}
    train, val = read.get("_train", []), read.get("_val", [])
    every = [pair for rows in read.values() for pair in rows]
    counts = {
        "{} pairs are in _train and in _val": len(set(train) & set(val)),
        "{} pairs with an empty answer": len({pair for pair in every if not pair[1].strip()}),
        "{} pairs whose answer ends with a semicolon": len({p for p in every if p[1].rstrip().endswith(";")}),
        "{} pairs whose answer is a number, not text": len(
            {pair for rows in contents.values() for pair in rows or [] if not isinstance(pair[1], str)}),
        "{} pairs are repeated within a file": sum(len(rows) - len(set(rows)) for rows in read.values()),
    }
    found += [text.format(n) for text, n in counts.items() if n]
    if train and val and "" in read and Counter(read[""]) != Counter(train + val):
        found.append(f"the full file ({len(read[''])} pairs) is not _train and _val together ({len(train + val)})")
    pairs = set(train + val)
    if new and pairs and (n := sum(answer in question for question, answer in pairs)) > len(pairs) / 2:
        found.append(f"the answer stands in the query of {n} of {len(pairs)} pairs")
    return found


def read_rows(path: Path) -> list[tuple] | None:
    """(input, output) of a file as they stand there, a list's first element for a list; None for invalid JSON."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return None
    return [(row["input"][0] if isinstance(row["input"], list) else row["input"], row["output"]) for row in content]


def fetch() -> dict[str, Path]:
    """All files of the paper's tasks by `folder/name.json`, from the cache or downloaded into it.

    The cache is `icl_lib/task_files/` under ICL_CACHE, by default the user's cache folder. ICL_TASK_FILES_URL is
    another address to download from, ICL_TASK_FILES_SUMS another list of sums. Each file is compared with its sum
    on every call and gets its name only when it is complete and right. With HF_HUB_OFFLINE=1 nothing is downloaded.
    """
    sums_file = Path(os.environ.get("ICL_TASK_FILES_SUMS") or SUMS)
    sums = {name: digest for digest, name in map(str.split, sums_file.read_text(encoding="utf-8").splitlines())}
    wanted = {f"{folder}/{task}{part}.json" for task, folder in (SCORING_TASKS | EVALUATION_TASKS).items()
              for part in _PARTS}
    # A folder for each list of sums: other files never take the place of the right ones.
    cache = cache_folder() / hashlib.sha256(sums_file.read_bytes()).hexdigest()[:12]
    names = sorted(wanted & sums.keys())
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(names, pool.map(lambda name: _fetch(cache, name, sums[name]), names), strict=True))


def cache_folder() -> Path:
    """Where task files are kept."""
    base = os.environ.get("ICL_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "icl_lib" / "task_files"


def _fetch(cache: Path, name: str, expected: str) -> Path:
    path = cache / name
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == expected:
        return path
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        raise ValueError(f"task file {name} is not in {cache}, and HF_HUB_OFFLINE=1; run once with HF_HUB_OFFLINE=0")
    address = f"{(os.environ.get('ICL_TASK_FILES_URL') or ADDRESS).rstrip('/')}/{name}"
    try:
        with urlopen(address, timeout=60) as answer:
            content = answer.read()
        if (digest := hashlib.sha256(content).hexdigest()) != expected:
            raise ValueError(f"its SHA-256 sum is {digest[:12]}..., expected {expected[:12]}...")
        with whole(path) as temporary:
            temporary.write_bytes(content)
    except (OSError, HTTPException, ValueError) as error:
        raise ValueError(f"task file {name}: cannot download {address} to {cache} ({error}); nothing was kept, try "
                         "again later or set ICL_TASK_FILES_URL to another copy of the folder, ICL_CACHE to another "
                         "place") from None
    return path


def main() -> None:
    try:
        tasks = upstream_tasks()
    except ValueError as error:
        sys.exit(f"error: {error}")
    for name, task in tasks.items():
        for fault in task.faults:
            print(f"{name}: {fault}")
    n_scoring = sum(task.split == "scoring" for task in tasks.values())
    print(f"{n_scoring} scoring and {len(tasks) - n_scoring} evaluation tasks in {cache_folder()}")


if __name__ == "__main__":
    main()
