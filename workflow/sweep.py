"""A notebook's runs over a grid of its parameters in one table: `python -m workflow.sweep JOINED PARTS`.

A suite's `sweep: {scoring: {n_shots: [0, 1, 4, 10], seed: [0, 1]}}` runs the notebook for every combination, on the
last step of every model it runs on. PARTS is JSON: each table with its values of the grid.
"""

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from icl_lib.files import whole
from icl_lib.tables import read_table
from workflow import command


def join(parts: Mapping[str, dict[str, Any]]) -> pa.Table:
    """The tables below each other, a column `swept_<parameter>` for each parameter in front, a list as JSON text.

    Errors as in `read_table`.
    """
    frames = []
    for part, point in parts.items():
        frame = read_table(part)
        for key, value in reversed(point.items()):
            frame.insert(0, f"swept_{key}", value if isinstance(value, str | int | float) else json.dumps(value))
        frames.append(frame)
    table = pa.Table.from_pandas(pd.concat(frames, ignore_index=True), preserve_index=False)
    return table.replace_schema_metadata(None)


@partial(command, takes="JOINED PARTS")
def main(arguments: list[str]) -> None:
    joined, parts = arguments
    with whole(Path(joined)) as temporary:
        pq.write_table(join(json.loads(parts)), temporary)


if __name__ == "__main__":
    sys.exit(main())
