"""Tables: tidy parquet files with a fixed schema each, and what made them in the file's metadata."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pandas.api.types import infer_dtype

from icl_lib.files import whole
from icl_lib.names import refuse_unknown
from icl_lib.provenance import PROVENANCE_KEYS

# Every table: what a row is, columns with types and meanings, keys; and the columns with a closed set of values.
DICTIONARY = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
SCHEMAS: dict[str, dict[str, str]] = {name: table["columns"] for name, table in DICTIONARY["tables"].items()}
KEYS = {name: table.get("keys") or [c for c in table["columns"] if c not in ("value", "standard_error", "n_prompts")]
        for name, table in DICTIONARY["tables"].items()}
VALUES: dict[str, list[str]] = DICTIONARY["values"]

_MAY_BE_NAN = {"standard_error", "low", "high", "p_value"}

_ARROW = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
_METADATA_KEY = b"icl_lib"
# What suite files may name: parts of letters, digits and _ . - that do not begin with a dot.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*")
_MARKUP = re.compile(r"[<>`\x00-\x1f\x7f]")  # names are put into pages


def write_table(frame: pd.DataFrame, path: str | Path, *, schema_name: str, provenance: dict[str, Any]) -> None:
    """Write a table: checked, columns in order, rows sorted, under its final name only once complete.

    The same rows and provenance give the same bytes. Raises ValueError in one line for an unknown schema, missing,
    extra or wrongly typed columns, values outside a column's set, numbers that are not finite, rows that repeat a key,
    and incomplete provenance. A table that the workflow made is left as it is by anything else, which is printed.
    """
    path = Path(path)
    frame = checked(frame, schema_name)
    metadata = json.dumps({"schema": schema_name, "provenance": _checked_provenance(provenance)}, sort_keys=True)
    if not provenance["made_from"] and _made_by_workflow(path):
        print(f"{path} was made by a suite and is left as it is; to write a table give another results folder")
        return
    schema = pa.schema([(name, _ARROW[kind]) for name, kind in SCHEMAS[schema_name].items()])
    # Without pandas' own metadata, which would carry its version.
    table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
    table = table.replace_schema_metadata({_METADATA_KEY: metadata.encode()})
    with whole(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


class Provenance(dict):
    """What made a table. Pandas copies `attrs` with every selection of rows or columns; this is shared instead."""

    def __deepcopy__(self, memo: dict) -> "Provenance":
        return self


def read_table(path: str | Path, *, schema_name: str | None = None) -> pd.DataFrame:
    """A table as it was written, its provenance in `.attrs["provenance"]`, its schema in `.attrs["schema"]`.

    Raises FileNotFoundError for a missing file, and ValueError naming the file when it is truncated, not a
    parquet file, not written by this library, altered, or not of the schema asked for.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"table {path} does not exist")
    try:
        table = pq.read_table(path, partitioning=None, memory_map=False)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is truncated or not a parquet file ({str(error).splitlines()[0]})") from None
    try:
        metadata = json.loads((table.schema.metadata or {})[_METADATA_KEY])
        found, made_by = metadata["schema"], _checked_provenance(metadata["provenance"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is a parquet file but not one of icl_lib: it has no provenance") from None
    if schema_name is not None and found != schema_name:
        raise ValueError(f"{path} holds the table {found!r}, expected {schema_name!r}")
    try:
        frame = checked(table.to_pandas(), found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    frame.attrs.update(provenance=Provenance(made_by), schema=found)
    return frame


def results_path(results: str | Path) -> Path:
    """A suite's results folder: relative to the repository's root, wherever the notebook's kernel was started."""
    return Path(__file__).resolve().parent.parent / results


def model_folder(model: str) -> str:
    """The folder of a model's results below each kind of table; no name leads out of the results folder.

    Lab names, packaged names, hub ids and plain paths from the repository's root stay as they are. Any other path
    (absolute, from the home folder, with `..` in it, or plain from elsewhere) becomes its last part with eight digits
    of the sum of the place it stands for, so that two folders never share one.
    """
    elsewhere = Path(model).is_dir() and Path.cwd() != results_path("")
    if _PLAIN_NAME.fullmatch(model) and not elsewhere:
        return model
    place = Path(model).expanduser().resolve()
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", place.name).strip(".-") or "model"
    return f"{plain}-{hashlib.sha256(str(place).encode()).hexdigest()[:8]}"


def run_path(results: str | Path, kind: str, model: str, step: int, *, notebook: str = "") -> Path:
    """The file of one kind of table of a model at a step: `<results>/<kind>[/<notebook>]/<model>/step<N>.parquet`.

    `notebook` where several notebooks write the kind (`statistics`).
    """
    return Path(results, kind, notebook, model_folder(model), f"step{step}.parquet")


def table_fingerprint(path: str | Path) -> str:
    """SHA-256 over a table's rows, bit for bit, and its provenance, as 64 hex digits: whether two were made alike.

    Of the provenance all counts but time, git state, processor, rounding found on loading and the results folder.
    """
    frame = read_table(path)
    made_by = frame.attrs["provenance"] | {
        "time": "", "git_commit": "", "git_dirty": None, "processor": "", "seconds": None, "checked": ""}
    made_by["parameters"] = {k: v for k, v in made_by["parameters"].items() if k != "results"}
    digest = hashlib.sha256(json.dumps([frame.attrs["schema"], made_by], sort_keys=True).encode())
    for name, kind in SCHEMAS[frame.attrs["schema"]].items():
        column = frame[name]
        column = column.where(column.notna(), np.nan) if kind == "float" else column  # one NaN, whatever its bits
        digest.update(json.dumps(column.tolist()).encode() if kind == "str" else column.to_numpy().tobytes())
    return digest.hexdigest()


def checked(frame: pd.DataFrame, schema_name: str) -> pd.DataFrame:
    """The frame with columns in order, of the right types, its rows sorted by the keys. Errors as in `write_table`."""
    refuse_unknown("table", schema_name, SCHEMAS)
    columns, keys = SCHEMAS[schema_name], KEYS[schema_name]
    if sorted(map(str, frame)) != sorted(columns):
        wrong = {"lacks the columns": [c for c in columns if c not in frame],
                 "has the extra columns": [str(c) for c in frame if c not in columns]}
        said = " and ".join(f"{what} {', '.join(names)}" for what, names in wrong.items() if names)
        raise ValueError(f"table {schema_name} {said or 'repeats a column'}; expected {', '.join(columns)}")
    frame = pd.DataFrame({c: _typed(frame[c].reset_index(drop=True), c, kind) for c, kind in columns.items()})
    if schema_name != "statistics":
        _refuse_gaps(frame)
    frame = frame.sort_values(keys, kind="stable", ignore_index=True)
    repeated = frame.duplicated(keys)
    if repeated.any():
        row = frame.loc[repeated.idxmax(), keys].to_dict()
        raise ValueError(f"table {schema_name} has {int(repeated.sum())} rows with a repeated key, first {row}")
    return frame


def _typed(column: pd.Series, name: str, kind: str) -> pd.Series:
    if kind == "str":
        # each different text once; other types may not be hashable
        values = column.unique() if infer_dtype(column, skipna=False) == "string" else list(column)
        wrong = next((v for v in values if not isinstance(v, str) or _MARKUP.search(v)), None)
        if len(column) and (wrong is not None or column.isna().any()):
            raise ValueError(f"column {name} holds {wrong!r}, expected text without < > ` or control characters")
        for value in values:
            refuse_unknown(name, value, VALUES.get(name, [value]))
        return column.astype("str")
    is_int, is_float = pd.api.types.is_integer_dtype(column), pd.api.types.is_float_dtype(column)
    if len(column) and not (is_int or (kind == "float" and is_float)):
        raise ValueError(f"column {name} has the type {column.dtype}, expected {kind}")
    return column.astype("int64" if kind == "int" else "float64")


def _refuse_gaps(frame: pd.DataFrame) -> None:
    for name, column in frame.select_dtypes("float64").items():
        if column.isna().any() and name not in _MAY_BE_NAN:
            raise ValueError(f"column {name} holds {int(column.isna().sum())} missing numbers")
        if np.isinf(column).any():
            raise ValueError(f"column {name} holds an infinite number")


def _checked_provenance(made_by: dict[str, Any]) -> dict[str, Any]:
    missing = [key for key in PROVENANCE_KEYS if key not in made_by]
    if missing:
        raise ValueError(f"provenance lacks {', '.join(missing)}; make it with icl_lib.provenance.provenance")
    try:
        json.dumps(made_by, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"provenance is not plain JSON: {error}") from None
    return made_by


def _made_by_workflow(path: Path) -> bool:
    try:
        return path.is_file() and bool(read_table(path).attrs["provenance"]["made_from"])
    except ValueError:  # a damaged one may be replaced
        return False
