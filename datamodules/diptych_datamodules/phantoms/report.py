"""Reports with known meaning: words that speak of a finding are linked to it, and filler is marked as filler.

All wording is the project's own. A template is plain text with the slots ``{side}``, ``{zone}``, ``{severity}`` and
``{name}``. The words that name the finding stand in ``<...>``, or in ``<role|...>`` if they have another role.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from diptych.checks import check_number
from diptych_datamodules.phantoms import wording as w
from diptych_datamodules.phantoms.findings import FINDINGS, FindingSpec

__all__ = ["ROLES", "Link", "PhantomReport", "write_report"]

ROLES = ("finding", "side", "zone", "severity", "negated", "hedge", "comparison", "filler")
"""The roles of a span in a report. A ``negated`` span names an absent finding. ``filler`` is a sentence about no finding."""


@dataclass(frozen=True)
class Link:
    """A span of a report's text, and the finding that it speaks of."""

    start: int
    """First character of the span in :attr:`PhantomReport.text`."""
    end: int
    """One past the last character."""
    role: str
    """One of :data:`ROLES`."""
    finding: int | None
    """Index into the phantom's findings. None for filler, and where the finding is absent."""
    name: str | None
    """Name of the finding, present or absent. None for filler."""


@dataclass(frozen=True)
class PhantomReport:
    """A report in two sections."""

    findings: str
    impression: str
    links: tuple[Link, ...]
    """Spans of :attr:`text`, in order of their start."""
    sentences: tuple[tuple[int, int], ...]
    """Start and end of every sentence in :attr:`text`."""
    mentions: dict[str, float]
    """1 stated, 0 denied, -1 stated with doubt. A finding that is not mentioned is missing."""

    @property
    def text(self) -> str:
        """Both sections, each on a line of its own."""
        return f"{self.findings}\n{self.impression}"


@dataclass
class _Sentence:
    """A sentence under construction, and its links."""

    text: str = ""
    links: list[Link] = field(default_factory=list)

    def add(self, words: str, role: str | None = None, finding: int | None = None, name: str | None = None) -> None:
        if self.text[-2:] in ("a ", "A ") and words[:1] in _VOWELS and self.text[-3:-2] in ("", " "):
            self.text = self.text[:-1] + "n "
        if not self.text:
            words = words[:1].upper() + words[1:]
        start = len(self.text)
        self.text += words
        if role is not None:
            self.links.append(Link(start, len(self.text), role, finding, name))


_VOWELS = frozenset("aeiouAEIOU")
_SLOT = re.compile(r"\{(\w+)\}|<([^<>]+)>")


class _Dice:
    """Fast draws from one block of uniform numbers."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng, self._block = rng, iter(())

    def __call__(self) -> float:
        try:
            return next(self._block)
        except StopIteration:
            self._block = iter(self._rng.random(64).tolist())
            return next(self._block)

    def pick(self, options: Sequence[str]) -> str:
        return options[int(self() * len(options))]

    def shuffled(self, items: Sequence[_Sentence]) -> list[_Sentence]:
        return [item for _, _, item in sorted((self(), i, item) for i, item in enumerate(items))]


def write_report(
    rng: np.random.Generator,
    specs: Sequence[FindingSpec],
    *,
    comparison: bool = False,
    filler: float = 0.3,
    uncertain: float = 0.0,
) -> PhantomReport:
    """Write the report of a patient with these findings.

    Args:
        rng: source of every choice.
        specs: the findings.
        comparison: whether the report refers to a prior study.
        filler: share of filler among the sentences, 0 to 0.8.
        uncertain: probability that a finding of the mildest degree is stated with doubt.

    Raises:
        ConfigError: a share out of range.
    """
    check_number("phantoms: filler", filler, least=0, most=0.8)
    check_number("phantoms: uncertain", uncertain, least=0, most=1)
    dice = _Dice(rng)
    mentions: dict[str, float] = {}
    body: list[_Sentence] = []
    summary: list[_Sentence] = []
    for index, spec in enumerate(specs):
        doubt = spec.grade == 0 and bool(spec.severity) and dice() < uncertain
        mentions[spec.name] = max(mentions.get(spec.name, -1.0), -1.0 if doubt else 1.0)
        long, short = w.STATEMENTS[spec.device or spec.name], w.SUMMARY_STATEMENTS[spec.device or spec.name]
        if doubt:
            long, short = (w.DOUBTS, w.SUMMARY_DOUBTS) if spec.side else (w.PLAIN_DOUBTS, w.PLAIN_DOUBTS)
        body.append(_statement(dice, spec, index, long, comparison))
        summary.append(_statement(dice, spec, index, short, comparison=False))
    present = {spec.name for spec in specs}
    body = dice.shuffled(body) + dice.shuffled(_denials(dice, present, mentions))
    if not specs:
        summary = [_fill_template(dice.pick(w.NORMAL_SUMMARIES), {}, None, None)]
    elif dice() < 0.35:
        summary += _denials(dice, present, mentions, w.SUMMARY_DENIALS, most=1)
    extra = filler / (1 - filler) * (len(body) + len(summary))
    count = int(extra) + (dice() < extra - int(extra))
    pool = dice.shuffled([_Sentence(text) for text in w.FILLER_SENTENCES])
    late = round(count * len(summary) / (len(body) + len(summary)) * 0.5)
    body = _with_filler(dice, body, pool[: count - late])
    summary = _with_filler(dice, summary, pool[count - late : count])
    return _join(body, summary, mentions)


def _statement(dice: _Dice, spec: FindingSpec, index: int, templates: Sequence[str], comparison: bool) -> _Sentence:
    """One sentence that says the finding is there."""
    slots = {
        "side": spec.side or "",
        "zone": dice.pick(w.ZONES[spec.zone]) if spec.zone else "",
        "severity": dice.pick(w.SEVERITIES[spec.severity]) if spec.severity else "",
        "name": dice.pick(w.NAMES[spec.name]),
    }
    start = dice.pick(w.COMPARISONS) if comparison and dice() < 0.5 else ""
    return _fill_template(dice.pick(templates), slots, index, spec.name, start)


def _fill_template(
    template: str, slots: dict[str, str], index: int | None, name: str | None, start: str = ""
) -> _Sentence:
    """Fill a template and link its words."""
    sentence = _Sentence()
    if start:
        sentence.add(start, "comparison", index, name)
        sentence.add(" ")
        template = template[0].lower() + template[1:]
    place = 0
    for slot in _SLOT.finditer(template):
        if slot.start() > place:
            sentence.add(template[place : slot.start()])
        place = slot.end()
        key, words = slot.groups()
        if words is not None:
            role, _, plain = words.rpartition("|")
            sentence.add(plain, role or "finding", index, name)
        else:
            sentence.add(slots[key], "finding" if key == "name" else key, index, name)
    sentence.add(template[place:])
    return sentence


def _denials(
    dice: _Dice,
    present: set[str],
    mentions: dict[str, float],
    pool: Sequence[w.Denial] = w.DENIALS,
    most: int | None = None,
) -> list[_Sentence]:
    """Sentences that say what is not there, ``most`` of them. Each is true, and no finding is denied twice.

    The findings that they deny go to ``mentions``.
    """
    sentences: list[_Sentence] = []
    names_denied: set[str] = set()
    chance = 0.4 if present else 0.5
    for _, _, denial in sorted((dice(), i, d) for i, d in enumerate(pool)):
        names = [name for name, _ in denial.words]
        if present.isdisjoint(denial.absent) and names_denied.isdisjoint(names) and dice() < chance:
            names_denied.update(names)
            sentence = _Sentence(denial.text)
            place = 0
            for name, words in denial.words:
                place = denial.text.index(words, place)
                sentence.links.append(Link(place, place + len(words), "negated", None, name))
                place += len(words)
            sentences.append(sentence)
    chosen = sentences[:most]
    denied = {link.name for sentence in chosen for link in sentence.links}
    mentions |= {name: 0.0 for name in FINDINGS if name in denied}
    return chosen


def _with_filler(dice: _Dice, sentences: list[_Sentence], filler: Sequence[_Sentence]) -> list[_Sentence]:
    """The sentences in their order, with filler in random places between them."""
    result = list(sentences)
    for sentence in filler:
        sentence.links = [Link(0, len(sentence.text), "filler", None, None)]
        result.insert(int(dice() * (len(result) + 1)), sentence)
    return result


def _join(body: Sequence[_Sentence], summary: Sequence[_Sentence], mentions: dict[str, float]) -> PhantomReport:
    """Join the sentences to a report. Their links move with them."""
    links: list[Link] = []
    spans: list[tuple[int, int]] = []
    at = 0
    for sentence in (*body, *summary):
        links += [Link(at + k.start, at + k.end, k.role, k.finding, k.name) for k in sentence.links]
        spans.append((at, at + len(sentence.text)))
        at += len(sentence.text) + 1
    sections = [" ".join(s.text for s in part) for part in (body, summary)]
    ordered = {name: mentions[name] for name in FINDINGS if name in mentions}
    return PhantomReport(sections[0], sections[1], tuple(links), tuple(spans), ordered)
