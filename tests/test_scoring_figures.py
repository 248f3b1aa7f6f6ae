"""Figures of the scoring page where tables lack what they compare."""

import numpy as np
import pandas as pd
import pytest

from icl_lib.figures.scoring import scores_by_type


@pytest.mark.parametrize(("types", "drawn"), [(("abstractive", "extractive"), True), (("extractive",) * 2, False)])
def test_scores_by_type_are_drawn_where_tasks_are_of_two_types(types, drawn):
    grid = pd.MultiIndex.from_product([range(2), range(4)], names=["layer", "head"]).to_frame(index=False)
    of_score = [("fv", "a"), ("fv", "b"), ("induction_prefix_matching", ""), ("induction_attention_mass", "")]
    scores = pd.concat([grid.assign(score=score, task=task, value=np.linspace(0, 0.7, 8)) for score, task in of_score])
    shown = scores_by_type(scores, pd.DataFrame({"task": ["a", "b"], "task_type": types}), 0.2)
    assert hasattr(shown, "caption") == drawn
    if drawn:  # the same two heads are the top of both scores, and no others
        assert [len(marks.get_offsets()) for marks in shown.axes.collections] == [6, 2, 2]
    assert drawn or shown.data == "Not drawn: all scoring tasks are extractive."
