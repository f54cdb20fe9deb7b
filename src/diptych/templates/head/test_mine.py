"""The head keeps to the contract of every head."""

from mine import Mine

from diptych.testing import check_head


def test_mine_keeps_the_contract() -> None:
    """Padding, order, batches, equal reports, a resume, the device, and two processes against one."""
    check_head(Mine, width=16)
