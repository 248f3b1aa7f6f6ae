"""Where the time of a suite's last run went: `python -m workflow.bench RESULTS`."""

import sys
from pathlib import Path

import nbformat


def durations(results: Path) -> list[tuple[str, float, int, float]]:
    """(notebook, seconds, slowest cell, its seconds) of every executed notebook, the longest first."""
    folder = results / "notebooks"
    rows = []
    for path in folder.rglob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        total = notebook.metadata.get("papermill", {}).get("duration") or 0.0
        cells = [cell.metadata.get("papermill", {}).get("duration") or 0.0 for cell in notebook.cells]
        slowest = max(range(len(cells)), key=cells.__getitem__, default=0)
        rows.append((path.relative_to(folder).as_posix(), total, slowest, cells[slowest] if cells else 0.0))
    return sorted(rows, key=lambda row: -row[1])


def main() -> int:
    results = Path(sys.argv[1])
    rows = durations(results)
    if not rows:
        print(f"error: no executed notebooks under {results}, run make sweep first", file=sys.stderr)
        return 1
    width = max(len(row[0]) for row in rows)
    print(f"{'notebook':{width}}  seconds  slowest cell")
    for name, total, cell, seconds in rows:
        print(f"{name:{width}}  {total:7.1f}  {cell} ({seconds:.1f})")
    print(f"{'all':{width}}  {sum(row[1] for row in rows):7.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
