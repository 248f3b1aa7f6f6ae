"""What runs the notebooks and renders the book: the suite, the templates, the runner, the builder."""

import functools
import sys
from collections.abc import Callable, Sequence


def command(main: Callable[[list[str]], int | None], failed: int = 1, takes: str = "") -> Callable[..., int]:
    """A command whose expected errors end in one line and the exit status `failed`.

    `takes` names its arguments ("FILE [MODEL]") where it does not parse them itself: then more or fewer are refused,
    and --help prints its module's docstring.
    """
    words = takes.split()
    least = sum(word[0] != "[" for word in words)

    @functools.wraps(main)
    def run(arguments: Sequence[str] | None = None) -> int:
        given = sys.argv[1:] if arguments is None else list(arguments)
        if takes and {"-h", "--help"} & {*given}:
            print(main.__globals__["__doc__"])
            return 0
        try:
            if takes and not least <= len(given) <= len(words):
                raise ValueError(f"expected {takes}, given {' '.join(given) or 'nothing'}; see --help")
            return int(main(given) or 0)
        except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
            print(f"error: {error}", file=sys.stderr)
            return failed

    return run
