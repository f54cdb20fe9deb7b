"""The model: encoder and head, training, checkpoints, and use.

- ``encoder``: the two towers. ``module``: encoder and head in training. ``optim``: the optimiser and its schedule.
- ``checkpoint``: reads and writes the file.
- ``stored``: builds the module of a checkpoint, which may come from anybody. ``arguments``: what it calls constructors with.
  ``budget``: what it may allocate.
- ``building``: classes that a recipe names. A recipe is trusted.
- ``pretrained``: models that are shared (:mod:`diptych.sharing`).
- ``inference``: ``load`` and the trained model, on ``looks`` (maps) and ``embeds`` (vectors and scores). ``inputs``: the
  pictures and texts that people hand to it.
"""

from __future__ import annotations

from diptych.lazy import face

__getattr__, __dir__ = face(__name__)
