"""Tasks and texts that fit a model, where none are named: one rule for every notebook."""

from pathlib import Path

from icl_lib.data.documents import LAB, REFERENCE
from icl_lib.data.tasks import LAB_TASKS
from icl_lib.models.locate import locate

AUTO = "auto"
_TOKENIZER = LAB_TASKS.parent / "tokenizer" / "tokenizer.json"


def tasks_for(model: str, given: str = AUTO) -> str:
    """The tasks to measure a model on, as `read_tasks` takes them: "auto" is lab for lab models, else the paper's.

    Raises ValueError for the lab's tasks on a model without the lab's words; some of them by name (`lab[antonym]`) are
    taken as meant.
    """
    return _fitting(model, given, "task_files", "upstream", "a folder of tasks, or some of the lab's: lab[antonym,...]")


def documents_for(model: str, given: str = AUTO) -> str:
    """The texts of the token loss, as `read_documents` takes them: "auto" is the lab's stories, or Python's reference.

    Raises ValueError for the lab's stories on a model without the lab's words.
    """
    return _fitting(model, given, "documents", REFERENCE, "a text file or a hub dataset owner/name")


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
