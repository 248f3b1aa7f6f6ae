"""Draw the README's figure from a suite's tables: `python -m workflow.headline results/lab lab-450k`."""

import sys
from pathlib import Path

from icl_lib.figures import common as figures
from icl_lib.pages import ablation as ablation_report
from icl_lib.tables import read_table

FIGURE = Path("book/_static/headline.svg")


def main(results: str, model: str) -> None:
    last = max((Path(results) / "ablations" / model).glob("step*.parquet"), key=lambda path: int(path.stem[4:]))
    ablations = read_table(last, schema_name="ablations").query("positions != 'last'")
    figures.style()
    axes = figures.ablation_curves(ablations, ablation_report.curve_metrics(ablations, "all"), seed=0)
    axes[0, 0].figure.savefig(FIGURE, metadata={"Date": None})
    print(FIGURE)


if __name__ == "__main__":
    main(*sys.argv[1:])
