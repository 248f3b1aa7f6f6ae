"""The lab's world, its text, its trainer: what the committed models stand on."""

import filecmp
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from icl_lib.data.sources import LAB_TASKS, read_tasks
from icl_lib.data.tasks import draw_prompts
from icl_lib.models.locate import steps_of
from lab import check, tokenizer, world
from lab import train as trainer
from lab.check import MEASURES, broken_promises
from lab.text import Generator, lab_documents, story
from lab.tokenizer import FOLDER as TOKENIZER
from lab.tokenizer import train_tokenizer

TINY = {
    "shape": {"layers": 2, "heads": 2, "d_model": 16, "rotary": 1.0, "init_std": 0.06, "tied": True},
    "steps": 6, "lr": 0.001, "warmup": 2, "weight_decay": 0.01, "log_every": 2, "checkpoints": [2, 4],
    "mixture": {"orders": {"rows": 2, "length": 24}, "listings": {"rows": 1, "length": 24}},
}  # fmt: skip


@pytest.fixture(scope="module")
def generator():
    tokenizer = trainer.PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
    return Generator(tokenizer, read_tasks())


def test_task_files_are_what_the_world_makes(tmp_path):
    world.write_tasks(tmp_path / "tasks", tmp_path / "cards.json")
    made = sorted(p.relative_to(tmp_path / "tasks") for p in (tmp_path / "tasks").rglob("*.json"))
    kept = sorted(p.relative_to(LAB_TASKS) for p in LAB_TASKS.rglob("*.json"))
    assert made == kept and len(made) >= 40
    for path in made:
        assert filecmp.cmp(tmp_path / "tasks" / path, LAB_TASKS / path, shallow=False), path
    assert filecmp.cmp(tmp_path / "cards.json", LAB_TASKS.parent / "cards.json", shallow=False)


def test_several_tasks_share_inputs_and_labels():
    tasks = read_tasks()
    sharing = [t for t in tasks.values() if t.type == "abstractive" and len(t.siblings) > 1]
    assert len(sharing) >= 20
    for task in sharing:
        words = {word for pair in task.pairs for word in pair}
        for other in task.siblings:
            assert words == {word for pair in tasks[other].pairs for word in pair}


@pytest.mark.parametrize(
    ("pairs", "held_out", "message"),
    [
        ([("a", "b"), ("a", "c")], 0, "'a' stands there twice"),
        ([("a", "b"), ("c", " ")], 0, "empty field"),
        ([("a", "b"), ("c", "d"), ("a", "b")], 1, "also a training pair"),
    ],
)
def test_faulty_tasks_are_refused_by_name(pairs, held_out, message):
    with pytest.raises(ValueError, match=message) as error:
        world.check_pairs("my_task", pairs, held_out)
    assert "'my_task'" in str(error.value) and "\n" not in str(error.value)


def prompts_in(generator, rows):
    """The (question, label) texts of each row's complete pairs."""
    for ids in rows.tokens:
        text = generator.tokenizer.decode(ids)
        blocks = text.removeprefix("<|endoftext|>").split("\n\n")[:-1]
        yield [tuple(block.removeprefix("Q: ").split("\nA: ")) for block in blocks]


def test_training_never_shows_unseen_tasks_or_held_out_pairs(generator):
    tasks = read_tasks()
    allowed = {pair for t in tasks.values() if t.split != "unseen" for pair in t.training_pairs}
    held_out = {pair for t in tasks.values() if t.held_out for pair in t.query_pairs}
    mixture = {kind: {"rows": 200, "length": 132} for kind in ("orders", "lookups", "lists")}
    seen = set()
    for rows in generator.batch(np.random.default_rng(0), mixture):
        for pairs in prompts_in(generator, rows):
            assert set(pairs) <= allowed and not set(pairs) & held_out
            seen |= set(pairs)
    assert len(seen) > 1000


def test_training_rows_are_tokenised_like_prompts(generator):
    task = read_tasks()["english-german"]
    prompt = draw_prompts(task, n_prompts=1, n_shots=5, bos="", seed=0).clean[0]
    demonstrations = [block.removeprefix("Q: ").split("\nA: ") for block in prompt.text.split("\n\n")[:-1]]
    pairs = [(generator.ids(" " + q), generator.ids(" " + a)) for q, a in demonstrations]
    ids, weights = generator.questions(pairs, [True] * len(pairs))
    whole = generator.ids(prompt.text)
    assert ids[0] == generator.bos and ids[1:].tolist() == whole[: len(ids) - 1].tolist()
    labels = generator.tokenizer.decode(ids[weights == 1.0])
    assert labels == "".join(f" {answer}" for _, answer in demonstrations)


def test_glossary_counts_only_entries_that_come_again(generator):
    ids, weights = generator.glossary(np.random.default_rng(3), 20)
    pairs = generator.tokenizer.decode(ids).removeprefix("<|endoftext|>Q: ").split("\n\nQ: ")
    labels = [i for i in range(len(ids)) if i >= 2 and generator.tokenizer.decode(ids[i - 1]) == "\nA:"]
    again = [pair in pairs[:i] for i, pair in enumerate(pairs)]
    assert [bool(weights[i] == 1.0) for i in labels] == again and any(again) and not all(again)


def test_documents_are_long_and_repeat_passages(generator):
    texts = [story(generator.world, np.random.default_rng(seed)) for seed in range(20)]
    assert min(len(generator.ids(text)) for text in texts) >= 512
    repeated = [len(s) - len(set(s)) for s in (text.split(". ") for text in texts)]
    assert np.mean(repeated) > 5


def test_a_batch_depends_on_its_seed_alone(generator):
    mixture = {kind: {"rows": 3, "length": 40} for kind in ("orders", "glossary", "listings", "documents")}
    first, other, again = (generator.batch(np.random.default_rng(seed), mixture) for seed in (1, 2, 1))
    assert all((a.tokens == b.tokens).all() for a, b in zip(first, again, strict=True))
    assert any((a.tokens != b.tokens).any() for a, b in zip(first, other, strict=True))


def weights_of(folder, step):
    return load_file(folder / f"step{step}" / "model.safetensors")


@pytest.mark.parametrize(("log_every", "at"), [(2, 5), (4, 3)])  # the second one before the first row of the curve
def test_an_interrupted_training_ends_with_the_same_weights(tmp_path, monkeypatch, log_every, at):
    config = TINY | {"log_every": log_every}
    whole = trainer.train("tiny", models=tmp_path / "whole", config=config)

    def interrupt(step, config):
        if step == at:
            raise KeyboardInterrupt
        return original(step, config)

    original = trainer.learning_rate
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer, "learning_rate", interrupt)
        trainer.train("tiny", models=tmp_path / "cut", config=config)
    resumed = trainer.train("tiny", models=tmp_path / "cut", config=config)
    for step in (0, 2, 4, 6):
        a, b = weights_of(whole, step), weights_of(resumed, step)
        assert all(torch.equal(a[name], b[name]) for name in a), step
    columns = ["step", "loss", "tokens"]
    curves = [trainer.pd.read_csv(folder / "curve.csv")[columns] for folder in (whole, resumed)]
    assert curves[0].equals(curves[1]) and curves[0]["step"].tolist() == [*range(log_every, 6, log_every), 6]
    assert not list(resumed.glob("resume*")) and not list(resumed.glob(".*"))


def test_what_an_earlier_trainer_left_is_refused_in_one_line(tmp_path):
    folder = tmp_path / "tiny" / "seed0"
    folder.mkdir(parents=True)
    trainer.save_file({"model.x": trainer.torch.zeros(1)}, folder / trainer.RESUME)
    with pytest.raises(ValueError, match=r"earlier trainer, .* remove .*seed0 to train anew"):
        trainer.train("tiny", models=tmp_path, config=TINY)
    assert [path.name for path in folder.iterdir()] == [trainer.RESUME]


def test_a_finished_training_is_left_as_it_is(tmp_path, capsys, monkeypatch):
    folder = trainer.train("tiny", models=tmp_path, config=TINY)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(trainer, "read_rung", lambda name: TINY)
    assert trainer.main(["tiny", "--models", str(tmp_path)]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{folder} is finished, nothing is trained: `make lab RUNG=tiny SEED=0` trains it again to")
    assert last == f"checkpoints: {folder}"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_two_trainings_of_one_seed_do_not_run_at_once(tmp_path, monkeypatch):
    def other(*given):
        trainer.train("tiny", models=tmp_path, config=TINY)

    monkeypatch.setattr(trainer, "_train", other)
    with pytest.raises(ValueError, match="tiny/seed0 is being trained by another process: wait until"):
        trainer.train("tiny", models=tmp_path, config=TINY)


def test_a_size_without_a_model_is_no_size_to_check(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lab.files.MODELS", tmp_path)
    assert check.main(["lab-7k"]) == 1
    assert capsys.readouterr().err == "error: no model of lab-7k is trained; run `python -m lab.train RUNG` first\n"


def test_help_of_a_command_is_no_argument(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tokenizer.main(["--help"]) == 0 and "`python -m lab.tokenizer FOLDER`" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_unknown_rung_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown rung 'lab-5k'; known rungs: .*lab-"):
        trainer.read_rung("lab-5k")


def test_cards_tell_what_a_task_is():
    cards, tasks = json.loads((LAB_TASKS.parent / "cards.json").read_text(encoding="utf-8")), read_tasks()
    for name, card in cards.items():
        assert card["size"] == len(tasks[name].pairs) and len(card["example"]) == 2
        assert {"type", "split", "inputs", "labels", "relation", "held_out"} <= set(card)
    assert {card["split"] for card in cards.values()} == {"scoring", "evaluation", "training", "unseen"}


def test_the_tokenizer_has_the_vocabulary_that_its_training_gives(generator):
    again = train_tokenizer(read_tasks())
    assert set(again.get_vocab()) == set(generator.tokenizer.get_vocab())


def test_words_of_orders_are_single_tokens_and_rare_words_are_not(generator):
    orders = [word for order in generator.world["orders"].values() for word in order["words"]]
    assert all(len(generator.ids(" " + word)) == 1 for word in orders)
    capitals = [row[1] for row in generator.world["tables"]["countries"]["rows"]]
    assert sum(len(generator.ids(" " + word)) > 1 for word in capitals) > 30
    assert [len(generator.ids(text)) for text in ("\n\nQ:", "\nA:", "Q:")] == [1, 1, 1]


@pytest.mark.parametrize("rung", trainer.rungs())
def test_committed_checkpoints_are_of_their_rung_and_the_last_is_there(rung):
    config = trainer.read_rung(rung)
    steps = {0, *config["checkpoints"], config["steps"]}
    for seed in sorted((trainer.MODELS / rung).glob("seed*")):
        if (seed / trainer.RESUME).exists():
            continue  # being trained
        curve = trainer.pd.read_csv(seed / "curve.csv")
        assert curve["step"].iloc[-1] == config["steps"] and curve["loss"].iloc[-1] < 0.6 * curve["loss"].iloc[0]
        if not steps_of(seed):
            continue  # its tables are in lab/training
        assert set(steps_of(seed)) <= steps and steps_of(seed)[-1] == config["steps"]
        shape = json.loads((seed / f"step{config['steps']}" / "config.json").read_text())
        assert shape["num_hidden_layers"] == config["shape"]["layers"]
        assert shape["hidden_size"] == config["shape"]["d_model"]


def test_questions_outside_the_context_of_tasks_are_refused():
    with pytest.raises(ValueError, match="unknown task 'letters_nxt'; nearest valid names: letters_next"):
        read_tasks("lab[letters_nxt]")


def test_shuffled_prompts_move_every_label_and_nothing_else():
    task = read_tasks()["months_next"]
    prompts = draw_prompts(task, n_prompts=20, n_shots=10, bos="<b>", seed=1)
    for clean, shuffled in zip(prompts.clean, prompts.shuffled, strict=True):
        pairs = [[block.split("\nA: ") for block in p.text.split("\n\n")[:-1]] for p in (clean, shuffled)]
        assert [q for q, _ in pairs[0]] == [q for q, _ in pairs[1]] and clean.answer == shuffled.answer
        labels = [[label for _, label in side] for side in pairs]
        assert sorted(labels[0]) == sorted(labels[1])
        assert all(a != b for a, b in zip(*labels, strict=True))
        query = clean.text.split("\n\n")[-1].removeprefix("Q: ").removesuffix("\nA:")
        assert query not in [q.removeprefix("<b>Q: ").removeprefix("Q: ") for q, _ in pairs[0]]


def test_a_task_draws_the_same_prompts_whatever_else_is_drawn():
    tasks = read_tasks()
    alone = draw_prompts(tasks["antonym"], n_prompts=3, n_shots=4, bos="", seed=2)
    draw_prompts(tasks["capitalize"], n_prompts=5, n_shots=4, bos="", seed=2)
    assert draw_prompts(tasks["antonym"], n_prompts=3, n_shots=4, bos="", seed=2) == alone
    assert draw_prompts(tasks["antonym"], n_prompts=3, n_shots=4, bos="", seed=3) != alone


def test_documents_for_the_token_loss_are_seeded_and_whole(generator):
    first, again, other = (lab_documents(generator.tokenizer, n_documents=3, length=512, seed=s) for s in (0, 0, 1))
    assert first.shape == (3, 512) and torch.equal(first, again) and not torch.equal(first, other)
    assert (first[:, 0] == generator.bos).all() and (first[:, 1:] != generator.bos).all()
    with pytest.raises(ValueError, match="document_length 5000"):
        lab_documents(generator.tokenizer, n_documents=1, length=5000, seed=0)


def test_broken_promises_are_named_and_nan_breaks_them():
    found = dict.fromkeys(MEASURES, 0.5) | {"FV score": float("nan")}
    assert broken_promises(found, {"10 shots": 0.5, "prefix matching": 0.4}) == []
    assert broken_promises(found, {"10 shots": 0.9}) == ["10 shots is 0.500, promised 0.9"]
    assert broken_promises(found, {"FV score": 0.0}) == ["FV score is nan, promised 0.0"]
    with pytest.raises(ValueError, match="promise 'fv' is about no measure"):
        broken_promises(found, {"fv": 1})
