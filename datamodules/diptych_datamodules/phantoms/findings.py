"""Which findings a phantom can have, where and in which degree, and how a patient's findings are sampled."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import inf

import numpy as np

from diptych.checks import check_choice, check_number
from diptych.errors import ConfigError
from diptych.plugins import nearest

__all__ = ["DEVICES", "FINDINGS", "KINDS", "Finding", "FindingSpec", "Kind", "check_mix", "sample_findings"]

FINDINGS = (
    "Lung Opacity",
    "Consolidation",
    "Nodule",
    "Pleural Effusion",
    "Pneumothorax",
    "Cardiomegaly",
    "Atelectasis",
    "Support Devices",
)
"""Names of the findings, in the order of every table and label vector."""


@dataclass(frozen=True)
class Kind:
    """Where a finding can be, and in which degrees."""

    sided: bool
    zones: tuple[str, ...]
    severities: tuple[str, ...]
    share: float
    """Weight in the standard mix."""
    pair: float = 0.0
    """Probability that the same finding is on the other side too."""


_ALL = ("upper", "mid", "lower")
_DEGREE = ("mild", "moderate", "severe")
_SIZE = ("small", "moderate", "large")
KINDS: Mapping[str, Kind] = {
    "Lung Opacity": Kind(True, _ALL, _DEGREE, 1.2, 0.15),
    "Consolidation": Kind(True, _ALL, _DEGREE, 1.0, 0.08),
    "Nodule": Kind(True, _ALL, _SIZE, 1.0),
    "Pleural Effusion": Kind(True, ("lower",), _SIZE, 1.2, 0.18),
    "Pneumothorax": Kind(True, ("upper",), _SIZE, 1.0, 0.04),
    "Cardiomegaly": Kind(False, (), _DEGREE, 1.0),
    "Atelectasis": Kind(True, ("mid", "lower"), _DEGREE, 1.0, 0.10),
    "Support Devices": Kind(False, (), (), 1.0),
}
"""Each finding's sides, zones and degrees, mildest first."""

DEVICES: Mapping[str, bool] = {
    "pacemaker": True,
    "central line": True,
    "port": True,
    "endotracheal tube": False,
    "sternal wires": False,
}
"""The support devices, and whether each lies on a side."""


@dataclass(frozen=True)
class FindingSpec:
    """A finding to be put into a patient.

    A zone or a degree that is not given is the middle one of the finding.

    >>> FindingSpec("Nodule", "left").severity
    'moderate'

    Args:
        name: one of :data:`FINDINGS`.
        side: the patient's ``left`` or ``right``; None where the finding has no side.
        zone: ``upper``, ``mid`` or ``lower`` part of the lung; None where there is only one.
        severity: one of the finding's degrees in :data:`KINDS`.
        device: for support devices, one of :data:`DEVICES`.

    Raises:
        ConfigError: the finding does not exist or has no such side, zone or degree.
    """

    name: str
    side: str | None = None
    zone: str | None = None
    severity: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        _check_name("finding", self.name, FINDINGS)
        kind, sided = KINDS[self.name], KINDS[self.name].sided
        if self.name == "Support Devices":
            _check_name("device", self.device or "", DEVICES)
            sided = DEVICES[str(self.device)]
        elif self.device is not None:
            raise ConfigError(
                f"device {self.device!r}: only 'Support Devices' has one, not {self.name!r}; leave it out"
            )
        if sided:
            _check_name(f"side of {self.name}", self.side or "", ("left", "right"))
        elif self.side is not None:
            raise ConfigError(f"side {self.side!r}: {self.device or self.name} has no side; leave it out")
        for what, value, choices in (("zone", self.zone, kind.zones), ("severity", self.severity, kind.severities)):
            if value is None and choices:
                object.__setattr__(self, what, choices[len(choices) // 2])
            elif value is not None:
                if not choices:
                    raise ConfigError(f"{what} {value!r}: {self.name} has no {what}; leave it out")
                _check_name(f"{what} of {self.name}", value, choices)

    @property
    def grade(self) -> int:
        """0, 1 or 2 from mildest to most severe; 0 where the finding has no degrees."""
        return KINDS[self.name].severities.index(self.severity) if self.severity else 0

    @property
    def cells(self) -> frozenset[tuple[str, str]]:
        """Parts of the lungs that the finding fills or hides, as (side, zone)."""
        if self.side is None or self.device == "central line":
            return frozenset()
        zones: tuple[str, ...] = (self.zone or "upper",)
        if self.severity == "large" and self.name in ("Pleural Effusion", "Pneumothorax"):
            zones = ("mid", zones[0])
        return frozenset((self.side, zone) for zone in zones)


@dataclass(frozen=True)
class Finding:
    """A finding in a picture."""

    name: str
    side: str | None
    zone: str | None
    severity: str | None
    device: str | None
    box: tuple[float, float, float, float]
    """The bounding box of the finding's mask: x0, y0, x1, y1 in pixels. x1 and y1 are outside it."""


def _check_name(what: str, value: str, names: Collection[str]) -> None:
    """Refuse an unknown name. The message lists the known ones, the most similar first."""
    if value not in names:
        check_choice(what, value, nearest(value, names))


def check_mix(mix: Mapping[str, float] | None) -> dict[str, float]:
    """Weights of the findings that can occur, in order. None is the standard mix.

    >>> check_mix({"Nodule": 2.0, "Consolidation": 1.0, "Atelectasis": 0.0})
    {'Consolidation': 1.0, 'Nodule': 2.0}

    Raises:
        ConfigError: an unknown finding, a negative weight, or nothing above 0.
    """
    if mix is None:
        return {name: kind.share for name, kind in KINDS.items()}
    for name, weight in mix.items():
        _check_name("finding in mix", name, FINDINGS)
        check_number(f"mix: the weight of {name!r}", weight, least=0, below=inf, remedy="a number of 0 or more")
    if not sum(mix.values()):
        raise ConfigError("mix: no finding has a weight above 0; give one, or set normal=1 for healthy patients only")
    return {name: mix[name] for name in FINDINGS if mix.get(name)}


def sample_findings(
    rng: np.random.Generator, weights: Mapping[str, float], max_findings: int
) -> tuple[FindingSpec, ...]:
    """One to ``max_findings`` random findings that do not hide each other, in the order of :data:`FINDINGS`.

    Args:
        rng: the source.
        weights: result of :func:`check_mix`.
        max_findings: at least 1.
    """
    number = min(int(rng.geometric(0.5)), max_findings, len(weights))
    remaining = dict(weights)
    specs: list[FindingSpec] = []
    cells: set[tuple[str, str]] = set()
    for _ in range(number):
        if not remaining or len(specs) >= max_findings:
            break
        names = list(remaining)
        steps = np.cumsum([remaining[n] for n in names])
        name = names[min(int(np.searchsorted(steps, rng.random() * steps[-1], side="right")), len(names) - 1)]
        del remaining[name]
        for _ in range(4):
            spec = _sample_finding(rng, name)
            if not spec.cells & cells:
                specs.append(spec)
                cells |= spec.cells
                break
        else:
            continue
        if rng.random() < KINDS[name].pair and len(specs) < max_findings:
            other = _sample_finding(rng, name, "left" if spec.side == "right" else "right")
            if not other.cells & cells:
                specs.append(other)
                cells |= other.cells
    return tuple(sorted(specs, key=lambda s: FINDINGS.index(s.name)))


def _sample_finding(rng: np.random.Generator, name: str, side: str | None = None) -> FindingSpec:
    """One finding of this name with a random side, zone and degree."""
    kind, u = KINDS[name], rng.random(4)
    device = list(DEVICES)[int(u[0] * len(DEVICES))] if name == "Support Devices" else None
    sided = DEVICES[device] if device else kind.sided
    return FindingSpec(
        name,
        side or ("left" if u[1] < 0.5 else "right") if sided else None,
        kind.zones[int(u[2] * len(kind.zones))] if kind.zones else None,
        kind.severities[int(u[3] * len(kind.severities))] if kind.severities else None,
        device,
    )
