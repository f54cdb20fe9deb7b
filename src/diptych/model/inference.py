"""A trained model in Python: ``diptych.load(path)``.

A file from elsewhere runs nothing. It is read with ``weights_only=True``, so it can hold only numbers and texts. The
classes that these texts name are those of diptych and of installed heads (:mod:`diptych.model.stored`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from diptych.checks import check_number
from diptych.errors import ConfigError, shown
from diptych.evaluation.answers import Retrieved, ZeroShotTable, best_texts, explain, names_of
from diptych.evaluation.asked import Asked
from diptych.evaluation.calibration import (
    Calibration,
    fit_temperature,
    label_array,
    log_loss,
    probabilities_of,
)
from diptych.evaluation.prompts import PromptSet, shipped_prompts
from diptych.evaluation.protocols import ProtocolName
from diptych.evaluation.questions import Prompts, questions
from diptych.files import replace_text
from diptych.model.checkpoint import check_fit, read_model
from diptych.model.embeds import device_of
from diptych.model.inputs import each_picture, each_text
from diptych.model.looks import Looks, single
from diptych.model.stored import build_stored, load_weights, weights_hash
from diptych.plain import LONGEST, check_plain, read_json
from diptych.radiographs.intensity import Intensity
from diptych.sharing.shareable import Shareable
from diptych.towers.weights import some

if TYPE_CHECKING:
    from diptych.model.module import AlignmentModule

__all__ = ["TrainedModel", "load", "load_module"]

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


class TrainedModel(Looks, Shareable):
    """A trained dual encoder with its head, for pictures and strings.

    A method takes one picture, a list, or an array of many. A picture is a path (of any file that training reads), the bytes
    of a file, a pydicom data set, a PIL image, an array or a tensor (:func:`diptych.model.inputs.each_picture`). uint8 arrays
    are taken as they are. Other types are stretched over their own range, unless :meth:`preprocess` is told the range of
    their values. All are read with the intensity of training. Nothing is trained, and nothing is random.

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
        self.device = device_of(device)
        self.module = module.eval().to(self.device)
        self.image_size, self.intensity = image_size, intensity
        self.file: Path | None = None
        self.findings: list[str] = []
        self.prompt_sets: list[str] = []
        """Names of the shipped prompt sets that the run's tests ask. A shared model names none."""
        self.calibrations: dict[tuple[str, str, bool], Calibration] = {}
        """The temperatures fitted so far, by what they serve."""

    def zero_shot(
        self,
        images: Any,
        findings: str | Sequence[str] | None = None,
        *,
        prompts: Prompts | None = None,
        protocol: ProtocolName = "diptych",
        average_prompts: bool = False,
        batch_size: int = 32,
    ) -> ZeroShotTable:
        """The probability of each finding in each image, by prompts, as a table.

        The score of a finding is that of the evaluator ``ZeroShot`` with the same arguments. The probability is the soft-max
        of the positive against the negative prompts. Of classes it is the soft-max over the classes. It is uncalibrated,
        unless :meth:`calibrate` has fitted a temperature for the same prompts and protocol. ``table.how`` says so.

        Args:
            images: one or many.
            findings: names of findings. Each is asked as ``"NAME"`` against ``"no NAME"``.
            prompts: name or path of a prompt set, or own prompts. ``{"Edema": ("Edema.", "No edema.")}`` asks of a finding.
                ``{"well": "Clear lungs.", "ill": "Opacities."}`` asks which of the classes it is.
            protocol: how the scores of prompts become one. ``gloria`` gives no probability, and is refused.
            average_prompts: whether the text vectors of each side are averaged.
            batch_size: how many images are read, encoded and scored at a time.

        Raises:
            ConfigError: nothing is asked, or it is of another form.
        """
        asked = questions(findings, prompts, protocol, average_prompts)
        many = each_picture(images)
        scores = self._entry_scores(images, many, asked, protocol, average_prompts, batch_size)
        classes = asked.kind == "multiclass"
        calibration = self.calibrations.get((asked.hash, protocol, average_prompts))
        return ZeroShotTable(
            names_of(many),
            tuple(entry.name for entry in asked.entries),
            probabilities_of(scores.numpy(), classes, 1.0 if calibration is None else calibration.temperature),
            scores.numpy(),
            explain(protocol, classes, calibration),
            calibration is not None,
        )

    @torch.no_grad()
    def _entry_scores(
        self,
        images: Any,
        many: Sequence[Any],
        asked: PromptSet,
        protocol: ProtocolName,
        averages: bool,
        batch_size: int,
    ) -> Tensor:
        """The scores ``[n,L]`` of the entries of a prompt set."""
        prompts = Asked(asked.entries, self.embed_text, protocol, averages, self.device)
        head, embed = self.module.head, self.module.embed_image
        batches = self.batches(images if isinstance(images, Tensor) else many, batch_size)
        scores = [prompts.entry_scores(prompts.prompt_scores(embed(batch), head)).float() for batch in batches]
        return torch.cat([torch.zeros(0, len(asked.entries)), *scores])

    def calibrate(
        self,
        images: Any,
        labels: Any,
        findings: str | Sequence[str] | None = None,
        *,
        prompts: Prompts | None = None,
        protocol: ProtocolName = "diptych",
        average_prompts: bool = False,
        batch_size: int = 32,
        run: Path | str | None = None,
    ) -> Calibration:
        """Fit the temperature of :meth:`zero_shot` on labelled images, such as those of ``val``. The model remembers it.

        It is one temperature for all findings of the prompts (Guo et al., ICML 2017). Of findings it moves no score past
        another, nor past 0.5. It serves the same prompts and protocol alone.

        Args:
            images: as for :meth:`zero_shot`, ``n`` of them. Do not test on them.
            labels: of findings ``[n,L]``, or a mapping from each finding to ``n`` labels. 1 is present and 0 is absent;
                others are left out. Of classes ``n`` names or numbers.
            findings: as for :meth:`zero_shot`.
            prompts: as for :meth:`zero_shot`.
            protocol: as for :meth:`zero_shot`.
            average_prompts: as for :meth:`zero_shot`.
            batch_size: as for :meth:`zero_shot`.
            run: folder of the model's run, in which it is kept (``calibration.json``). :func:`load` of this folder reads it.

        Raises:
            ConfigError: the labels are of another form, or no temperature is best.
        """
        asked = questions(findings, prompts, protocol, average_prompts)
        many, classes = each_picture(images), asked.kind == "multiclass"
        known = label_array(labels, [entry.name for entry in asked.entries], len(many), classes)
        scores = self._entry_scores(images, many, asked, protocol, average_prompts, batch_size).numpy()
        temperature = fit_temperature(scores, known, classes)
        calibration = Calibration(
            temperature,
            asked.hash,
            protocol,
            average_prompts,
            len(many),
            len(known) if classes else int(np.isin(known, (0, 1)).sum()),
            log_loss(scores, known, classes),
            log_loss(scores, known, classes, temperature),
        )
        self.calibrations[calibration.key] = calibration
        if run is not None:
            self.calibrations = _calibrations(Path(run), self.module) | self.calibrations
            kept = {"weights": weights_hash(self.module), "of": [one.plain() for one in self.calibrations.values()]}
            replace_text(Path(run) / _CALIBRATION, json.dumps(kept, indent=1) + "\n")
        return calibration

    @torch.no_grad()
    def retrieve(self, image: Any, reports: str | Sequence[str], k: int = 5) -> list[Retrieved]:
        """The ``k`` reports that the head scores highest with a picture, the best first.

        The score is the head's whole one, by which a test ranks. Of equal scores the report that comes first is taken. For
        many images call :meth:`similarity`, which embeds the reports once.

        Args:
            image: one.
            reports: those that are searched.
            k: how many are given, 1 or more. Fewer are given if there are fewer reports.

        Raises:
            ConfigError: there is more than one image, or there are no reports.
        """
        check_number("k", k, least=1, whole=True)
        picture = single(each_picture(image), "retrieve", "picture")
        texts = each_text(reports)
        if not texts:
            raise ConfigError("retrieve: there are no reports to choose from; give some")
        columns, scores = best_texts(
            self.module.head, self.embed_image([picture]), self.embed_text(texts).to("cpu"), k, self.device
        )
        pairs = zip(columns[0].tolist(), scores[0].tolist(), strict=True)
        return [Retrieved(rank, texts[at], score, at) for rank, (at, score) in enumerate(pairs, start=1)]


_CALIBRATION = "calibration.json"


def _calibrations(run: Path, module: AlignmentModule) -> dict[tuple[str, str, bool], Calibration]:
    """The temperatures that a run has kept, if they are of these weights."""
    file = run / _CALIBRATION
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8", errors="replace") as text:
        stored = read_json(text.read(LONGEST + 1), str(file))
    if not isinstance(stored.get("of"), list):
        raise ConfigError(f"{file}: no calibration of a model; remove the file, and calibrate again")
    if stored.get("weights") != weights_hash(module):
        rank_zero_warn(f"{file}: it is of other weights, so probabilities are uncalibrated; calibrate again")
        return {}
    kept = [Calibration.of(one, str(file)) for one in stored["of"]]
    return {one.key: one for one in kept}


def _prompt_sets(config: dict[str, Any]) -> list[str]:
    """The shipped prompt sets that the evaluators of a configuration name. Files of their own are not looked for."""
    arguments = [one.get("init_args") for one in config.get("evaluators") or () if isinstance(one, dict)]
    named = [one.get("prompts") for one in arguments if isinstance(one, dict)]
    return [name for name in shipped_prompts() if name in named]


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
    place = device_of(device)
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
    model.prompt_sets = _prompt_sets(checkpoint["diptych"]["config"])
    model.calibrations = _calibrations(Path(path), module) if file.suffix == ".ckpt" and Path(path).is_dir() else {}
    return model
