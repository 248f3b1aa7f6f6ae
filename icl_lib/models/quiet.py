"""Other libraries' bars and remarks, off."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """No loading bars and no remarks: the caller's terminal and the book's pages stay clean."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")  # in a kernel without ipywidgets
        from transformers.utils import logging as hf_logging

    bar, level, root = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity(), logging.root.manager.disable
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(root)
        hf_logging.set_verbosity(level)
        if bar:
            hf_logging.enable_progress_bar()
