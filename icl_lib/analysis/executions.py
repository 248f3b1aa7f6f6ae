"""What the page, the figures and the ledger read from the table `executions` alike."""

import pandas as pd


def third(executions: pd.DataFrame) -> int:
    """The layer at a third of the model's, where the paper adds vectors (figure 14)."""
    return 0 if executions.empty else (int(executions["layer"].max()) + 1) // 3


def draws_words(executions: pd.DataFrame) -> str:
    """How many different draws of layer-matched random heads there were."""
    n_draws = executions[executions["heads"] == "random_layer_matched"]["draw"].nunique()
    if not n_draws:
        return "no random heads of neither kind are left to compare with"
    return f"{n_draws} different random {'draws' if n_draws > 1 else 'draw'}"
