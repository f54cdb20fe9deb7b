"""Image towers and text towers.

- ``base``: what both have. ``image`` and ``text``: the towers.
- ``transformers_image``: image towers of transformers. ``colour``: what towers of other projects' models share.
- ``open_clip``: towers of open_clip's dual encoders. ``open_clip_model``: their configuration, weights and tokenizers.
- ``lora``: adapters around a tower.
- ``fused``: one tower for all images of a study.
- ``backbone``: timm's models inside image towers. ``text_model``: transformers' models and tokenizers inside text towers.
- ``architecture``: the shape of a tower, as a checkpoint stores it. ``weights``: files of weights from other projects.
"""

from __future__ import annotations

from diptych.lazy import face

__getattr__, __dir__ = face(__name__)
