"""The lab's ladder in tables, the recipe's trials, and training a committed model again."""

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import load_file

from icl_lib.data.sources import read_tasks
from lab import files, ladder, recipe, retrain, seeds
from lab import train as trainer

RECIPES = yaml.safe_load(files.ARMS.read_text(encoding="utf-8"))


def tokens_per_step(config):
    return sum(kind["rows"] * kind["length"] for kind in config["mixture"].values())


def test_a_change_is_merged_into_the_rung_and_none_takes_a_key_out():
    config = {"lr": 1, "mixture": {"a": {"rows": 1, "length": 2}, "b": {"rows": 3, "length": 4}}}
    found = recipe.changed(config, {"mixture": {"a": None, "b": {"rows": 5, "length": 4}}, "leave_out": ["x*"]})
    assert found == {"lr": 1, "mixture": {"b": {"rows": 5, "length": 4}}, "leave_out": ["x*"]}
    assert config["mixture"]["a"] == {"rows": 1, "length": 2}


@pytest.mark.parametrize(("rung", "arm"), [(rung, arm) for rung, arms in RECIPES.items() for arm in arms])
def test_arms_change_what_they_say_and_keep_the_number_of_tokens(rung, arm):
    base = trainer.read_rung(rung)
    config = recipe.changed(base, RECIPES[rung][arm])
    assert abs(tokens_per_step(config) / tokens_per_step(base) - 1) < 0.02
    assert (config == base) == (arm == "as it is")
    assert set(config) <= set(base) | {"leave_out"} and set(config["mixture"]) <= set(base["mixture"])
    assert set(config["shape"]) == set(base["shape"])


def test_left_out_tasks_are_never_read(tmp_path, monkeypatch):
    seen = []

    class Noting(trainer.Generator):
        def __init__(self, tokenizer, tasks, **options):
            seen.extend(tasks)
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "Generator", Noting)
    config = trainer.read_rung("lab-7k") | {"leave_out": ["*_or_*", "antonym"]}
    with pytest.raises(KeyboardInterrupt):
        trainer.train("tiny", models=tmp_path, config=config)
    assert "months_next" in seen and "antonym" not in seen and not [name for name in seen if "_or_" in name]


@pytest.mark.parametrize("rung", RECIPES)
def test_the_table_of_trials_has_a_row_per_arm_run(rung):
    table = pd.read_csv(files.TRIALS).query("rung == @rung")
    assert not table.duplicated(["arm", "seed"]).any()
    assert table["arm"].drop_duplicates().to_list() == [arm for arm in RECIPES[rung] if arm in set(table["arm"])]
    shown = ladder.recipe_table(rung)
    assert shown.index.to_list() == table["arm"].to_list() and shown.index[0] == "as it is"
    assert shown.notna().to_numpy().all()
    assert {"prefix matching", "FV score", "null, 99 %", "10 shots", "loss"} <= set(shown)
    assert ("FV heads" in shown) == (rung == "lab-370k"), "older trials lack it"
    assert ladder.recipe_changes(rung).index.to_list() == list(RECIPES[rung])
    assert f"of {(table.arm == 'as it is').sum()} seeds" in ladder.recipe_sentence(rung)
    assert ("(layers: " in ladder.recipe_sentence(rung)) == (rung == "lab-370k")


def test_a_trial_trains_the_changed_size_once_and_adds_its_row(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trained = []

    def train(name, *, seed, models, config):
        folder = models / name / f"seed{seed}"
        if not folder.is_dir():
            trained.append((name, config["lr"]))
            folder.mkdir(parents=True)
            pd.DataFrame({"loss": [3.0, 1.5]}).to_csv(folder / "curve.csv")
        return folder

    recipes, table = tmp_path / "recipe.yaml", tmp_path / "recipe.csv"
    recipes.write_text(yaml.safe_dump({"lab-40k": {"as it is": {}, "slow": {"lr": 1e-9}}, "lab-20k": {
        "as it is": {}, "slow": {"lr": 1e-8}}}, sort_keys=False))
    for name, value in {"ARMS": recipes, "TRIALS": table, "MODELS": tmp_path, "train": train,
                        "measure": lambda name, **_: {"FV heads": 2}}.items():
        monkeypatch.setattr(recipe, name, value)
    assert recipe.main(["slow", "--rung", "lab-20k"]) == 0 and recipe.main(["slow"]) == 0
    assert recipe.main(["--rung", "lab-20k"]) == 0 and recipe.main(["--rung", "lab-20k"]) == 0
    as_it_is = trainer.read_rung("lab-20k")["lr"]
    assert trained == [("slow", 1e-8), ("slow", 1e-9), ("as-it-is", as_it_is)], "finished rows are not repeated"
    rows = pd.read_csv(table)[["rung", "arm"]].to_numpy().tolist()
    assert rows == [["lab-20k", "as it is"], ["lab-20k", "slow"], ["lab-40k", "slow"]]
    assert recipe.main(["fast", "--rung", "lab-20k"]) == 1
    assert "error: unknown arm of lab-20k 'fast'; valid are as it is, slow" in capsys.readouterr().err


def test_the_ladder_has_a_row_per_trained_rung_with_sizes_from_the_weights():
    table = ladder.ladder_table()
    assert table["parameters"].is_monotonic_increasing
    weights = load_file(next((trainer.MODELS / "lab-7k" / "seed0" / "step0").glob("*.safetensors")))
    sizes = {name: weight.size for name, weight in weights.items()}
    embeddings = sum(size for name, size in sizes.items() if "embed" in name)
    assert table.loc["lab-7k", "parameters"] == sum(sizes.values()) - embeddings > 0
    assert len(ladder.trained()) == table["seeds"].sum()
    curve = ladder.curves([("lab-7k", 0)])
    assert table.loc["lab-7k", "million tokens"] == round(curve["tokens"].max() / 1e6, 1)


def test_seeds_are_judged_by_what_their_size_was_made_for(monkeypatch):
    models = {"lab-370k": [4096], "lab-370k-seed1": [4096], "lab-40k": [8192]}
    reached = ladder.reached_table("lab/training", models, read_tasks())
    means = ladder.means_by_size(reached)
    assert means["seeds"].to_dict() == {"lab-370k": 2}
    assert means["10 shots"].item() == round(reached["10 shots"].mean(), 2)
    assert not {"parameters", "FV threshold", "induction heads by layer"} & set(means)
    aims = {"induction layers": 2, "other heads": 0.75, "10 shots": 0.9, "gap to shuffled": 0.5}
    monkeypatch.setattr(seeds, "read_rung", lambda _: {"aims": aims})
    table = seeds.seeds_table("lab/training", models, reached, "lab-370k")
    assert list(table.index) == list(models)[:2]
    for model, row in table.iterrows():
        scores = pd.read_parquet(f"lab/training/scores/{model}/step4096.parquet")
        fv = scores[scores["score"] == "fv"].groupby(["layer", "head"])["value"].mean()
        assert row["FV heads"] == (fv > reached.at[model, "FV threshold"]).sum() > 0
        by_layer = np.array(row["induction heads by layer"].split(), dtype=int)
        assert (row["induction layers"], row["other heads"]) == ((by_layer > 0).sum(), 1 - by_layer.max() / 4)
        assert row["aims met"] == (by_layer.max() == 1)
    assert set(table["aims met"]) == {True, False}
    assert seeds.aims_sentence(table, "lab-370k").startswith("Of 2 seeds 1 have all that")
    assert "other heads, at least 0.75: 1; 10 shots, at least 0.9: 2;" in seeds.aims_sentence(table, "lab-370k")
    assert seeds.seeds_shown(table)["aims met"].to_dict() == {"0": "no", "1": "yes"}


def test_tasks_that_are_not_the_labs_share_no_labels():
    models = {"lab-370k": [4096]}
    lab, own = (ladder.reached_table("lab/training", models, tasks) for tasks in (read_tasks(), {}))
    shared = ["0 shots", "1 shot", "10 shots", "10, shuffled"]
    assert lab[shared].notna().all(axis=None) and own[shared].isna().all(axis=None)
    assert own.drop(columns=shared).equals(lab.drop(columns=shared))


def test_every_task_has_a_card_and_a_place_in_the_world_table():
    tasks = read_tasks()
    assert len(ladder.card_table(tasks)) == ladder.world_table(tasks)["tasks"].sum() == len(tasks) >= 40
    mixture = ladder.mixture_table("lab-7k")
    assert mixture["tokens"].sum() == tokens_per_step(trainer.read_rung("lab-7k"))


def test_a_model_trained_again_is_compared_weight_by_weight_and_by_accuracy(monkeypatch):
    folder = trainer.MODELS / "lab-7k" / "seed0"
    assert (retrain.largest_differences(folder, folder) == 0).all()
    found = iter([{"10 shots": 0.9}, {"10 shots": 0.8}])
    other = dict.fromkeys(retrain.TOLERANCES, 0.5)
    monkeypatch.setattr(retrain, "measure", lambda *_, **__: other | next(found))
    table, off = retrain.compare(folder, folder, n_prompts=1)
    assert off == ["10 shots: 0.800, committed 0.900, expected within 0.05"] and len(table) == 2
    monkeypatch.setattr(retrain, "measure", lambda *_, **__: other | {"unseen tasks": np.nan})
    assert len(retrain.compare(folder, folder, n_prompts=1)[1]) == 1
