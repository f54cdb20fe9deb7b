"""R2Gen's rules for the text of reports (Chen et al., EMNLP 2020, arXiv 2010.16056), by which most papers compare reports.

The rules are those of its public code (github.com/zhjohnchan/R2Gen), written anew. Reports are cleaned, cut, and words that
are rare in training become ``<unk>``, in the reference too. So figures under these rules are higher than of whole reports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from diptych.checks import check_choice

__all__ = ["R2GEN", "R2GenRules", "R2GenText", "clean"]

UNKNOWN = "<unk>"
_DROPPED = dict.fromkeys([*map(ord, "\"'/\\.,?*!%^&_+(){}]"), *range(ord(":"), ord("[") + 1)])
"""The code removes its range from ``:`` to ``[``, so ``<``, ``=``, ``>`` and ``@`` too. Hyphens stay."""


@dataclass(frozen=True)
class R2GenRules:
    """What differs between R2Gen's two data sets."""

    cut: int
    """Most words of a report, its start among them. So a reference has one word less."""
    least: int
    """A word that comes less often in the training reports is ``<unk>``."""
    blanks: bool
    """Whether line breaks, repeated blanks and the marks of removed words (``___``) are folded."""
    by_report: bool
    """Whether the words of a report with several images are counted once."""


R2GEN = {"r2gen/openi": R2GenRules(60, 3, False, True), "r2gen/mimic_cxr": R2GenRules(100, 10, True, False)}
"""The rules of R2Gen's two training scripts, by name."""


def _halved(text: str, mark: str, times: int) -> str:
    for _ in range(times):
        text = text.replace(mark * 2, mark)
    return text


def clean(report: str, blanks: bool = False) -> list[str]:
    """The words of a report after R2Gen's cleaning, with a full stop after each sentence.

    Text is in lower case. Numbers of lists and punctuation inside sentences are removed, without a blank in their place.

    >>> " ".join(clean("1. Heart size normal. 2. No T4/T5 fracture; clear, 1.5 cm."))
    'heart size normal . no t4t5 fracture clear 15 cm .'

    Args:
        report: the text.
        blanks: fold line breaks, repeated blanks and ``___``, as for MIMIC-CXR.
    """
    if blanks:
        report = _halved(_halved(report.replace("\n", " "), "_", 7), " ", 7)
    report = _halved(report, ".", 8 if blanks else 3).replace("1. ", "")
    for before in (". ", " "):
        for number in "2345":
            report = report.replace(f"{before}{number}. ", ". ")
    words: list[str] = []
    for sentence in report.strip().lower().split(". "):
        words += [*sentence.translate(_DROPPED).split(), "."]
    return words


class R2GenText:
    """Reports as R2Gen writes and compares them. It can be pickled to worker processes.

    Args:
        name: ``r2gen/openi`` or ``r2gen/mimic_cxr``.
        training: the patient and the report of each training image. A patient is None where not known.

    Raises:
        ConfigError: there are no such rules.
    """

    def __init__(self, name: str, training: Iterable[tuple[str | None, str]]) -> None:
        check_choice("protocol", name, list(R2GEN))
        self.name, self.rules = name, R2GEN[name]
        pairs = list(training)
        if self.rules.by_report:
            pairs = list(
                {
                    (i if patient is None else patient, text): (patient, text)
                    for i, (patient, text) in enumerate(pairs)
                }.values()
            )
        counts = Counter(word for _, text in pairs for word in clean(text, self.rules.blanks))
        self.known = frozenset(word for word, number in counts.items() if number >= self.rules.least)

    def _words(self, text: str) -> list[str]:
        return [word if word in self.known else UNKNOWN for word in clean(text, self.rules.blanks)]

    def reference(self, text: str) -> str:
        """A report as it is trained on and compared with: cleaned, cut, rare words as ``<unk>``."""
        return " ".join(self._words(text)[: self.rules.cut - 1])

    def hypothesis(self, text: str) -> str:
        """A written report as R2Gen's own model could have written it: from the known words, one word longer at most."""
        return " ".join(self._words(text)[: self.rules.cut])

    @property
    def facts(self) -> dict[str, Any]:
        """The rules in plain values, for the protocol."""
        return {
            "name": self.name,
            "source": "arXiv 2010.16056, github.com/zhjohnchan/R2Gen",
            "most words of a reference": self.rules.cut - 1,
            "least count of a word": self.rules.least,
            "words": len(self.known),
        }
