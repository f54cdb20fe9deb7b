"""A trained model in Python: ``diptych.load(path)``.

Checkpoints are read with ``weights_only=True``: a file from elsewhere can hold numbers and strings, and run nothing.
"""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diptych.errors import ConfigError
from diptych.head import Grounds, Observes, WeighsWords
from diptych.intensity import Intensity
from diptych.radiograph import grey_of, read_radiograph, to_grey
from diptych.transforms import Letterbox, letterbox
from diptych.types import Embedding

if TYPE_CHECKING:
    from diptych.module import AlignmentModule

__all__ = ["AlignmentModel", "check_fit", "heat_at_native", "load", "load_module", "read_checkpoint"]


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """A checkpoint's contents, read without running anything in it.

    Raises:
        ConfigError: the file is missing, cut off, not a checkpoint, or holds more than numbers and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such checkpoint file; give the path of a .ckpt below the run's checkpoints/")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch goes on to recommend weights_only=False, which would run what the file says
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise ConfigError(
            f"{path}: refused: it is no checkpoint, or holds objects other than tensors and plain values"
            f"{f' ({found[1]})' if found else ''}; only load checkpoints that diptych wrote"
        ) from error
    except Exception as error:  # torch's reader fails in many ways
        raise ConfigError(
            f"{path}: the checkpoint is cut off or damaged, or is none "
            f"({type(error).__name__}: {' '.join(str(error).split())[:120]})"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ConfigError(f"{path}: not a training checkpoint (it has no state_dict); weights alone cannot be loaded")
    return checkpoint


def _some(names: Sequence[str]) -> str:
    return "none" if not names else f"{len(names)} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"


def check_fit(checkpoint: dict[str, Any], module: nn.Module, *, source: str) -> None:
    """Refuse weights that do not fit a module exactly.

    Raises:
        ConfigError: names the head the checkpoint was trained with, and lists missing, unexpected and misshapen weights.
    """
    have, want = checkpoint["state_dict"], module.state_dict()
    missing = sorted(set(want) - set(have))
    unexpected = sorted(set(have) - set(want))
    shapes = [
        f"{name} {list(have[name].shape)} for {list(want[name].shape)}"
        for name in sorted(set(want) & set(have))
        if isinstance(want[name], Tensor) and have[name].shape != want[name].shape
    ]
    if missing or unexpected or shapes:
        stored = checkpoint.get("diptych") or {}
        trained = "not written by diptych"
        if of := stored.get("task") or stored.get("head"):
            trained = f"trained {'for the task' if 'task' in stored else 'with the head'} {of}"
        raise ConfigError(
            f"{source} does not fit this model; it was {trained}; missing: {_some(missing)}; unexpected: "
            f"{_some(unexpected)}; other shape: {_some(shapes)}; use the configuration it was trained with"
        )


def load_module(path: Path | str) -> AlignmentModule:
    """Rebuild the module a checkpoint was trained as, with its weights, in eval mode; needs no network.

    Its evaluators are left behind: the prompt files that they read may be elsewhere, or gone.

    Raises:
        ConfigError: the file is not ours, holds no configuration, names a head that is not installed, or does not fit.
    """
    return _module_of(read_checkpoint(path), str(path))


def _module_of(checkpoint: dict[str, Any], path: str) -> AlignmentModule:
    from diptych.building import build_module, import_object

    stored = checkpoint.get("diptych")
    if not stored:
        names = sorted(checkpoint["state_dict"])
        raise ConfigError(f"{path}: not written by diptych; its {len(names)} weights are {_some(names)}")
    if "task" in stored:
        raise ConfigError(
            f"{path}: of the downstream task {stored['task']}; test it with its own configuration, or give the "
            "checkpoint of a pre-training run"
        )
    if stored["config"] is None:
        raise ConfigError(
            f"{path}: trained from Python, so it holds no configuration; build the same AlignmentModule and call "
            "load_state_dict(diptych.loading.read_checkpoint(path)['state_dict'])"
        )
    config = copy.deepcopy(stored["config"])
    for name in ("image", "text"):  # the weights, vocabulary and architecture come from the checkpoint
        try:
            tower = import_object(config[name]["class_path"])
        except Exception as error:  # whatever a module does when it is imported
            raise ConfigError(
                f"{path}: its {name} tower {config[name]['class_path']} cannot be imported ({error}); install its package"
            ) from error
        extra = checkpoint["state_dict"].get(f"encoder.{name}._extra_state")
        if extra is not None:
            config[name]["init_args"] |= tower.rebuild_args(extra)
    config["evaluators"] = []
    module = build_module(config)
    check_fit(checkpoint, module, source=path)
    module.load_state_dict(checkpoint["state_dict"])
    return module.eval()


def heat_at_native(
    heat: Tensor, grid: tuple[int, int], place: Letterbox, shape: tuple[int, int], size: int
) -> NDArray[np.float32]:
    """One map ``[N]`` over the region grid, drawn over the native picture ``[h,v]``.

    Args:
        heat: the regions' values, row-major.
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


class AlignmentModel:
    """A trained dual encoder with its head, for pictures and strings.

    Pictures are paths (any file that training reads), PIL images or arrays ``[h,v]`` (uint8 as they are, other types
    stretched to their own range); one or a list of them. All are read with the intensity of training. Nothing is
    trained and nothing is random.
    """

    def __init__(
        self,
        module: AlignmentModule,
        image_size: int,
        device: str | torch.device = "cpu",
        intensity: Intensity = Intensity(),  # noqa: B008  # frozen
    ) -> None:
        self.module = module.eval().to(device)
        self.image_size, self.intensity = image_size, intensity
        self.device = torch.device(device)

    def _grey(self, picture: Any) -> NDArray[np.uint8]:
        from PIL import Image

        if isinstance(picture, str | Path):
            return read_radiograph(picture, self.intensity)
        if isinstance(picture, Image.Image):
            return grey_of(picture, source="the PIL image", intensity=self.intensity)
        array = np.asarray(picture)
        if array.ndim != 2:
            raise ConfigError(f"a picture array has shape {array.shape}; give one grey picture [height, width]")
        if array.dtype == np.uint8 and self.intensity.percentiles is None:
            return array
        return to_grey(array, source="the array", percentiles=self.intensity.percentiles)

    def _boxed(self, pictures: Any) -> tuple[Tensor, list[Letterbox], list[tuple[int, int]]]:
        many = pictures if isinstance(pictures, list | tuple) else [pictures]
        greys = [self._grey(picture) for picture in many]
        boxed = [letterbox(grey, self.image_size) for grey in greys]
        images = torch.from_numpy(np.stack([image for image, _ in boxed]))[:, None].to(self.device)
        return images, [place for _, place in boxed], [cast("tuple[int, int]", grey.shape) for grey in greys]

    @torch.inference_mode()
    def encode_image(self, pictures: Any) -> Embedding:
        """Embedding of ``I`` pictures; ``.pooled`` is ``[I,E]``, L2-normalised."""
        return self.module.embed_image(self._boxed(pictures)[0])

    @torch.inference_mode()
    def encode_text(self, texts: str | Sequence[str]) -> Embedding:
        """Embedding of ``T`` texts; ``.pooled`` is ``[T,E]``, L2-normalised."""
        return self.module.embed_prompts([texts] if isinstance(texts, str) else list(texts))

    @torch.inference_mode()
    def similarity(self, pictures: Any, texts: str | Sequence[str]) -> Tensor:
        """The head's score ``[I,T]`` of every picture with every text: what training optimised and testing ranks by."""
        scores: Tensor = self.module.head.similarity(self.encode_image(pictures), self.encode_text(texts))
        return scores

    @torch.inference_mode()
    def heatmap(self, picture: Any, text: str) -> tuple[list[str], NDArray[np.float32]]:
        """The words of a text, and where in the picture the head sees each: ``[words,h,v]`` at the picture's own size.

        Raises:
            ConfigError: the head cannot ground words.
        """
        head = self.module.head
        if not isinstance(head, Grounds):
            raise ConfigError(f"the head {type(head).__name__} has no heatmap; train one with word matchings")
        words = self.module.tokenizer.words(text)
        return words, self._maps(picture, lambda image: head.heatmap(image, self.encode_text(text))[0, : len(words)])

    @torch.inference_mode()
    def importance(self, picture: Any, text: str) -> NDArray[np.float32]:
        """How much each word of a text counts in its score with the picture: ``[words]``, as the words of :meth:`heatmap`.

        Raises:
            ConfigError: the head weighs no words.
        """
        head = self.module.head
        if not isinstance(head, WeighsWords) or not head.weighs_words:
            raise ConfigError(f"the head {type(head).__name__} weighs no words; train one that does, as reclf")
        weights = head.importance(self.encode_image(picture), self.encode_text(text))[0]
        return np.asarray(weights[: len(self.module.tokenizer.words(text))].float().cpu())

    @torch.inference_mode()
    def observations(self, picture: Any) -> NDArray[np.float32]:
        """Where in the picture each of the head's queries looks: ``[queries,h,v]`` at the picture's own size.

        Raises:
            ConfigError: the head has no queries.
        """
        head = self.module.head
        if not isinstance(head, Observes):
            raise ConfigError(f"the head {type(head).__name__} has no queries to draw; train one that has, as pcma")
        return self._maps(picture, lambda image: head.observations(image)[0])

    def _maps(self, picture: Any, heat_of: Callable[[Embedding], Tensor]) -> NDArray[np.float32]:
        """What ``heat_of`` the embedded picture gives, ``[maps,N_regions]``, at the picture's own size."""
        images, places, shapes = self._boxed(picture)
        features = self.module.encoder.encode_image(images)
        if features.grid is None:
            raise ConfigError("the image tower gives no region grid, so there is nothing to draw")
        heat = heat_of(self.module.head.embed_image(features))
        maps = [heat_at_native(row, features.grid, places[0], shapes[0], self.image_size) for row in heat]
        return np.stack(maps) if maps else np.zeros((0, *shapes[0]), np.float32)


def load(path: Path | str, device: str | torch.device = "cpu") -> AlignmentModel:
    """A trained model from its checkpoint, ready for pictures and strings.

    Args:
        path: a ``.ckpt`` that ``diptych fit`` wrote.
        device: where to put it.

    Raises:
        ConfigError: see :func:`read_checkpoint` and :func:`load_module`.
    """
    checkpoint = read_checkpoint(path)
    module = _module_of(checkpoint, str(path))
    intensity = Intensity.of(checkpoint["diptych"].get("intensity"), source=str(path))
    return AlignmentModel(module, checkpoint["diptych"]["image_size"], device, intensity)
