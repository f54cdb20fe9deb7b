"""A trained model in Python: ``diptych.load(path)``.

A file from elsewhere runs nothing. It is read with ``weights_only=True``, so it can hold only numbers and texts. The
classes that these texts name are those of diptych and of installed heads (:mod:`diptych.model.stored`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.checks import check_number
from diptych.errors import ConfigError, shown
from diptych.evaluation.rows import stack
from diptych.evaluation.scoring import blocks
from diptych.head import Grounds, Observes, ScoresMatchings, WeighsWords
from diptych.model.checkpoint import check_fit, read_model
from diptych.model.inputs import each_picture, each_text, grey_picture
from diptych.model.stored import build_stored, load_weights
from diptych.plain import check_plain
from diptych.radiographs.intensity import Intensity
from diptych.radiographs.letterbox import Letterbox, letterbox
from diptych.sharing.shareable import Shareable
from diptych.towers.weights import some
from diptych.types import Embedding, Features

if TYPE_CHECKING:
    from diptych.model.module import AlignmentModule
    from diptych.results.seen import Maps, Seen

__all__ = ["TrainedModel", "load", "load_module"]

T = TypeVar("T")


LARGEST_IMAGE = 8192
"""Side of the square input, in pixels, that a checkpoint may ask for."""


def load_module(path: Path | str, trust: Collection[str] = ()) -> AlignmentModule:
    """The module that a checkpoint was trained as, with its weights, in eval mode. No network is needed.

    Its evaluators are left behind: the prompt files that they read may be elsewhere, or gone.

    Args:
        path: a checkpoint.
        trust: import paths of your own towers that the checkpoint may name, as for :func:`load`.

    Raises:
        ConfigError: the file is not ours, holds no configuration, names a class that is not known, or does not fit.
    """
    file, checkpoint = read_model(path)
    return _module_of(checkpoint, str(file), trust)


def _module_of(checkpoint: dict[str, Any], path: str, trust: Collection[str] = ()) -> AlignmentModule:
    stored = checkpoint.get("diptych")
    if stored is None:
        names = sorted(checkpoint["state_dict"])
        raise ConfigError(f"{path}: not written by diptych; its {len(names)} weights are {some(names, 4)}")
    if not isinstance(stored, dict):
        raise ConfigError(f"{path}: refused: what it says of itself is {shown(stored)}; no run of diptych wrote it")
    if "task" in stored:
        raise ConfigError(
            f"{path}: of the downstream task {shown(stored['task'])}; test it with its own configuration, or give the "
            "checkpoint of a pre-training run"
        )
    if stored.get("config") is None:
        raise ConfigError(
            f"{path}: trained from Python, so it holds no configuration; build the same AlignmentModule and call "
            "load_state_dict(diptych.model.checkpoint.read_checkpoint(path)['state_dict'])"
        )
    module = build_stored(stored["config"], checkpoint["state_dict"], path, trust)
    check_fit(checkpoint, module, source=path)
    load_weights(module, checkpoint["state_dict"], path)
    return module.eval()


class TrainedModel(Shareable):
    """A trained dual encoder with its head, for pictures and strings.

    Pictures are paths (of any file that training reads), PIL images, arrays or tensors. A method takes one, a list, or an
    array of many (:func:`diptych.model.inputs.each_picture`). uint8 arrays are taken as they are. Other types are stretched
    to their own range. All are read with the intensity of training. Nothing is trained, and nothing is random.

    Args:
        module: the trained module.
        image_size: side of the square input.
        device: where to put it.
        intensity: how pictures were read in training.

    Raises:
        ConfigError: there is no such device.
    """

    def __init__(
        self,
        module: AlignmentModule,
        image_size: int,
        device: str | torch.device = "cpu",
        intensity: Intensity = Intensity(),  # noqa: B008  # frozen
    ) -> None:
        self.device = _device(device)
        self.module: AlignmentModule = module.eval().to(self.device)
        self.image_size, self.intensity = image_size, intensity
        self.file: Path | None = None
        self.findings: list[str] = []

    def _square(self, pictures: Sequence[Any], start: int = 0) -> Tensor:
        """Pictures as the tower's input ``[B,1,H,V]``."""
        greys = [
            grey_picture(picture, f"pictures[{index}]", self.intensity) for index, picture in enumerate(pictures, start)
        ]
        squares = np.stack([letterbox(grey, self.image_size)[0] for grey in greys])
        return torch.from_numpy(squares)[:, None].to(self.device)

    @torch.inference_mode()
    def embed_image(self, pictures: Any, *, batch_size: int = 32) -> Embedding:
        """The embedding of ``I`` pictures. Its ``pooled`` is ``[I,E]``, L2-normalised.

        Args:
            pictures: one or many, or none.
            batch_size: how many are read and go through the tower at a time.
        """
        many = each_picture(pictures)
        check_number("batch_size", batch_size, least=1, whole=True)
        if not many:
            black = torch.zeros(1, 1, self.image_size, self.image_size, dtype=torch.uint8, device=self.device)
            return self.module.embed_image(black).select(torch.arange(0, device=self.device))
        starts = range(0, len(many), batch_size)
        return stack([self.module.embed_image(self._square(many[i : i + batch_size], i)) for i in starts])

    @torch.inference_mode()
    def embed_text(self, texts: str | Sequence[str], *, batch_size: int = 64) -> Embedding:
        """The embedding of ``T`` texts. Its ``pooled`` is ``[T,E]``, L2-normalised.

        Args:
            texts: one or many, or none.
            batch_size: how many go through the tower at a time.
        """
        many = each_text(texts)
        check_number("batch_size", batch_size, least=1, whole=True)
        if not many:
            return self.module.embed_prompts([""]).select(torch.arange(0, device=self.device))
        return self.module.embed_prompts(many, batch_size)

    encode_image, encode_text = embed_image, embed_text
    """The names that the README uses."""

    @torch.inference_mode()
    def similarity(self, pictures: Any, texts: str | Sequence[str], *, batch_size: int = 32) -> Tensor:
        """The head's score ``[I,T]`` of every picture with every text. Training optimised it, and testing ranks by it.

        Args:
            pictures: one or many, or none.
            texts: one or many, or none.
            batch_size: how many pictures are read, encoded and scored at a time.
        """
        images, reports = self.embed_image(pictures, batch_size=batch_size), self.embed_text(texts)
        scores = torch.zeros(len(images.pooled), len(reports.pooled), device=self.device)
        if scores.numel():
            for rows, block in blocks(
                self.module.head, images, reports, self.device, min(batch_size, len(images.pooled))
            ):
                scores[rows.to(self.device)] = block.to(self.device)
        return scores

    @torch.inference_mode()
    def look(self, picture: Any, text: str) -> Seen:
        """All that the head sees of a text in a picture: maps of the words with their figures, and the pair's score.

        Raises:
            ConfigError: the head cannot ground words, or there is more than one picture or text.
        """
        from diptych.results.seen import Seen

        head = self._grounds()
        text = _single(each_text(text), "look", "text")
        spans = self.module.tokenizer.word_spans(text)
        grey, features, place = self._regions(picture, "look")
        image, report = head.embed_image(features), self.embed_text(text)
        weights = None
        if isinstance(head, WeighsWords) and head.weighs_words:
            weights = np.asarray(head.importance(image, report)[0, : len(spans)].float().cpu())
        heat = head.heatmap(image, report)[0, : len(spans)]
        return Seen(
            image=grey,
            regions=_over_grid(heat * heat.shape[1], features),
            place=place,
            size=self.image_size,
            text=text,
            spans=spans,
            score=float(head.similarity(image, report)),
            local=float(head.local_scores(image, report)) if isinstance(head, ScoresMatchings) else None,
            weights=weights,
        )

    @torch.inference_mode()
    def heatmap(self, picture: Any, text: str) -> tuple[list[str], NDArray[np.float32]]:
        """The words of a text, and where in the picture the head sees each: ``[words,h,v]`` at the picture's own size.

        :meth:`look` gives more, and :meth:`show` draws it.

        Raises:
            ConfigError: the head cannot ground words, or there is more than one picture or text.
        """
        head = self._grounds()
        text = _single(each_text(text), "heatmap", "text")
        words = self.module.tokenizer.words(text)
        grey, features, place = self._regions(picture, "heatmap")
        heat = head.heatmap(head.embed_image(features), self.embed_text(text))[0, : len(words)]
        return words, place.heat(_over_grid(heat, features), grey.shape, self.image_size)

    def show(
        self,
        picture: Any,
        text: str,
        path: Path | str | os.PathLike[str],
        *,
        words: Sequence[str] | None = None,
        most: int = 4,
        full_colour: float | None = None,
        sides: bool = True,
    ) -> None:
        """Draw where the head sees the words of a text, and write the picture as PNG, SVG or PDF.

        Each word has its map, the weight in the score where the head weighs words, its entropy (0 is one region, 1 is
        flat), and its peak. All maps have one scale: attention in multiples of the mean region. So what is flat looks flat.
        Words of findings come first. Stop words are left out.

        Args:
            picture: one.
            text: one.
            path: the file, whose ending is ``.png``, ``.svg`` or ``.pdf``.
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
        draw_seen(seen, words=words, most=most, full=full_colour, sides=sides).save(path)

    @torch.inference_mode()
    def importance(self, picture: Any, text: str) -> NDArray[np.float32]:
        """How much each word of a text counts in its score with the picture: ``[words]``, in the order of :meth:`heatmap`.

        Raises:
            ConfigError: the head weighs no words, or there is more than one picture or text.
        """
        head = self.module.head
        if not isinstance(head, WeighsWords) or not head.weighs_words:
            raise ConfigError(f"the head {type(head).__name__} weighs no words; train one that does, as reclf")
        picture = _single(each_picture(picture), "importance", "picture")
        text = _single(each_text(text), "importance", "text")
        weights = head.importance(self.embed_image(picture), self.embed_text(text))[0]
        return np.asarray(weights[: len(self.module.tokenizer.words(text))].float().cpu())

    @torch.inference_mode()
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

    def _grounds(self) -> Any:
        """The head, which grounds words."""
        head = self.module.head
        if not isinstance(head, Grounds):
            raise ConfigError(f"the head {type(head).__name__} has no heatmap; train one with word matchings")
        return head

    def _regions(self, picture: Any, what: str) -> tuple[NDArray[np.uint8], Features, Letterbox]:
        """One picture as it was read ``[h,v]``, its regions, and its place in the square input."""
        grey = grey_picture(_single(each_picture(picture), what, "picture"), "picture", self.intensity)
        square, place = letterbox(grey, self.image_size)
        features = self.module.encoder.encode_image(torch.from_numpy(square)[None, None].to(self.device))
        if features.grid is None:
            raise ConfigError("the image tower gives no region grid, so there is nothing to draw")
        return grey, features, place


def _over_grid(heat: Tensor, features: Features) -> NDArray[np.float32]:
    """Maps over the regions ``[maps,R]`` as ``[maps,rows,columns]``."""
    assert features.grid is not None  # TrainedModel._regions has seen to it
    return np.asarray(heat.detach().float().cpu()).reshape(-1, *features.grid)


def _single(values: Sequence[T], what: str, kind: str) -> T:
    if len(values) != 1:
        raise ConfigError(f"{what} takes one {kind}, and here are {len(values)}; call it for each")
    return values[0]


def _device(name: str | torch.device) -> torch.device:
    """The device of this name.

    Raises:
        ConfigError: it cannot be used here.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = (str(error).strip().splitlines() or ["it does not answer"])[0][:160]
        have = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise ConfigError(f"device '{name}' cannot be used here ({reason}); choose among: {have}") from error
    return device


def load(path: Path | str, device: str | torch.device = "cpu", *, trust: Collection[str] = ()) -> TrainedModel:
    """A trained model from its checkpoint, ready for pictures and strings.

    A checkpoint from elsewhere runs nothing but diptych and the heads of installed packages.

    Args:
        path: a ``.ckpt`` that ``diptych fit`` wrote, or a run's folder: its best checkpoint, else its last. It may also be a
            folder that ``save_pretrained`` wrote, or ``hf-hub:owner/name`` of such a folder on the hub.
        device: where to put it.
        trust: import paths of your own towers and evaluators that the checkpoint may name, as ``my_package.MyTower``.
            They are imported, so name only what you would run.

    Raises:
        ConfigError: the file cannot be read, is not ours, does not fit, or names a class that is not known; or there is no
            such device.
    """
    place = _device(device)
    file, checkpoint = read_model(path)
    module = _module_of(checkpoint, str(file), trust)
    size = checkpoint["diptych"].get("image_size")
    if type(size) is not int or not 1 <= size <= LARGEST_IMAGE:
        raise ConfigError(
            f"{file}: refused: its image_size is {shown(size)}, and must be 1 to {LARGEST_IMAGE}; the module alone is given "
            "by diptych.model.inference.load_module(path)"
        )
    check_plain(checkpoint["diptych"].get("intensity"), f"{file}: intensity")
    intensity = Intensity.of(checkpoint["diptych"].get("intensity"), source=str(file))
    model = TrainedModel(module, size, place, intensity)
    findings = checkpoint["diptych"].get("findings")
    model.file, model.findings = file, [str(name) for name in findings] if isinstance(findings, list) else []
    return model
