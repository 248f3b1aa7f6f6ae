"""Reading tasks and prompts from files, and which tasks and texts fit a model where none are named."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, StrictInt, StrictStr, TypeAdapter, ValidationError

from icl_lib.data.documents import LAB, REFERENCE, refuse_missing
from icl_lib.data.patterns import pattern_tasks
from icl_lib.data.tasks import SPLITS, Task, TaskPrompts
from icl_lib.data.upstream import upstream_tasks
from icl_lib.models.locate import locate
from icl_lib.names import refuse_unknown

LAB_TASKS = Path(__file__).parents[2] / "lab" / "world" / "tasks"
AUTO = "auto"
SOME_TASKS = "lab[country-capital,country-continent,antonym]"  # two to score heads on, one to evaluate on
_TOKENIZER = LAB_TASKS.parent / "tokenizer" / "tokenizer.json"


def _not_blank(field: str | int) -> str:
    if not str(field).strip():
        raise ValueError("an empty field")
    return str(field)


class _Pair(BaseModel):
    input: Annotated[StrictStr | StrictInt, AfterValidator(_not_blank)]
    output: Annotated[StrictStr | StrictInt, AfterValidator(_not_blank)]


class _Card(BaseModel):
    """What `cards.json` says of a task."""

    type: Literal["abstractive", "extractive"]
    split: Literal[SPLITS]
    inputs: StrictStr
    labels: StrictStr
    relation: StrictStr
    held_out: Annotated[StrictInt, Field(ge=0)]


_Cards = Annotated[dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")], _Card], Field(min_length=1)]


def read_pairs(path: str | Path) -> list[tuple[str, str]]:
    """(input, output) pairs of one task file: a list of {"input", "output"}; numbers are read as their digits."""
    pairs = read_json(path, Annotated[list[_Pair], Field(min_length=1)], parse_float=_digits)
    return [(pair.input, pair.output) for pair in pairs]


def read_tasks(source: str | Path = LAB_TASKS) -> dict[str, Task]:
    """All tasks of a source, in order of names.

    "lab" is the lab world; "upstream" and "upstream:released" are the paper's task files under two splits
    (`icl_lib.data.upstream.upstream_tasks`); "patterns" is generated (`icl_lib.data.patterns`); else a folder
    `<type>/<task>.json` with the cards of `cards.json` beside it, one for each file.
    Names in brackets choose some of a source, as in `SOME_TASKS`.
    """
    if chosen := re.fullmatch(r"(.+)\[([^\[\]]+)\]", str(source)):
        tasks, names = read_tasks(chosen[1]), [name.strip() for name in chosen[2].split(",")]
        for name in names:
            refuse_unknown("task", name, tasks)
        return {name: tasks[name] for name in names}
    if str(source).startswith("upstream"):
        return upstream_tasks(str(source))
    if source == "patterns":
        return pattern_tasks()
    folder = LAB_TASKS if source == "lab" else Path(source)
    of_cards = folder.parent / "cards.json"
    if not folder.is_dir() or not of_cards.is_file():
        raise FileNotFoundError(f"task_files {str(source)!r}: no such tasks; expected lab, upstream, upstream:released,"
                                " patterns, or a folder of <type>/<task>.json with cards.json beside it")
    cards, tasks = read_json(of_cards, _Cards), {}
    for path in sorted({*folder.glob("*.json"), *folder.glob("*/*.json")} - {of_cards}):
        if path.stem not in cards or path.parent != folder / cards[path.stem].type:
            raise ValueError(f"{path} has no card; describe task {path.stem!r} of the type {path.parent.name!r} in "
                             f"{of_cards}, or move the file away")
    for name, card in sorted(cards.items()):
        pairs = read_pairs(folder / card.type / f"{name}.json")
        if card.held_out >= len(pairs):
            raise ValueError(f"{folder}: task {name!r} holds out {card.held_out} of {len(pairs)} pairs")
        siblings = [other for other, its in cards.items() if (its.inputs, its.labels) == (card.inputs, card.labels)]
        tasks[name] = Task(name, pairs=pairs, siblings=siblings, **card.model_dump())
    return tasks


def read_json(path: str | Path, form: Any, *, parse_float: Callable[[str], Any] = float) -> Any:
    """The contents of a JSON file as the type `form`; a one-line `ValueError` names the file and the place.

    `parse_float` gets the digits of numbers with a point. Raises FileNotFoundError for a missing file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}; give the path of a JSON file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_digits, parse_float=parse_float)
        json.dumps(content, ensure_ascii=False).encode()  # half of a surrogate pair is text that no tokenizer takes
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of numbers and depths without measure
        raise ValueError(f"{path} is not valid JSON ({error}); mend or download the file again") from None
    try:
        return TypeAdapter(form).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{path}: {list(first['loc'])}: {first['msg']}, found {first['input']!r:.100}") from None


def _digits(number: str) -> str:
    if not math.isfinite(float(number)):
        raise ValueError(f"{number} is no number of JSON")
    return number


def read_prompts(path: str | Path) -> dict[str, TaskPrompts]:
    """Prompts of several tasks from a file `{task: {"clean": [{"text", "answer"}], "shuffled": [...]}}`.

    Errors as in `read_json`; texts and answers must not be empty.
    """
    return read_json(path, Annotated[dict[str, TaskPrompts], Field(min_length=1)])


def tasks_for(model: str, given: str = AUTO) -> str:
    """The tasks to measure a model on, as `read_tasks` takes them: "auto" is lab for lab models, else the paper's.

    Raises ValueError for the lab's tasks on a model without the lab's words, but not for some by name (`lab[...]`).
    """
    return _fitting(model, given, "task_files", "upstream", f"a folder of tasks, or some of the lab's: {SOME_TASKS}")


def documents_for(model: str, given: str = AUTO) -> str:
    """The texts of the token loss, as `read_documents` takes them: "auto" is the lab's stories, or Python's reference.

    Raises ValueError for the lab's stories on a model without the lab's words, FileNotFoundError for no such file.
    """
    found = _fitting(model, given, "documents", REFERENCE, "a text file or a hub dataset owner/name")
    refuse_missing(found)
    return found


def reads_lab_words(model: str) -> bool:
    """Whether a model has the lab's tokenizer: a lab model, a copy of one, or one that the lab's trainer made.

    So is a model that is not there: loading it says what is wrong.
    """
    try:
        tokenizer = Path(locate(model)[0], "tokenizer.json")
    except (ValueError, OSError):
        return True
    return tokenizer.is_file() and tokenizer.read_bytes() == _TOKENIZER.read_bytes()


def _fitting(model: str, given: str, name: str, of_others: str, more: str) -> str:
    if given not in (AUTO, LAB):
        return given
    if reads_lab_words(model):
        return LAB
    if given == LAB:
        raise ValueError(f"{name} {LAB!r} has the words of the lab's tokenizer, and model {model!r} has another one; "
                         f"give {of_others}, {more}")
    return of_others
