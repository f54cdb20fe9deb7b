"""How stored values become grey: what a user may choose about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from diptych.checks import check_number
from diptych.errors import ConfigError

__all__ = ["Intensity"]


@dataclass(frozen=True)
class Intensity:
    """How stored values become grey. It is one for training, testing, ``diptych prepare`` and a loaded model.

    Args:
        percentiles: two percentages, such as ``[0.5, 99.5]``. The values at these become black and white. What lies
            beyond is cut. ``null`` takes the least and the greatest value, and leaves 8-bit pictures as they are. Choose
            percentiles where one hot pixel or a white frame would leave few greys to the anatomy.
        window: which window (or VOI LUT) of a DICOM file is applied, from 0 on. A file with fewer windows has its last
            one applied, and a note says so. ``null`` ignores windows.
    """

    percentiles: tuple[float, float] | None = None
    window: int | None = 0

    def __post_init__(self) -> None:
        if self.percentiles is not None:
            low, high = self.percentiles
            if not 0 <= low < high <= 100:
                raise ConfigError(f"intensity.percentiles is [{low}, {high}]; give two rising numbers from 0 to 100")
        if self.window is not None:
            remedy = "a whole number of 0 or more, or null to ignore windows"
            check_number("intensity.window", self.window, least=0, whole=True, remedy=remedy)

    def plain(self) -> dict[str, Any]:
        """Its plain values, for checkpoints and JSON. :meth:`of` reads them.

        >>> Intensity((0.5, 99.5)).plain()
        {'percentiles': (0.5, 99.5), 'window': 0}
        """
        return asdict(self)

    @classmethod
    def of(cls, stored: Any, *, source: str) -> Intensity:
        """Read plain values. None gives the defaults, since older files hold no intensity.

        Raises:
            ConfigError: they are of other names or types.
        """
        if stored is None:
            return cls()
        wrong = ConfigError(f"{source}: its intensity is {str(stored)[:80]!r}; give percentiles and window")
        if not isinstance(stored, dict) or not set(stored) <= {"percentiles", "window"}:
            raise wrong
        pair, window = stored.get("percentiles"), stored.get("window", 0)
        if pair is not None:
            if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(type(x) in {int, float} for x in pair)):
                raise wrong
            pair = (float(pair[0]), float(pair[1]))
        if window is not None and type(window) is not int:
            raise wrong
        return cls(pair, window)
