"""Fixtures of the tests of tables."""

import logging

import pytest
from user_tables import draw


@pytest.fixture
def folder(tmp_path):
    """A folder with six pictures."""
    for i in range(6):
        draw(tmp_path / "img" / f"{i}.png", i)
    return tmp_path


@pytest.fixture
def log(caplog):
    """All that has been logged so far, as one text."""
    caplog.set_level(logging.INFO)
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addHandler(caplog.handler)
    yield lambda: " | ".join(record.getMessage() for record in caplog.records)
    logger.removeHandler(caplog.handler)
