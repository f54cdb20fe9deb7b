"""How stored values become grey: what a user may choose about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from diptych.errors import ConfigError

__all__ = ["Intensity"]


@dataclass(frozen=True)
class Intensity:
    """How stored values become grey; the same for training, testing, ``diptych prepare`` and a loaded model.

    Args:
        percentiles: two percentages, as ``[0.5, 99.5]``. The values at these become black and white, what lies beyond
            is cut. ``null`` takes the least and the greatest value, and leaves 8-bit pictures as they are. Choose
            percentiles where one hot pixel or a white frame would leave few greys to the anatomy.
        window: which window (or VOI LUT) of a DICOM file is applied, from 0 on. A file with fewer has its last one
            applied, and that is told. ``null`` ignores windows.
    """

    percentiles: tuple[float, float] | None = None
    window: int | None = 0

    def __post_init__(self) -> None:
        if self.percentiles is not None:
            low, high = self.percentiles
            if not 0 <= low < high <= 100:
                raise ConfigError(f"intensity.percentiles is [{low}, {high}]; give two rising numbers from 0 to 100")
        if self.window is not None and self.window < 0:
            raise ConfigError(f"intensity.window is {self.window}; give 0 or more, or null to ignore windows")

    def plain(self) -> dict[str, Any]:
        """As plain values, for checkpoints and JSON; :meth:`of` reads them."""
        return asdict(self)

    @classmethod
    def of(cls, stored: Any, *, source: str) -> Intensity:
        """From plain values; without any (None), as it was before there was a choice.

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
            known = isinstance(pair, list | tuple) and len(pair) == 2 and all(type(x) in {int, float} for x in pair)
            if not known:
                raise wrong
            pair = (float(pair[0]), float(pair[1]))
        if window is not None and type(window) is not int:
            raise wrong
        return cls(pair, window)
