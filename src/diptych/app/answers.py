"""What a trained model says of one picture and one phrase, as plain values for the page."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from diptych.errors import ConfigError
from diptych.head import Grounds
from diptych.model.inference import TrainedModel
from diptych.predict.values import Values, What
from diptych.radiographs.letterbox import letterbox
from diptych.radiographs.read import Radiograph, open_bytes
from diptych.reports.text import names_nothing
from diptych.results.attention import colour_bar, full_colour_of, overlay, panel_of, reduced, scale_marks
from diptych.results.seen import Seen, choose_words

__all__ = ["Warm", "answer"]

_QUALITY = 92
"""Of the JPEG pictures for the page."""
_LONGEST = 4000
"""Letters of a phrase."""


class Warm:
    """A model that is kept ready: prompts and reports are embedded once.

    Of the last picture it keeps the probabilities and the nearest reports, so that another phrase or word costs less. The
    picture itself is not kept.

    Args:
        name: what the page calls it.
        model: the trained model.
        prompts: name or path of a prompt set. If not given, the first that the run's tests ask.
        reports: reports that are searched, or None.

    Raises:
        ConfigError: there is no such prompt set, or the reports are empty.
    """

    def __init__(
        self, name: str, model: TrainedModel, prompts: str | None = None, reports: Sequence[str] | None = None
    ) -> None:
        self.name, self.model = name, model
        self.prompts = prompts or next(iter(model.prompt_sets), None)
        asked: list[What] = ["zero_shot"] if self.prompts else []
        asked += [] if reports is None else ["nearest"]
        self._values = Values(model, asked, prompts=self.prompts, reports=reports) if asked else None
        self._last: tuple[bytes, dict[str, list[Any]]] = (b"", {})

    @property
    def about(self) -> dict[str, Any]:
        """What the page says of the model before it is asked."""
        head = self.model.module.head
        return {
            "name": self.name,
            "head": type(head).__name__,
            "maps": isinstance(head, Grounds),
            "prompts": self.prompts,
            "reports": self._values.about.get("reports") if self._values else None,
        }

    def look(self, raw: bytes, phrase: str) -> tuple[Radiograph, Seen | None]:
        """The picture of a file, and what the head sees of a phrase in it, if it has maps.

        Raises:
            ConfigError: the image tower has no regions.
            ImageError: the file is no radiograph that can be read.
        """
        picture = open_bytes(raw, source="picture", intensity=self.model.intensity)
        grounds = phrase and isinstance(self.model.module.head, Grounds)
        return picture, self.model.look(picture, phrase) if grounds else None

    def say(self, picture: Radiograph, phrase: str, seen: Seen | None) -> dict[str, Any]:
        """The score of the phrase, probabilities of findings and nearest reports, without the map."""
        square = torch.from_numpy(letterbox(picture.pixels, self.model.image_size)[0])[None, None]
        score = seen.score if seen else float(self.model.similarity(square, phrase)) if phrase else None
        said: dict[str, Any] = {"name": self.name, "score": score, "local": seen and seen.local, "map": None}
        said["notes"] = picture.notes
        if not self.about["maps"]:
            said["without"] = (
                f"The head {type(self.model.module.head).__name__} has no maps. It scores the whole picture."
            )
        if self._values is None:
            return said
        digest = hashlib.sha256(square.numpy().data).digest()
        if self._last[0] != digest:
            self._last = digest, {name: value[0].tolist() for name, value in self._values.of(square).items()}
        found = self._last[1]
        columns = {column.name: column for column in self._values.columns}
        if "zero_shot" in found:
            names = columns["zero_shot"].parts
            said["zero_shot"] = list(zip(names, found["zero_shot"], strict=True))
            said["how"] = f"Prompts {self._values.about['prompts']}: {self._values.about['probability']}."
        if "nearest" in found:
            texts = columns["nearest"].texts
            said["nearest"] = [
                (texts[at], score) for at, score in zip(found["nearest"], found["nearest_score"], strict=True)
            ]
        return said


def answer(models: Sequence[Warm], raw: bytes, phrase: str, start: int | None = None) -> dict[str, Any]:
    """What models say of a picture, as plain values. Maps of all models have one scale.

    Args:
        models: one or two.
        raw: a whole file: DICOM, PNG, JPEG, TIFF, WebP or BMP. It is read in memory.
        phrase: text to look for, which may be empty.
        start: the word whose map is drawn, by the place of its first letter in the phrase. If not given, that of a finding
            is taken, else the word whose map is least flat.

    Raises:
        ConfigError: the phrase is too long or names no word.
        ImageError: the picture cannot be read.
    """
    phrase = phrase.strip()
    if len(phrase) > _LONGEST:
        raise ConfigError(f"the phrase has {len(phrase):,} letters; shorten it to {_LONGEST:,}")
    looks = [model.look(raw, phrase) for model in models]
    said = [model.say(picture, phrase, seen) for model, (picture, seen) in zip(models, looks, strict=True)]
    drawn = [(one, seen, _word(seen, start)) for one, (_, seen) in zip(said, looks, strict=True) if seen is not None]
    full = full_colour_of(max((float(seen.peaks[i]) for _, seen, i in drawn if i is not None), default=1.0))
    for one, (picture, _) in zip(said, looks, strict=True):
        one["picture"], one["shape"] = _jpeg(reduced(picture.pixels)), picture.pixels.shape
    for one, seen, i in drawn:
        one["words"] = _words(seen)
        if i is None:
            one["without"] = "The phrase names nothing that a map could be drawn of."
            continue
        heat = panel_of(seen, seen.regions[i], "", "").map
        one["map"] = _jpeg(overlay(reduced(seen.image), heat, full))
        one["word"] = seen.spans[i][0]
        one["seen"] = {
            "word": seen.words[i],
            "entropy": float(seen.entropy[i]),
            "peak": float(seen.peaks[i]),
            "weight": None if seen.weights is None else float(seen.weights[i]),
            "regions": list(seen.regions.shape[1:]),
        }
    return {"models": said, "bar": {"picture": _png(colour_bar(full)), "marks": scale_marks(full)}}


def _words(seen: Seen) -> list[tuple[int, str]]:
    """Place and letters of each word that names something."""
    named = zip(seen.spans, seen.words, strict=True)
    return [(begin, word) for (begin, _), word in named if not names_nothing(word)]


def _word(seen: Seen, start: int | None) -> int | None:
    """The number of the word that is drawn: the one with this place, else the first that a picture would draw."""
    if start is not None:
        at = next((i for i, (begin, end) in enumerate(seen.spans) if begin <= start < end), None)
        if at is not None:
            return at
    chosen = choose_words(seen, 1)
    return chosen[0][0][0] if chosen else None


def _jpeg(picture: NDArray[np.uint8]) -> str:
    """A picture ``[h,v]`` or ``[h,v,3]`` as an address that holds it."""
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        _QUALITY,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    return _address(picture, ".jpg", options)


def _png(picture: NDArray[np.uint8]) -> str:
    return _address(picture, ".png", [])


def _address(picture: NDArray[np.uint8], kind: str, options: Sequence[int]) -> str:
    done, code = cv2.imencode(kind, picture[..., ::-1] if picture.ndim == 3 else picture, options)
    assert done  # a uint8 picture in memory can always be written
    media = {".jpg": "jpeg", ".png": "png"}[kind]
    return f"data:image/{media};base64,{base64.b64encode(code.tobytes()).decode()}"
