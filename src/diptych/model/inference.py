"""A trained model in Python: ``diptych.load(path)``.

A file from elsewhere runs nothing. It is read with ``weights_only=True``, so it can hold only numbers and texts. The
classes that these texts name are those of diptych and of installed heads (:mod:`diptych.model.stored`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.checks import check_number
from diptych.errors import ConfigError, shown
from diptych.evaluation.rows import stack
from diptych.evaluation.scoring import blocks
from diptych.head import Grounds, Observes, WeighsWords
from diptych.model.checkpoint import check_fit, checkpoint_in, read_checkpoint
from diptych.model.inputs import each_picture, each_text, grey_picture
from diptych.model.stored import build_stored, load_weights
from diptych.plain import check_plain
from diptych.radiographs.intensity import Intensity
from diptych.radiographs.letterbox import Letterbox, letterbox
from diptych.towers.weights import some
from diptych.types import Embedding

if TYPE_CHECKING:
    from diptych.model.module import AlignmentModule

__all__ = ["TrainedModel", "heat_at_native", "load", "load_module"]

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
    file = checkpoint_in(path)
    return _module_of(read_checkpoint(file), str(file), trust)


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


def heat_at_native(
    heat: Tensor, grid: tuple[int, int], place: Letterbox, shape: tuple[int, int], size: int
) -> NDArray[np.float32]:
    """A map over the region grid, resized to the native picture ``[h,v]``.

    Args:
        heat: one value for each region, ``[N]``, row-major.
        grid: rows and columns of the regions.
        place: where the native picture lies in the square input.
        shape: rows and columns of the native picture.
        size: side of the square input.
    """
    import cv2

    coarse = heat.detach().float().cpu().numpy().reshape(grid)
    square = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    inside = square[place.top : place.top + place.height, place.left : place.left + place.width]
    return np.asarray(cv2.resize(inside, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR), np.float32).clip(min=0)


class TrainedModel:
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
        self.module = module.eval().to(self.device)
        self.image_size, self.intensity = image_size, intensity

    def _square(self, pictures: Sequence[Any], start: int = 0) -> tuple[Tensor, list[Letterbox], list[tuple[int, int]]]:
        """Pictures as the tower's input ``[B,1,H,V]``, the place of each in it, and the shape of each before."""
        greys = [
            grey_picture(picture, f"pictures[{index}]", self.intensity) for index, picture in enumerate(pictures, start)
        ]
        squares = [letterbox(grey, self.image_size) for grey in greys]
        images = torch.from_numpy(np.stack([image for image, _ in squares]))[:, None].to(self.device)
        return images, [place for _, place in squares], [cast("tuple[int, int]", grey.shape) for grey in greys]

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
        return stack([self.module.embed_image(self._square(many[i : i + batch_size], i)[0]) for i in starts])

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
    def heatmap(self, picture: Any, text: str) -> tuple[list[str], NDArray[np.float32]]:
        """The words of a text, and where in the picture the head sees each: ``[words,h,v]`` at the picture's own size.

        Raises:
            ConfigError: the head cannot ground words, or there is more than one picture or text.
        """
        head = self.module.head
        if not isinstance(head, Grounds):
            raise ConfigError(f"the head {type(head).__name__} has no heatmap; train one with word matchings")
        text = _single(each_text(text), "heatmap", "text")
        words = self.module.tokenizer.words(text)
        maps = self._maps(picture, "heatmap", lambda image: head.heatmap(image, self.embed_text(text))[0, : len(words)])
        return words, maps

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
    def observations(self, picture: Any) -> NDArray[np.float32]:
        """Where in the picture each of the head's queries looks: ``[queries,h,v]`` at the picture's own size.

        Raises:
            ConfigError: the head has no queries, or there is more than one picture.
        """
        head = self.module.head
        if not isinstance(head, Observes):
            raise ConfigError(f"the head {type(head).__name__} has no queries to draw; train one that has, as pcma")
        return self._maps(picture, "observations", lambda image: head.observations(image)[0])

    def _maps(self, picture: Any, what: str, heat_of: Callable[[Embedding], Tensor]) -> NDArray[np.float32]:
        """Maps at the picture's own size. ``heat_of`` computes maps over the regions, ``[maps,N]``, from the embedding."""
        images, places, shapes = self._square([_single(each_picture(picture), what, "picture")])
        features = self.module.encoder.encode_image(images)
        if features.grid is None:
            raise ConfigError("the image tower gives no region grid, so there is nothing to draw")
        heat = heat_of(self.module.head.embed_image(features))
        maps = [heat_at_native(row, features.grid, places[0], shapes[0], self.image_size) for row in heat]
        return np.stack(maps) if maps else np.zeros((0, *shapes[0]), np.float32)


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
        path: a ``.ckpt`` that ``diptych fit`` wrote, or a run's folder: its best checkpoint, else its last.
        device: where to put it.
        trust: import paths of your own towers and evaluators that the checkpoint may name, as ``my_package.MyTower``.
            They are imported, so name only what you would run.

    Raises:
        ConfigError: the file cannot be read, is not ours, does not fit, or names a class that is not known; or there is no
            such device.
    """
    place = _device(device)
    file = checkpoint_in(path)
    checkpoint = read_checkpoint(file)
    module = _module_of(checkpoint, str(file), trust)
    size = checkpoint["diptych"].get("image_size")
    if type(size) is not int or not 1 <= size <= LARGEST_IMAGE:
        raise ConfigError(
            f"{file}: refused: its image_size is {shown(size)}, and must be 1 to {LARGEST_IMAGE}; the module alone is given "
            "by diptych.model.inference.load_module(path)"
        )
    check_plain(checkpoint["diptych"].get("intensity"), f"{file}: intensity")
    intensity = Intensity.of(checkpoint["diptych"].get("intensity"), source=str(file))
    return TrainedModel(module, size, place, intensity)
