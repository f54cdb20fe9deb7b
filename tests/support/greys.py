"""What readers of radiographs should give, by plain arithmetic."""

import numpy as np
from hostile import DEEP


def stretched(values, low=None, high=None):
    """Values of any number type as 0..255 in whole numbers."""
    low, high = values.min() if low is None else low, values.max() if high is None else high
    return np.rint(np.clip((values.astype(float) - low) / (float(high) - low), 0, 1) * 255)


PLAIN = stretched(DEEP)
