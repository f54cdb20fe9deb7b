"""What a model said of each test sample: the file, and every figure computed from it.

An evaluator or a task gives :class:`~diptych.predictions.base.Predictions`, columns with a row a sample. The functions of
:mod:`diptych.predictions.kinds` turn them into figures, in a test as in ``diptych score``. So a file gives the figures of its
test to the last digit.
"""

from __future__ import annotations

from diptych.lazy import face

__getattr__, __dir__ = face(__name__)
