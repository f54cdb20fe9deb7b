"""Reports as plain text: where sentences lie, when two are the same, and the report of a mirrored radiograph."""

from __future__ import annotations

import re
from hashlib import blake2b

from diptych.errors import DataError

__all__ = ["mirror", "sentence_spans", "text_hash"]

# Abbreviations: after the first a sentence never ends, after the second it does unless a small letter or digit follows.
_NEVER_LAST = frozenset(
    {"approx", "cf", "dr", "e.g", "eg", "fig", "i.e", "ie", "lt", "mr", "mrs", "ms", "prof", "rt", "vs"}
)
_SELDOM_LAST = frozenset({"a.m", "al", "etc", "incl", "no", "p.m", "resp", "st"})

_BREAK = re.compile(
    r"""
      (?P<blank>\n[^\S\n]*\n\s*)                      # a blank line
    | (?P<item>\n\s*(?=(?P<number>\d{1,2})[.)]\s+\S)) # a new line that begins with a list number
    | (?P<stop>[.?!]+["')\]]*(?=\s|$))                # the end of a sentence
    | (?P<tight>(?<=[a-z]{2})\.(?=[A-Z][a-z]))        # the same with the space forgotten: "effusion.No"
    """,
    re.VERBOSE,
)
_LAST_WORD = re.compile(r"(\S*)$")
_LIST_NUMBER = re.compile(r"(?:^|:)\s*\d{1,2}$")


def _ends_sentence(before: str, stop: str, after: str) -> bool:
    """Whether ``stop`` ends the sentence; ``before`` is the sentence up to it, ``after`` what follows."""
    if stop[0] != "." or stop.startswith(".."):
        return True
    match = _LAST_WORD.search(before)
    word = match.group(1).lower().lstrip("(\"'[") if match else ""
    following = after.lstrip()[:1]
    if word in _NEVER_LAST and following:
        return False
    if word in _SELDOM_LAST and (following.islower() or following.isdigit()):
        return False
    return not (following and _LIST_NUMBER.search(before))


def _goes_on(number: int, before: str) -> bool:
    """Whether a number at the start of a line is a list's, not the end of a wrapped sentence."""
    return number == 1 or re.search(rf"(?:^|[:\n.])\s*{number - 1}[.)]\s", before) is not None


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Character spans ``(start, end)`` of the sentences of a report, in order, without surrounding white space.

    A sentence ends after ``.``, ``?`` or ``!``, at a blank line, and before a line that begins with the next number of
    a list. It does not end in a decimal ("1.5 cm"), after a list number ("1."), after an abbreviation ("Dr.",
    "approx."), or at the end of a wrapped line. A header ("FINDINGS:") belongs to the sentence that it stands before.
    Spans without a letter or a digit are left out.
    """
    spans: list[tuple[int, int]] = []
    start = 0

    def close(end: int) -> None:
        nonlocal start
        piece = text[start:end]
        if any(c.isalnum() for c in piece):
            first = start + len(piece) - len(piece.lstrip())
            spans.append((first, first + len(piece.strip())))
        start = end

    for match in _BREAK.finditer(text):
        stop, number = match.group("stop"), match.group("number")
        if stop is not None:
            ends = _ends_sentence(text[start : match.start()], stop, text[match.end() :][:80])
        elif number is not None:
            ends = _goes_on(int(number), text[: match.start()])
        else:
            ends = True
        if ends:
            close(match.end())
    close(len(text))
    return spans


def text_hash(text: str) -> int:
    """A signed 64-bit number, equal for reports that differ in white space and case only; the same in every process."""
    folded = " ".join(text.split()).casefold()
    return int.from_bytes(blake2b(folded.encode(), digest_size=8).digest(), "little", signed=True)


_TWIN = {
    "left": "right",
    "lt": "rt",
    "levo": "dextro",
    "LUL": "RUL",
    "LLL": "RLL",
    "LUQ": "RUQ",
    "LLQ": "RLQ",
    "LUE": "RUE",
    "LLE": "RLE",
    "LIJ": "RIJ",
    "LAO": "RAO",
    "LPO": "RPO",
}
_TWIN |= {twin: word for word, twin in _TWIN.items()}

# Words that contain "left" or "right" and name no side.
_NO_SIDE = frozenset(
    {
        "bright",
        "brighter",
        "brightest",
        "brightly",
        "brightness",
        "cleft",
        "clefts",
        "copyright",
        "leftover",
        "leftovers",
    }
    | {"outright", "upright"}
)

_SIDE = re.compile(
    r"""
      (?P<phrase>\b(?:left\s+(?:untreated|in\s+(?:place|situ)|behind|alone)|right\s+(?:now|away)|
          (?:right[\s-]+)?middle[\s-]+lobe|lingula\w*|(?:minor|horizontal)\s+fissure|situs\s+\w+|laevo\w+)\b)
    | (?P<run>\w*?(?:left|right)\w*)
    | (?P<curve>\b(?:levo|dextro))(?=-?(?:scolio|rotoscolio|cardi|posi|curv|convex|rotat|version))
    | (?P<short>(?-i:\b(?:Lt|lt|Rt|rt)\b))
    | (?P<code>(?-i:\b(?:LUL|RUL|LLL|RLL|LUQ|RUQ|LLQ|RLQ|LUE|RUE|LLE|RLE|LIJ|RIJ|LAO|RAO|LPO|RPO)\b))
    | (?P<letter>(?-i:\b(?:RML|LT|RT(?!-PCR)|[LR]V(?:H|AD|EF)?|LAD|(?<!\d\s)(?<!\d)(?<!B/)L|R(?!/O\b))\b))
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SIDED = re.compile(r"(left|right)(sided|ward|wards|most)?", re.IGNORECASE)


def _swap(word: str, text: str) -> str:
    """The twin of a side word in the same case."""
    if word in _TWIN:
        return _TWIN[word]
    twin = _TWIN[word.lower()]
    if word.isupper():
        return twin.upper()
    if word == word.capitalize():
        return twin.capitalize()
    raise _unsafe(word, text)


def _unsafe(word: str, text: str) -> DataError:
    shown = " ".join(text.split())
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return DataError(
        f"the report cannot be mirrored: '{' '.join(word.split())}' names a side and has no safe twin "
        f"(report: {shown!r}); turn the flip off, or write the side as 'left' or 'right'"
    )


def mirror(text: str) -> str:
    """The report of the mirrored radiograph: left and right exchanged, all else kept to the letter.

    Mirroring twice gives the report back. Knows "left-sided", "leftward", "Lt.", "levoscoliosis"/"dextroscoliosis" and
    the abbreviations of lobes and limbs (LUL/RUL ...).

    Raises:
        DataError: a word names a side and has no safe twin ("L lung", "RML", "lingula", "left untreated").
    """

    def twin(match: re.Match[str]) -> str:
        word = match.group()
        if match.lastgroup in ("curve", "short", "code"):
            return _swap(word, text)
        if match.lastgroup == "run":
            if word.lower() in _NO_SIDE:
                return word
            if sided := _SIDED.fullmatch(word):
                return _swap(sided.group(1), text) + (sided.group(2) or "")
        raise _unsafe(word, text)

    return _SIDE.sub(twin, text)
