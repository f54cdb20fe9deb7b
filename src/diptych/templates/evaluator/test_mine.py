"""The evaluator keeps to the contract of every evaluator."""

from mine import Mine

from diptych.testing import check_evaluator


def test_mine_keeps_the_contract() -> None:
    """Passes, batches, order, rows that fill up, and two processes against one."""
    check_evaluator(Mine(resamples=50))
