"""What runs the notebooks and renders the book: the suite, the templates, the runner, the builder."""

import difflib
import functools
import sys
from collections.abc import Callable, Iterable, Sequence


def command(main: Callable[[list[str]], int | None], failed: int = 1) -> Callable[..., int]:
    """A command whose expected errors end in one line and the exit status `failed`."""

    @functools.wraps(main)
    def run(arguments: Sequence[str] | None = None) -> int:
        try:
            return int(main(sys.argv[1:] if arguments is None else list(arguments)) or 0)
        except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
            print(f"error: {error}", file=sys.stderr)
            return failed

    return run


def expected(given: object, known: Iterable[str]) -> str:
    """The end of an error message: the names there are, and the one most like that given."""
    near = difflib.get_close_matches(str(given), known := list(known), n=1)
    return ", ".join(known) + (f"; nearest: {near[0]}" if near else "")
