"""A notebook's runs over a grid of its parameters in one table: `python -m workflow.sweep JOINED POINTS PART...`.

A suite's `sweep: {scoring: {n_shots: [0, 1, 4, 10], seed: [0, 1]}}` runs the notebook for every combination, on the
last step of every model it runs on. POINTS is JSON: for each part its values of the grid.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from icl_lib.files import whole
from icl_lib.tables import read_table
from workflow.inputs import changed_files, fingerprint

JOINED_FROM = b"joined_from"  # of a joined table's metadata: JSON of its parts and their fingerprints


def join(path: Path, points: list[dict[str, Any]], parts: list[Path]) -> None:
    """Write the parts below each other, a column `swept_<parameter>` for each parameter in front, a list as JSON text.

    The parts' fingerprints go into the metadata. Errors as in `read_table`.
    """
    frames = []
    for point, part in zip(points, parts, strict=True):
        frame = read_table(part, schema_name=path.stem)
        for key, value in reversed(point.items()):
            frame.insert(0, f"swept_{key}", value if isinstance(value, str | int | float) else json.dumps(value))
        frames.append(frame)
    joined_from = json.dumps({part.as_posix(): fingerprint(part) for part in parts})
    table = pa.Table.from_pandas(pd.concat(frames, ignore_index=True), preserve_index=False)
    with whole(path) as temporary:
        pq.write_table(table.replace_schema_metadata({JOINED_FROM: joined_from.encode()}), temporary)


def changed_parts(path: Path, parts: list[Path]) -> list[str]:
    """What differs between a joined table's parts and those it should have, in words; empty when all is the same."""
    try:
        known = json.loads((pq.read_schema(path).metadata or {})[JOINED_FROM])
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return ["it cannot be read or does not say what it was joined from"]
    names = {part.as_posix() for part in parts}
    return [*(f"{name} is no part of it" for name in sorted(names - known.keys())),
            *(f"{name} is a part no more" for name in sorted(known.keys() - names)),
            *changed_files({name: was for name, was in known.items() if name in names})]


def main() -> int:
    parser = argparse.ArgumentParser(description="Join the tables of a sweep.")
    parser.add_argument("joined", type=Path, help="<kind>.parquet to write")
    parser.add_argument("points", type=json.loads)
    parser.add_argument("parts", type=Path, nargs="+")
    given = parser.parse_args()
    try:
        join(given.joined, given.points, given.parts)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
