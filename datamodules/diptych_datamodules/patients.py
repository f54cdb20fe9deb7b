"""Patients of a table: one spelling of each, so that none is in two splits, and a warning of those that are nearly alike."""

from __future__ import annotations

import re
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from diptych.data.tables import Row, Table
from diptych.errors import DataError

__all__ = ["Patients"]

_ZEROS = re.compile(r"(?<![0-9])0+(?=[0-9])")


class Patients:
    """The patients of a column.

    ``101`` and ``101.0`` are one patient. ``00101`` is another, since leading zeros may be part of an id. If a table has both,
    the user is warned.

    Args:
        table: the table.
        column: that of the patients. None, if the table has none.
    """

    def __init__(self, table: Table, column: str | None) -> None:
        self.path: Path = table.path
        self.column = column
        self._ways: dict[str, dict[str, None]] = {}
        self._rows = 0

    def of(self, row: Row) -> str:
        """The patient of a row. Empty, if none is known."""
        assert self.column is not None
        self._rows += 1
        patient = row.patient(self.column)
        if patient:
            value = row.values[self.column]
            self._ways.setdefault(patient, {})[value.strip() if isinstance(value, str) else str(value)] = None
        return patient

    def tell(self) -> None:
        """Say which patients are written in several ways, and warn of those that are nearly alike.

        Raises:
            DataError: no row has a patient.
        """
        if self.column is None or not self._rows:
            return
        if not self._ways:
            raise DataError(
                f"{self.path}: column '{self.column}': no row has a patient; fill it in, or leave columns.patient out, and "
                "every image counts as a patient of its own"
            )
        several = [list(ways) for ways in self._ways.values() if len(ways) > 1]
        if several:
            rank_zero_info(
                f"{self.path}: column '{self.column}': {len(several)} patients are written in several ways, as "
                f"'{several[0][0]}' and '{several[0][1]}'; each is one patient"
            )
        alike: dict[str, list[str]] = {}
        for patient in self._ways:
            alike.setdefault(_ZEROS.sub("", patient.casefold()), []).append(patient)
        if near := [same for same in alike.values() if len(same) > 1]:
            rank_zero_warn(
                f"{self.path}: column '{self.column}': {len(near)} patients differ from another in leading zeros or capitals "
                f"alone, as '{near[0][0]}' and '{near[0][1]}'; they count as different, so write one way if they are not"
            )
