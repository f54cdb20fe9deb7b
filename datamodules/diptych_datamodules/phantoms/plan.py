"""From a seed and an index to a radiograph: plan the content, then draw it at any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from diptych.checks import check_number
from diptych_datamodules.phantoms.anatomy import SIDES, draw_chest, sample_build
from diptych_datamodules.phantoms.canvas import Frame
from diptych_datamodules.phantoms.exposure import expose
from diptych_datamodules.phantoms.findings import FINDINGS, Finding, FindingSpec, check_mix, sample_findings
from diptych_datamodules.phantoms.marks import draw_mark, shape_changes
from diptych_datamodules.phantoms.report import PhantomReport, write_report

__all__ = ["PhantomPlan", "PhantomRadiograph", "check_size", "make_phantom", "plan_phantom", "render", "with_findings"]

# One random stream for each part, so that a change of one leaves the others as they are.
_CONTENT, _WORDS, _BODY, _FILM, _TREE, _MARK, _NOISE = range(7)


@dataclass(frozen=True)
class PhantomPlan:
    """All that is known of a phantom before it is drawn. It does not depend on the size of the picture."""

    seed: int
    index: int
    patient: int
    """Plans with the same seed and patient show the same body."""
    sex: str
    """``F`` or ``M``."""
    age: int
    """Years."""
    view: str
    """``PA`` or ``AP``."""
    comparison: bool
    """The report refers to a prior study."""
    specs: tuple[FindingSpec, ...]
    report: PhantomReport

    @property
    def truth(self) -> NDArray[np.float32]:
        """Which findings are there, ``[L]`` in the order of :data:`FINDINGS`: 1 or 0."""
        present = {spec.name for spec in self.specs}
        return np.array([name in present for name in FINDINGS], dtype=np.float32)

    @property
    def labels(self) -> dict[str, float]:
        """What the report says: 1 stated, 0 denied, -1 in doubt. Findings that it does not mention are missing."""
        return self.report.mentions


@dataclass(frozen=True)
class PhantomRadiograph:
    """A chest radiograph with its report and all its ground truth."""

    plan: PhantomPlan
    image: NDArray[np.uint8]
    """``[H,V]``, square. The patient's right is on the image's left."""
    findings: tuple[Finding, ...]
    """In the order of the plan's specs."""
    masks: NDArray[np.bool_]
    """``[K,H,V]``: the pixels of each finding."""
    lungs: dict[str, NDArray[np.bool_]]
    """``left`` and ``right`` lung, ``[H,V]`` each. The part behind the heart is included."""
    heart: NDArray[np.bool_]
    """The heart's silhouette, ``[H,V]``."""

    @property
    def report(self) -> PhantomReport:
        """The matching report."""
        return self.plan.report

    @property
    def labels(self) -> dict[str, float]:
        """What the report says: 1 stated, 0 denied, -1 in doubt."""
        return self.plan.labels

    @property
    def truth(self) -> NDArray[np.float32]:
        """Which findings are there, ``[L]``."""
        return self.plan.truth


def plan_phantom(
    index: int,
    *,
    seed: int = 0,
    mix: Mapping[str, float] | None = None,
    normal: float = 0.3,
    max_findings: int = 3,
    filler: float = 0.3,
    uncertain: float = 0.0,
    findings: Sequence[FindingSpec] | None = None,
    patient: int | None = None,
) -> PhantomPlan:
    """Decide on a phantom's content and write its report, without drawing it.

    >>> plan = plan_phantom(0, findings=[FindingSpec("Nodule", "left", "upper", "small")], filler=0)
    >>> plan.report.impression
    'Small nodule in the left upper lobe; CT is recommended.'
    >>> plan.labels["Nodule"]
    1.0

    Args:
        index: 0 or more. The same seed and index give the same plan.
        seed: 0 or more. Another seed gives another collection.
        mix: relative frequency of each finding. Findings that it does not name do not occur. None is the standard mix.
        normal: share of patients without any finding, 0 to 1.
        max_findings: most findings in one patient, at least 1.
        filler: share of filler sentences in the report, 0 to 0.8.
        uncertain: probability that a mild or small finding is stated with doubt.
        findings: exactly these, instead of random ones. Body, exposure and noise stay those of the index.
        patient: number of the patient, by which several studies share one body. The index, if not given.

    Raises:
        ConfigError: a number out of range or an unknown finding.
    """
    for name, number in (("index", index), ("seed", seed), ("patient", patient or 0)):
        check_number(f"phantoms: {name}", number, least=0, whole=True)
    check_number("phantoms: normal", normal, least=0, most=1)
    healthy = "a whole number of 1 or more, or set normal=1 for healthy patients"
    check_number("phantoms: max_findings", max_findings, least=1, whole=True, remedy=healthy)
    weights = check_mix(mix)
    body = index if patient is None else patient
    who = np.random.default_rng([seed, body, _BODY, 1]).random(2) if patient is not None else None
    rng = np.random.default_rng([seed, index, _CONTENT])
    u = rng.random(5)
    sex, age = u[:2] if who is None else who
    if findings is not None:
        specs = tuple(findings)
    else:
        specs = () if u[4] < normal else sample_findings(rng, weights, max_findings)
    comparison = bool(u[3] < 0.35)
    words = np.random.default_rng([seed, index, _WORDS])
    report = write_report(words, specs, comparison=comparison, filler=filler, uncertain=uncertain)
    letter, view = "F" if sex < 0.5 else "M", "AP" if u[2] < 0.35 else "PA"
    return PhantomPlan(seed, index, body, letter, 20 + int(70 * age), view, comparison, specs, report)


def check_size(size: int) -> None:
    """Refuse a size that no picture is drawn at."""
    check_number("phantoms: size", size, least=16, most=4096, whole=True)


def render(plan: PhantomPlan, size: int = 128) -> PhantomRadiograph:
    """Draw a plan as a picture of ``size`` pixels a side, with its masks and boxes.

    Raises:
        ConfigError: the size is not between 16 and 4096.
    """
    check_size(size)
    tree = [plan.seed, plan.patient, _TREE]
    build = sample_build(
        np.random.default_rng([plan.seed, plan.patient, _BODY]),
        np.random.default_rng([plan.seed, plan.index, _FILM]),
        female=plan.sex == "F",
        portable=plan.view == "AP",
    )
    frame = Frame(_raster(size), zoom=build.zoom, tilt=build.tilt, shift=build.shift)
    growth, lift = shape_changes(plan.specs)
    chest = draw_chest(frame, build, tree, growth=growth, lift=lift)
    attenuation, markings = chest.attenuation, chest.markings
    masks = np.zeros((len(plan.specs), size, size), dtype=bool)
    findings: list[Finding] = []
    for k, spec in enumerate(plan.specs):
        mark = draw_mark(spec, chest, np.random.default_rng([plan.seed, plan.index, _MARK, k]), growth)
        attenuation = attenuation + mark.added
        if mark.keeps is not None:
            markings = markings * mark.keeps
        masks[k] = _shrink(mark.mask, size)
        rows, columns = masks[k].any(axis=1).nonzero()[0], masks[k].any(axis=0).nonzero()[0]
        box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
        findings.append(Finding(spec.name, spec.side, spec.zone, spec.severity, spec.device, box))
    noise = np.random.default_rng([plan.seed, plan.index, _NOISE])
    image = expose(attenuation + markings, build, frame, noise)
    if size < frame.size:
        image = np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    lungs = {side: _shrink(chest.lungs[side] > 0.5, size) for side in SIDES}
    return PhantomRadiograph(plan, image, tuple(findings), masks, lungs, _shrink(chest.heart > 0.5, size))


def make_phantom(
    index: int,
    *,
    seed: int = 0,
    size: int = 128,
    mix: Mapping[str, float] | None = None,
    normal: float = 0.3,
    max_findings: int = 3,
    filler: float = 0.3,
    uncertain: float = 0.0,
) -> PhantomRadiograph:
    """Plan and draw one phantom, with the arguments of :func:`plan_phantom` and :func:`render`."""
    plan = plan_phantom(
        index, seed=seed, mix=mix, normal=normal, max_findings=max_findings, filler=filler, uncertain=uncertain
    )
    return render(plan, size)


def with_findings(plan: PhantomPlan, findings: Sequence[FindingSpec], *, filler: float = 0.3) -> PhantomPlan:
    """The same patient, exposure and noise with other findings and their report."""
    words = np.random.default_rng([plan.seed, plan.index, _WORDS])
    report = write_report(words, findings, comparison=plan.comparison, filler=filler)
    return replace(plan, specs=tuple(findings), report=report)


def _raster(size: int) -> int:
    """Pixels to draw at. Small pictures are averaged down from a larger one, so that thin lines keep their weight."""
    return max(size, min(3 * size // 2, 256), 192)


def _shrink(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """A mask at the picture's size: the pixels of which a third is covered. If there is none, the best covered ones."""
    if mask.shape[0] == size:
        return mask
    share = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(share >= min(1 / 3, float(share.max())), dtype=bool)
