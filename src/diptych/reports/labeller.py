"""From a report to fourteen findings, by rules: phrases, and cues of negation and doubt within their clause.

All rules were written for this project, from how radiologists write. They know less than a trained labeller. Another one
can be written as a :class:`Labeller`.
"""

from __future__ import annotations

import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.checks import check_choice
from diptych.reports.finding_phrases import DOUBTFUL, NAMES, NAMES_OF_NEGBIO, NORMAL
from diptych.reports.text import sentence_spans

__all__ = ["FINDINGS", "Labeller", "Mention", "Rules", "mentions"]

FINDINGS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices", "No Finding",
)  # fmt: skip
"""The findings, in CheXbert's order."""

PRESENT, ABSENT, UNCERTAIN = 1.0, 0.0, -1.0

Definition = Literal["chexpert", "negbio"]


class _Cue(NamedTuple):
    """Words that give a value to the findings after or before them."""

    value: float
    pattern: str


_NO_CHANGE = (
    r"(?:no|without|not)(?: (?:any|new|large|other|(?:clinically )?significant\w*|appreciabl[ey]|substantial\w*|relevant|"
    r"interval|definite|acute|much)){0,3} "
    r"(?:change[ds]?|differen(?:ce|t)|improve(?:ment|d)|worsen(?:ing|ed)|increased?|decreased?|progression|larger|smaller)"
)
_SURE = r"(?:(?:definite|definitely|clearly|clear|convincing|radiographic|acute|focal|longer|other|new) )"
_FITS = r"(?:consistent with|compatible with|in keeping with)"
_OPEN = r"(?:may|might|could|would|possibly|potentially|clinical setting|clinical context|not)"
_SEEN = (
    r"(?:seen|identified|visuali[sz]ed|evident|present|noted|apparent|appreciated|demonstrated|detected|observed|"
    r"found|there)"
)
_CANNOT = r"(?:cannot|can ?not|could not|can't|not|never)"

_BEFORE = (
    _Cue(PRESENT, _NO_CHANGE),
    _Cue(PRESENT, r"no doubt|not only|not (?:excluding|with ?standing)"),
    _Cue(UNCERTAIN, rf"(?:{_CANNOT}|difficult to|impossible to)(?: \w+){{0,2}}? (?:excluded?|ruled? out)"),
    _Cue(UNCERTAIN, r"(?:to exclude|please exclude|rule out|assess for|evaluate for|evaluation for)"),
    _Cue(UNCERTAIN, r"not (?:well|fully|completely|adequately|optimally) \w+"),
    _Cue(
        ABSENT,
        r"no(?!\. ?\d)|not|without|neither|nor|absen(?:t|ce of)|negative for|free of|clear of|lack of|"
        r"(?:resolution|removal) of|resolved|den(?:y|ies)|rather than|ruled out|excludes?",
    ),
    _Cue(
        UNCERTAIN,
        r"possibl[ey]|possibility|probabl[ey]|likely|unlikely|may|might|could|would|perhaps|presumed|presumably|suspected|"
        r"suspicion|suspicious for|concern(?:ing)?(?: for)?|worrisome for|question(?:able|ed|s)?|"
        r"(?<!to )suggest(?:s|ed|ing|ive|ion)?(?: of)?|equivocal|potential(?:ly)?|differential|versus|vs|borderline|"
        r"indeterminate|apparent|favou?r(?:s|ed|ing)?|if|correlat\w+|symptoms of",
    ),
    _Cue(UNCERTAIN, rf"{_OPEN},?(?: \w+){{0,4}}? {_FITS}"),
    _Cue(PRESENT, rf"{_FITS}|indicat(?:es|ing|ive of)|diagnostic of"),
)
"""Cues for the findings after them. The nearest one counts, and of several at one place the first in this list."""

_VERB = r"(?:(?:is|are|was|were|be|been|has|have|had|can|could|to|being|remains?|appears?) ){0,3}"
_AFTER = (
    _Cue(UNCERTAIN, rf"{_CANNOT}(?: \w+){{0,3}}? (?:excluded|ruled out)|difficult to exclude"),
    _Cue(
        ABSENT,
        rf"(?:no|not) {_SURE}{{0,2}}{_SEEN}|no longer|absent|(?:is|are|was|were|been) (?:excluded|ruled out|removed)|"
        r"(?:has|have) (?:\w+ )?(?:resolved|cleared)|(?:is|are|now) resolved|been (?:\w+ )?removed|"
        r"within (?:the )?(?:normal limits|limits of normal)",
    ),
    _Cue(
        UNCERTAIN,
        rf"{_VERB}(?:possible|questionable|questioned|suspected|unlikely|(?:not|less) likely|equivocal|considered)|"
        r"(?:a|an|another|one)(?: \w+)? consideration|if real|(?:may|might|could) (?:also )?be (?:present|there|considered)|"
        r"versus|vs|is (?:less |more )?likely",
    ),
)
"""Cues for the findings before them in the clause."""

_STATES = r"(?: \w+){0,3} (?:is|are|appears?|remains?)\b"
_DEGREE = (
    r"(?:a|an|small|mild|mildly|minimal|trace|moderate|stable|unchanged|persistent|persisting|improved|improving|"
    r"worsening|worsened|increasing|increased|bibasilar|bilateral|left|right|multiple|old|healed) "
)
_CLAUSE = re.compile(
    "|".join(
        (
            r"[;:]|\?(?= )|\.(?= |$)",
            r",? (?:but|however|although|though|whereas|while|except|aside from|apart from|other than|yet|which)\b",
            r",? (?:with |given |because |as |and )?(?=there (?:is|are)\b)",
            r", with\b(?!out)",
            rf",?(?<!size)(?<!heart) and (?=(?:the )?(?:heart|cardi|mediastin|lung|costophrenic)\w*{_STATES})",
            rf", (?=(?:the )?(?:heart|cardiac|lungs?){_STATES})",
            rf"(?:, (?:and )?| and | with )(?={_DEGREE})",
        )
    )
)
"""Where a clause ends. A cue does not reach into the next one."""


def _compile(table: dict[str, tuple[str, ...]]) -> dict[str, re.Pattern[str]]:
    return {name: re.compile("|".join(rf"\b(?:{p})\b" for p in patterns)) for name, patterns in table.items()}


_NAMED_AS: dict[Definition, dict[str, re.Pattern[str]]] = {
    "chexpert": _compile(NAMES),
    "negbio": _compile(NAMES_OF_NEGBIO),
}
_NORMAL_AS, _DOUBTED_AS = _compile(NORMAL), _compile(DOUBTFUL)
_CUES_BEFORE = [(cue.value, re.compile(rf"(?<!\w)(?:{cue.pattern})(?!\w)")) for cue in _BEFORE]
_UNCHANGED = re.compile(rf"(?<!\w)(?:{_NO_CHANGE})(?!\w)")
_CUES_AFTER = [(cue.value, re.compile(rf"(?<!\w)(?:{cue.pattern})(?!\w)")) for cue in _AFTER]
_PAST = {
    "Pneumonia": re.compile(r"\b(?:history of|prior|previous|old|remote|healed)(?: \w+){0,3} $"),
    "Lung Lesion": re.compile(r"\bhistory of(?: \w+){0,3} $"),
}
"""What is of the past when these words come before it, and is not mentioned then."""
_EITHER = re.compile(r"^\s+(?:and\s+)?or\s+(?:\w+\s+){0,3}$")


class Mention(NamedTuple):
    """Where a text names a finding, or says that all is well with it."""

    start: int
    """Place of the first letter."""
    end: int
    """Place after the last letter."""
    finding: str
    """One of :data:`FINDINGS`."""
    value: float
    """1 present, 0 absent, -1 uncertain."""


def _plain(text: str) -> str:
    """The text in lower case, with spaces for hyphens and slashes, and single spaces."""
    return " ".join(re.sub(r"[-/]", " ", text.lower()).split())


def _places(text: str) -> list[int]:
    """The place in a text of each letter of its :func:`_plain` form."""
    places: list[int] = []
    gap = -1
    for place, letter in enumerate(text):
        if letter in "-/" or letter.isspace():
            gap = place
            continue
        if gap >= 0 and places:
            places.append(gap)
        gap = -1
        places += [place] * len(letter.lower())
    return places


def _clauses(sentence: str) -> Iterable[tuple[int, str]]:
    """The clauses of a plain sentence, each with the place where it begins."""
    last = 0
    for cut in _CLAUSE.finditer(sentence):
        yield last, sentence[last : cut.start()]
        last = cut.end()
    yield last, sentence[last:]


def _judge(clause: str, start: int, end: int) -> float:
    """The value of the finding that a clause names from ``start`` to ``end``."""
    after = [value for value, cue in _CUES_AFTER if cue.search(clause, end)]
    nearest, before = -1, PRESENT
    for value, cue in _CUES_BEFORE:
        for match in cue.finditer(clause, 0, start):
            if match.end() > nearest:
                nearest, before = match.end(), value
    if after and before != ABSENT:
        return after[0]
    return before


def _mentions(clause: str, definition: Definition = "chexpert") -> list[Mention]:
    """The findings that a plain clause names, and those of which it says in other words how they are."""
    found = [
        Mention(match.start(), match.end(), name, _judge(clause, match.start(), match.end()))
        for name, pattern in _NAMED_AS[definition].items()
        for match in pattern.finditer(clause)
        if name not in _PAST or not _PAST[name].search(clause, 0, match.start())
    ]
    unsure: set[str] = set()
    places = sorted(mention for mention in found if mention.value == PRESENT)
    for one, other in itertools.pairwise(places):
        between = clause[one.end : other.start]
        if _UNCHANGED.search(clause, 0, one.start):
            continue  # no change of either, so both are there
        if one.finding != other.finding and one.end <= other.start and _EITHER.search(between + " "):
            unsure |= {one.finding, other.finding}  # one or the other, not known which
    found = [mention._replace(value=UNCERTAIN) if mention.finding in unsure else mention for mention in found]
    named = {mention.finding for mention in found}
    for patterns, value in ((_DOUBTED_AS, UNCERTAIN), (_NORMAL_AS, ABSENT)):
        for name, pattern in patterns.items():
            if name not in named and (match := pattern.search(clause)):
                named.add(name)
                found.append(Mention(match.start(), match.end(), name, value))
    return found


def mentions(text: str) -> list[Mention]:
    """Where a report names findings, and what it says of each there, in reading order.

    >>> text = "Small left effusion. No pneumothorax."
    >>> [(text[m.start : m.end], m.finding, m.value) for m in mentions(text)]
    [('effusion', 'Pleural Effusion', 1.0), ('pneumothorax', 'Pneumothorax', 0.0)]
    """
    found = []
    for start, end in sentence_spans(text):
        places = [start + place for place in _places(text[start:end])]
        for begin, clause in _clauses(_plain(text[start:end])):
            for first, last, finding, value in _mentions(clause):
                found.append(Mention(places[begin + first], places[begin + last - 1] + 1, finding, value))
    return sorted(found)


def _stronger(one: float | None, other: float) -> float:
    """The stronger of two values: present before uncertain before absent."""
    order = (ABSENT, UNCERTAIN, PRESENT)
    return other if one is None else max(one, other, key=order.index)


class Labeller(ABC):
    """Reads the fourteen findings of :data:`FINDINGS` out of reports."""

    @property
    @abstractmethod
    def origin(self) -> dict[str, Any]:
        """What the labeller is, in plain values with a ``name``, for ``results.json``."""

    @abstractmethod
    def __call__(self, reports: Sequence[str]) -> NDArray[np.float32]:
        """Label reports, ``[n,14]``: 1 present, 0 absent, -1 uncertain, NaN not mentioned. "No Finding" is 1 or NaN."""


class Rules(Labeller):
    """A labeller by rules: phrases for findings, and cues of negation and doubt. It needs no model and no network.

    If a report says two things of a finding, present counts before uncertain, and uncertain before absent. "No Finding"
    is present where no other finding but Support Devices is present or uncertain, as CheXbert has it. A report without a
    word mentions nothing.

    Args:
        definition: what the findings are. ``chexpert`` is CheXpert's labeller's (arXiv 1901.07031): congestion and heart
            failure are edema, and round densities are lesions. ``negbio`` is that of the terms with which NegBio was measured
            (arXiv 1712.05898), and narrower in both.

    Raises:
        ConfigError: ``definition`` is neither.

    >>> labels = Rules()(["Small left effusion, no pneumothorax. Possible pneumonia."])
    >>> {name: float(value) for name, value in zip(FINDINGS, labels[0], strict=True) if value == value}
    {'Pneumonia': -1.0, 'Pneumothorax': 0.0, 'Pleural Effusion': 1.0}
    """

    def __init__(self, definition: Definition = "chexpert") -> None:
        check_choice("Rules: definition", definition, list(_NAMED_AS))
        self.definition: Definition = definition

    @property
    def origin(self) -> dict[str, Any]:
        """The labeller's name and version. Another version may give other labels."""
        narrower = {} if self.definition == "chexpert" else {"definition": self.definition}
        return {"name": "diptych rules", "version": 2, **narrower}

    def __call__(self, reports: Sequence[str]) -> NDArray[np.float32]:
        """Label reports, ``[n,14]``."""
        labels = np.full((len(reports), len(FINDINGS)), np.nan, np.float32)
        for row, report in zip(labels, reports, strict=True):
            values: dict[str, float] = {}
            for start, end in sentence_spans(report):
                for _, clause in _clauses(_plain(report[start:end])):
                    for mention in _mentions(clause, self.definition):
                        values[mention.finding] = _stronger(values.get(mention.finding), mention.value)
            for name, value in values.items():
                row[FINDINGS.index(name)] = value
            abnormal = any(value != ABSENT for name, value in values.items() if name != "Support Devices")
            if not abnormal and any(c.isalnum() for c in report):
                row[FINDINGS.index("No Finding")] = PRESENT
        return labels
