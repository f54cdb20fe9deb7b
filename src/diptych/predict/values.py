"""What is computed of each image: vectors, regions, probabilities of findings, nearest reports."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.checks import check_choice, check_number
from diptych.errors import ConfigError
from diptych.evaluation.answers import best_texts, explain
from diptych.evaluation.asked import Asked
from diptych.evaluation.calibration import probabilities_of
from diptych.evaluation.protocols import ProtocolName
from diptych.evaluation.questions import questions
from diptych.model.inference import TrainedModel
from diptych.types import TokenEmbedding

__all__ = ["Column", "Values", "What"]

What = Literal["pooled", "regions", "zero_shot", "nearest"]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Column:
    """One value of each image, of any shape."""

    name: str
    parts: tuple[str, ...] = ()
    """Names of the columns of its last axis, as of findings. Empty for a vector."""
    texts: tuple[str, ...] = ()
    """If there are any, the values are indices of these texts, and -1 is none."""


@dataclass
class Values:
    """Computes what is asked of batches of images.

    Args:
        model: the trained model.
        what: which of ``pooled``, ``regions``, ``zero_shot`` and ``nearest``.
        prompts: name or path of a prompt set, for ``zero_shot``.
        protocol: how scores of prompts become one.
        reports: those that are searched, for ``nearest``. Equal ones count once.
        k: how many of them are given.

    Raises:
        ConfigError: something needed for what is asked is missing, or given in vain.
    """

    model: TrainedModel
    what: Sequence[What]
    prompts: str | None = None
    protocol: ProtocolName = "diptych"
    reports: Sequence[str] | None = None
    k: int = 5
    columns: list[Column] = field(init=False)
    about: dict[str, Any] = field(init=False)
    """What decides the values besides model and images, in words."""

    def __post_init__(self) -> None:
        for what in self.what:
            check_choice("--what", what, get_args(What))
        if not self.what or len(set(self.what)) < len(self.what):
            raise ConfigError(
                f"--what is {' '.join(self.what) or 'empty'}; name each of {', '.join(get_args(What))} once"
            )
        for what, option, value in (("zero_shot", "--prompts", self.prompts), ("nearest", "--reports", self.reports)):
            if what in self.what and value is None:
                raise ConfigError(f"--what {what} needs {option}; give it, or leave {what} out")
            if what not in self.what and value is not None:
                raise ConfigError(f"{option} is for --what {what}; add {what}, or leave {option} out")
        self.columns, self.about = [], {"what": list(self.what)}
        for what in self.what:
            getattr(self, f"_prepare_{what}")()

    def _prepare_pooled(self) -> None:
        self.columns.append(Column("pooled"))

    def _prepare_regions(self) -> None:
        size = self.model.image_size
        if not isinstance(self._embed(torch.zeros(1, 1, size, size, dtype=torch.uint8)), TokenEmbedding):
            raise ConfigError(
                f"--what regions: the head {type(self.model.module.head).__name__} embeds no regions; take a model whose head "
                "matches words with regions, as local_pooling"
            )
        self.columns.append(Column("regions"))

    def _prepare_zero_shot(self) -> None:
        asked = questions(None, self.prompts, self.protocol, False)
        self._classes = asked.kind == "multiclass"
        with torch.inference_mode():
            self._asked = Asked(asked.entries, self.model.embed_text, self.protocol, False, self.model.device)
        calibration = self.model.calibrations.get((asked.hash, self.protocol, False))
        self._temperature = 1.0 if calibration is None else calibration.temperature
        self.columns.append(Column("zero_shot", tuple(entry.name for entry in asked.entries)))
        self.about |= {
            **asked.facts,
            "probability": explain(self.protocol, self._classes, calibration),
            "temperature": self._temperature,
        }

    def _prepare_nearest(self) -> None:
        check_number("--k", self.k, least=1, whole=True)
        texts = tuple(dict.fromkeys(text.strip() for text in self.reports or () if text.strip()))
        if not texts:
            raise ConfigError("--reports: there are no reports to choose from; give a file with some")
        with torch.inference_mode():
            self._texts = self.model.embed_text(list(texts)).to("cpu")
        ranks = tuple(str(rank) for rank in range(1, min(self.k, len(texts)) + 1))
        self.columns += [Column("nearest", ranks, texts), Column("nearest_score", ranks)]
        digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
        self.about |= {"reports": len(texts), "reports_hash": digest, "k": self.k}

    def _embed(self, images: Tensor) -> Any:
        with torch.inference_mode():
            return self.model.module.embed_image(images.to(self.model.device))

    @torch.inference_mode()
    def of(self, images: Tensor) -> Arrays:
        """The values of images ``[B,1,S,S]``, by the names of :attr:`columns`. Each has ``B`` rows."""
        embedded = self._embed(images)
        head, found = self.model.module.head, Arrays()
        if "pooled" in self.what:
            found["pooled"] = embedded.pooled.float().cpu().numpy()
        if "regions" in self.what:
            found["regions"] = embedded.tokens.float().cpu().numpy()
        if "zero_shot" in self.what:
            scores = self._asked.entry_scores(self._asked.prompt_scores(embedded, head)).float()
            found["zero_shot"] = probabilities_of(scores.numpy(), self._classes, self._temperature)
        if "nearest" in self.what:
            columns, scores = best_texts(head, embedded, self._texts, self.k, self.model.device)
            found["nearest"], found["nearest_score"] = columns.numpy(), scores.float().numpy()
        return found


def joined(parts: Sequence[Mapping[str, NDArray[Any]]]) -> Arrays:
    """The values of several batches, one after the other. Regions of batches have one number, as images have one size."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
