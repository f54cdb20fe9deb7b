"""A run of training, without the model: its folder, checkpoints, signals and what it writes.

- ``run_folder``: what lies in the folder. ``recovery``: checkpoints, and how a run goes on from one.
- ``interruption``: signals. ``processes``: the other processes of a job. ``divergence``: a loss that is not finite.
- ``callbacks``: the progress bar, throughput and ``results.json``. ``loggers``: TensorBoard and others. ``figures``: pictures.
"""

from __future__ import annotations

from diptych.lazy import face

__getattr__, __dir__ = face(__name__)
