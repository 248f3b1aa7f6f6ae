"""Draw the README's figure from a suite's tables: `python -m workflow.headline results/lab lab-370k`."""

import sys
from pathlib import Path

from icl_lib.figures.ablation import headline
from icl_lib.figures.common import style
from icl_lib.tables import read_table

FIGURE = Path("book/_static/headline.svg")


def main(results: str, model: str) -> None:
    last = max((Path(results) / "ablations" / model).glob("step*.parquet"), key=lambda path: int(path.stem[4:]))
    style()
    figure = headline(read_table(last, schema_name="ablations"), seed=0)
    figure.axes[0, 0].figure.savefig(FIGURE, metadata={"Date": None})
    print(FIGURE)


if __name__ == "__main__":
    main(*sys.argv[1:])
