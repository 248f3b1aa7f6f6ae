"""A small stand-in for this repository: its workflow, quick notebooks, a model that is only files."""

import shutil
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parent.parent

PARAMETERS = {
    "scoring": 'model: str = "m"\nstep: int = 0  # optimiser step\nvalue: float = 0.5',
    "ablation": 'model: str = "m"\nstep: int = 0',
    "protocols": 'model: str = "m"\nstep: int = 0',
    "task_execution": 'model: str = "m"\nstep: int = 0',
    "patterns": 'model: str = "m"\nstep: int = 0',
    "example": 'model: str = "m"\nstep: int = 0',
    "training_dynamics": 'model: str = "m"\nsteps: list[int] = [0]\nablated_steps: dict = {}',
    "model_scaling": 'models: dict[str, list[int]] = {"m": [0]}',
    "ablation_ladder": "",
    "causal_test": "",
    "two_papers": 'pattern_models: dict[str, list[int]] = {}',
    "claims": 'models: dict[str, list[int]] = {"m": [0]}',
    "lab": 'models: dict[str, list[int]] = {"m": [0]}',
    "paper_figures": 'models: dict[str, list[int]] = {"m": [0]}',
    "index": 'models: dict[str, list[int]] = {"m": [0]}',
}
COMMON = 'suite: str = "s"\nseed: int = 0\nresults: str = "../results/s"'

WRITE = """
def write(kind, stem, **columns):
    made_by = provenance(suite=suite, seed=seed, dtype="", device="", bos="", parameters={})
    columns |= {"smallest_p": float("nan")} if kind == "statistics" else {}
    path = f"{results}/{kind}/{stem}.parquet"
    write_table(pd.DataFrame([columns]), path, schema_name=kind, provenance=made_by)
"""
MEASURED = "standard_error=0.1, n_prompts=4"
BODIES = {
    "scoring": f"""
write("scores", f"{{model}}/step{{step}}", model=model, step=step, score="fv", layer=0, head=0, task="",
      value=value + step, {MEASURED})
write("accuracy", f"{{model}}/step{{step}}", model=model, step=step, n_shots=10, labels="clean", task="t",
      task_type="abstractive", split="test", metric="exact_match", value=value, {MEASURED})
write("tasks", f"{{model}}/step{{step}}", model=model, step=step, task="t", task_type="abstractive", split="test",
      group="look-up", floor=0.5, n_pairs=4, faults="")
write("samples", f"{{model}}/step{{step}}", model=model, step=step, task="t", prompts="clean", layer=0, head=0,
      position=0, to_position=0, token="BOS", value=1.0)
write("statistics", f"scoring/{{model}}/step{{step}}", notebook="scoring", model=model, name="highest fv", value=value,
      low=0.0, high=1.0, p_value=0.5, n=1)
""",
    "ablation": f"""
scores = read_table(f"{{results}}/scores/{{model}}/step{{step}}.parquet")
write("ablations", f"{{model}}/step{{step}}", model=model, step=step, metric="m", replacement="mean",
      positions="last", ranking="fv", excluded="", matched="", fraction=0.1, n_heads=1, draw=0, task="t",
      value=scores.value[0], {MEASURED})
write("effects", f"{{model}}/step{{step}}", model=model, step=step, metric="m", replacement="mean",
      positions="last", ranking="fv", excluded="", control="none", fraction=0.1, n_heads=1, n_draws=1, value=0.1,
      low=0.0, high=0.2, p_value=0.5, n_prompts=4)
write("curves", f"{{model}}/step{{step}}", model=model, step=step, ranking="fv", matched="", fraction=0.1,
      position=8.0, value=2.5, {MEASURED})
write("statistics", f"ablation/{{model}}/step{{step}}", notebook="ablation", model=model, name="lost", value=0.1,
      low=0.0, high=0.2, p_value=0.5, n=1)
""",
    "protocols": """
write("statistics", f"protocols/{model}/step{step}", notebook="protocols", model=model, name="departure",
      value=0.5, low=0.0, high=1.0, p_value=0.5, n=1)
""",
    "task_execution": "",
    "patterns": "",
    "example": "",
    "training_dynamics": """
values = [read_table(f"{results}/scores/{model}/step{step}.parquet").value[0] for step in steps]
write("statistics", f"training_dynamics/{model}", notebook="training_dynamics", model=model, name="rise",
      value=values[-1] - values[0], low=0.0, high=1.0, p_value=0.5, n=len(ablated_steps[model]))
""",
    "model_scaling": """
write("statistics", "model_scaling", notebook="model_scaling", model="", name="models",
      value=float(len(models)), low=0.0, high=1.0, p_value=0.5, n=len(models))
""",
    "ablation_ladder": """
write("statistics", "ablation_ladder", notebook="ablation_ladder", model="", name="cell", value=0.5, low=0.0, high=1.0,
      p_value=0.5, n=6)
""",
    "causal_test": """
write("statistics", "causal_test", notebook="causal_test", model="", name="arm less sham", value=0.5, low=0.0, high=1.0,
      p_value=0.5, n=5)
""",
    "two_papers": """
write("statistics", "two_papers", notebook="two_papers", model="", name="models", value=float(len(pattern_models)),
      low=0.0, high=1.0, p_value=0.5, n=1)
""",
    "claims": """
write("statistics", "claims", notebook="claims", model="", name="3a", value=float(len(models)), low=0.0, high=1.0,
      p_value=0.5, n=len(models))
""",
    "lab": "print(len(models))",
    "paper_figures": "print(len(models))",
    "index": "print(len(models))",
}
# heads is imported by one notebook only, and from there by nothing else
IMPORTS = {
    "scoring": "from icl_lib.heads import head_names",
    "ablation": "",
    "protocols": "",
    "task_execution": "",
    "patterns": "",
    "example": "",
    "training_dynamics": "",
    "model_scaling": "from icl_lib.stats.intervals import holm",
    "ablation_ladder": "",
    "causal_test": "",
    "two_papers": "",
    "claims": "",
    "lab": "",
    "paper_figures": "",
    "index": "",
}


def notebook(*sources, parameters=0):
    """A notebook of code cells, the one at `parameters` tagged so."""
    cells = [nbformat.v4.new_code_cell(source.strip(), id=f"cell-{i}") for i, source in enumerate(sources)]
    if parameters is not None:
        cells[parameters].metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=kernel)


def write_template(folder, kind, body=None):
    imports = "import pandas as pd\nfrom icl_lib.provenance import provenance\n"
    imports += "from icl_lib.tables import read_table, write_table\n"
    imports += IMPORTS[kind]
    book_title = nbformat.v4.new_markdown_cell(f"# {kind}", id="title")
    content = notebook(
        f"{PARAMETERS[kind]}\n{COMMON}", imports, WRITE, BODIES[kind] if body is None else body
    )
    content.cells.insert(0, book_title)
    nbformat.write(content, Path(folder) / "notebooks" / f"{kind}.ipynb")


def suite(**changes):
    models = [{"name": "models/tiny", "steps": [0, 8]}]
    return {"suite": "lab", "seed": 1, "models": models} | changes


def write_suite(folder, **changes):
    path = Path(folder) / "config" / "lab.yaml"
    path.write_text(yaml.safe_dump(suite(**changes)))
    return path


def make_project(folder):
    """Copy what the workflow needs into an empty folder and fill in the rest."""
    folder = Path(folder)
    for name in ("workflow", "icl_lib"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("config", "notebooks", "book", "benchmarks"):
        (folder / name).mkdir()
    shutil.copy(ROOT / "Snakefile", folder)
    shutil.copy(ROOT / "benchmarks" / "cost.py", folder / "benchmarks")
    shutil.copy(ROOT / "config" / "schema.yaml", folder / "config")
    for step in (0, 8, 64):
        checkpoint = folder / "models" / "tiny" / f"step{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "config.json").write_text("{}")
        (checkpoint / "model.safetensors").write_bytes(b"weights")
    for kind in PARAMETERS:
        write_template(folder, kind)
    write_suite(folder)
    (folder / "_config.yml").write_text(
        "title: Stand-in\nonly_build_toc_files: true\nexecute: {execute_notebooks: 'off'}\n"
    )
    (folder / "_toc.yml").write_text(
        "format: jb-book\nroot: index\nparts:\n- caption: Results\n  chapters:\n"
        "  - file: scoring\n  - file: model_scaling\n  - file: training_dynamics\n"
        "  - file: runs\n"
    )
    (folder / "book" / "method.md").write_text("# Stand-in\n\nHello.\n")
    return folder
