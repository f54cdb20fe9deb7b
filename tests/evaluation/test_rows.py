"""What is collected over a split: each sample once, in order, however the processes have read it."""

import evaluating
import pytest
import torch

from diptych.errors import DataError
from diptych.evaluation.rows import Rows

SAMPLES = 11


@pytest.mark.parametrize(
    "shares",
    [
        [[7, 2, 9, 0, 1, 10, 5, 3, 8, 4, 6]],
        [[9, 4, 1, 10], [0, 8, 2, 3, 7, 6, 5]],
        [[10, 3, 1, 0, 2, 4, 5, 9, 8, 7, 6], []],
    ],
    ids=["one", "two", "one of two has none"],
)
def test_samples_are_in_order_with_all_that_is_theirs(shares, processes):
    run = processes.run if len(shares) > 1 else lambda _, task, *arguments: [task(*arguments)]
    for patients, values, boxes, texts, squares in run(len(shares), evaluating.task_rows, shares):
        assert patients == [i // 2 for i in range(SAMPLES)]
        assert values == [[float(i)] for i in range(SAMPLES)]
        assert boxes == [[float(i), float(k)] for i in range(SAMPLES) for k in range(i % 3)]
        assert texts == [f"report {i} \N{GREEK SMALL LETTER ALPHA}" * (i % 4) for i in range(SAMPLES)]
        assert squares == [i * i for i in range(SAMPLES)]


def test_a_sample_counted_twice_is_refused_in_the_name_of_who_counts():
    rows = Rows(torch.device("cpu"), 1)
    for _ in range(2):
        rows.add(evaluating.numbered([4]), torch.zeros(1, 1))
    with pytest.raises(DataError, match=r"^task: 1 samples were counted more than once \(the first has index 4\)"):
        rows.gather()
