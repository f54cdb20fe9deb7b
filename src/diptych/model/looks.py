"""Where a trained model sees the words of a text, as numbers and as pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.checks import check_number
from diptych.errors import ConfigError
from diptych.head import Grounds, Observes, ScoresMatchings, WeighsWords
from diptych.model.embeds import Embeds
from diptych.model.inputs import each_picture, each_text, grey_picture
from diptych.radiographs.letterbox import Letterbox, letterbox
from diptych.types import Embedding, Features

if TYPE_CHECKING:
    from diptych.results.seen import Maps, Seen
    from diptych.results.sheet import Sheet

__all__ = ["Looks", "single"]

T = TypeVar("T")


class Looks(Embeds):
    """A model that shows where its head sees words, and where its queries look."""

    @torch.no_grad()
    def look(self, picture: Any, text: str) -> Seen:
        """All that the head sees of a text in a picture: maps of the words with their figures, and the pair's score.

        Raises:
            ConfigError: the head cannot ground words, or there is more than one picture or text.
        """
        from diptych.results.seen import Seen

        text, grey, features, place, (image, report, heat) = self._attended(picture, text, "look")
        head: Any = self.module.head
        weights = None
        if isinstance(head, WeighsWords) and head.weighs_words:
            weights = np.asarray(head.importance(image, report)[0, : len(heat)].float().cpu())
        return Seen(
            image=grey,
            regions=_over_grid(heat * heat.shape[1], features),
            place=place,
            size=self.image_size,
            text=text,
            spans=self.module.tokenizer.word_spans(text),
            score=float(head.similarity(image, report)),
            local=float(head.local_scores(image, report)) if isinstance(head, ScoresMatchings) else None,
            weights=weights,
        )

    @torch.no_grad()
    def heatmap(self, picture: Any, text: str) -> tuple[list[str], NDArray[np.float32]]:
        """The words of a text, and where in the picture the head sees each: ``[words,h,v]`` at the picture's own size.

        :meth:`look` gives more, and :meth:`show` draws it.

        Raises:
            ConfigError: the head cannot ground words, or there is more than one picture or text.
        """
        text, grey, features, place, (_, _, heat) = self._attended(picture, text, "heatmap")
        return self.module.tokenizer.words(text), place.heat(_over_grid(heat, features), grey.shape, self.image_size)

    def show(
        self,
        picture: Any,
        text: str,
        path: Path | str | os.PathLike[str] | None = None,
        *,
        words: Sequence[str] | None = None,
        most: int = 4,
        full_colour: float | None = None,
        sides: bool = True,
    ) -> Sheet:
        """Draw where the head sees the words of a text. The picture is returned, and written if a path is given.

        A notebook shows it by itself. ``picture.save("seen.pdf")`` writes it, and ``picture.image()`` is a PIL image.

        Each word has its map, the weight in the score where the head weighs words, its entropy (0 is one region, 1 is
        flat), and its peak. All maps have one scale: attention in multiples of the mean region. So what is flat looks flat.
        Words of findings come first. Stop words are left out.

        Args:
            picture: one.
            text: one.
            path: the file, whose ending is ``.png``, ``.svg`` or ``.pdf``. None writes nothing.
            words: which words to draw. If not given, they are chosen as above.
            most: most words, 1 or more.
            full_colour: the attention that has the strongest colour, in multiples of the mean region, above 1. Give it to
                compare pictures. If not given, it follows from the highest peak.
            sides: mark the patient's right (R) on the left, and the left (L) on the right. Leave it out for lateral views.

        Raises:
            ConfigError: as :meth:`look`, or an argument is out of its range.
        """
        from diptych.results.attention import draw_seen

        check_number("most", most, least=1, whole=True)
        if full_colour is not None:
            check_number("full_colour", full_colour, above=1)
        seen = self.look(picture, text)
        sheet = draw_seen(seen, words=words, most=most, full=full_colour, sides=sides)
        if path is not None:
            sheet.save(path)
        return sheet

    @torch.no_grad()
    def importance(self, picture: Any, text: str) -> NDArray[np.float32]:
        """How much each word of a text counts in its score with the picture: ``[words]``, in the order of :meth:`heatmap`.

        Raises:
            ConfigError: the head weighs no words, or there is more than one picture or text.
        """
        head = self.module.head
        if not isinstance(head, WeighsWords) or not head.weighs_words:
            raise ConfigError(f"the head {type(head).__name__} weighs no words; train one that does, as reclf")
        picture = single(each_picture(picture), "importance", "picture")
        text = single(each_text(text), "importance", "text")
        weights = head.importance(self.embed_image(picture), self.embed_text(text))[0]
        return np.asarray(weights[: len(self.module.tokenizer.words(text))].float().cpu())

    @torch.no_grad()
    def observe(self, picture: Any) -> Maps:
        """Where in the picture each of the head's queries looks, in multiples of the mean region.

        Raises:
            ConfigError: the head has no queries, or there is more than one picture.
        """
        from diptych.results.seen import Maps

        head = self.module.head
        if not isinstance(head, Observes):
            raise ConfigError(f"the head {type(head).__name__} has no queries to draw; train one that has, as pcma")
        grey, features, place = self._regions(picture, "observations")
        heat = head.observations(head.embed_image(features))[0]
        return Maps(grey, _over_grid(heat * heat.shape[1], features), place, self.image_size)

    def observations(self, picture: Any) -> NDArray[np.float32]:
        """Where in the picture each of the head's queries looks: ``[queries,h,v]`` at the picture's own size.

        Raises:
            ConfigError: the head has no queries, or there is more than one picture.
        """
        maps = self.observe(picture)
        return np.asarray(maps.native / (maps.regions.shape[1] * maps.regions.shape[2]), np.float32)

    def _attended(
        self, picture: Any, text: str, what: str
    ) -> tuple[str, NDArray[np.uint8], Features, Letterbox, tuple[Embedding, Embedding, Tensor]]:
        """One text, what :meth:`_regions` gives of one picture, their embeddings, and attention ``[words,R]``.

        Raises:
            ConfigError: the head cannot ground words.
        """
        head = self.module.head
        if not isinstance(head, Grounds):
            raise ConfigError(f"the head {type(head).__name__} has no heatmap; train one with word matchings")
        text = single(each_text(text), what, "text")
        grey, features, place = self._regions(picture, what)
        image, report = head.embed_image(features), self.embed_text(text)
        heat = head.heatmap(image, report)[0, : len(self.module.tokenizer.word_spans(text))]
        return text, grey, features, place, (image, report, heat)

    def _regions(self, picture: Any, what: str) -> tuple[NDArray[np.uint8], Features, Letterbox]:
        """One picture as it was read ``[h,v]``, its regions, and its place in the square input."""
        grey = grey_picture(single(each_picture(picture), what, "picture"), "picture", self.intensity)
        square, place = letterbox(grey, self.image_size)
        features = self.module.encoder.encode_image(torch.from_numpy(square)[None, None].to(self.device))
        if features.grid is None:
            raise ConfigError("the image tower gives no region grid, so there is nothing to draw")
        return grey, features, place


def _over_grid(heat: Tensor, features: Features) -> NDArray[np.float32]:
    """Maps over the regions ``[maps,R]`` as ``[maps,rows,columns]``."""
    assert features.grid is not None  # Looks._regions has seen to it
    return np.asarray(heat.detach().float().cpu()).reshape(-1, *features.grid)


def single(values: Sequence[T], what: str, kind: str) -> T:
    """The only one of the values.

    Raises:
        ConfigError: there are none, or several.
    """
    if len(values) != 1:
        raise ConfigError(f"{what} takes one {kind}, and here are {len(values)}; call it for each")
    return values[0]
