"""Reports as plain text: sentences, equal reports, words that name nothing, and the report of a mirrored radiograph."""

from __future__ import annotations

import re
from hashlib import blake2b

from diptych.errors import DataError

__all__ = ["mirror", "names_nothing", "sentence_spans", "text_hash"]

# Abbreviations. After the first a sentence never ends. After the second it ends unless a small letter or digit follows.
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
    """Whether ``stop`` ends the sentence. The sentence up to it is ``before``, and ``after`` follows it."""
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


def _continues_list(number: int, before: str) -> bool:
    """Whether a number at the start of a line belongs to a list, and does not end a wrapped sentence."""
    return number == 1 or re.search(rf"(?:^|[:\n.])\s*{number - 1}[.)]\s", before) is not None


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Character spans ``(start, end)`` of the sentences of a report, in order, without surrounding white space.

    A sentence ends after ``.``, ``?`` or ``!``, at a blank line, and before a line that begins with the next number of
    a list. It does not end in a decimal ("1.5 cm"), after a list number ("1."), after an abbreviation ("Dr.",
    "approx."), or at the end of a wrapped line. A header ("FINDINGS:") belongs to the sentence after it. Spans without
    a letter or a digit are left out.

    >>> text = "IMPRESSION: 1. Nodule of 1.5 cm. 2. No effusion."
    >>> [text[start:end] for start, end in sentence_spans(text)]
    ['IMPRESSION: 1. Nodule of 1.5 cm.', '2. No effusion.']
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
            ends = _continues_list(int(number), text[: match.start()])
        else:
            ends = True
        if ends:
            close(match.end())
    close(len(text))
    return spans


def text_hash(text: str) -> int:
    """A signed 64-bit number that is the same in every process. White space and case do not change it.

    >>> text_hash("No  Effusion. ") == text_hash("no effusion.")
    True
    """
    folded = " ".join(text.split()).casefold()
    return int.from_bytes(blake2b(folded.encode(), digest_size=8).digest(), "little", signed=True)


_STOP_WORDS = """
a an the this that these those there here it its they them their he she his her we our you your i my who which what
and or but nor so yet than then as if though although while whereas because since of in on at by for from to into
onto over under above below within without with between through during before after up down out about against along
among around near via per versus vs is are was were be been being am has have had having do does did can cannot could
may might must shall should will would no not none never neither any some all both each either every other another
same such more most less least very quite too also again now only just still already
seen noted present identified demonstrated visualized visualised evident observed appreciated appear appears appearing
show shows shown remain remains remaining
findings impression comparison indication technique history examination report please
"""
_NAMES_NOTHING = frozenset(_STOP_WORDS.split())


def names_nothing(word: str) -> bool:
    """Whether a word of a report stands for nothing that could be seen: a stop word, a number or punctuation.

    >>> [word for word in "There is no effusion , 2 cm .".split() if not names_nothing(word)]
    ['effusion', 'cm']
    """
    return word.lower() in _NAMES_NOTHING or not any(letter.isalpha() for letter in word)


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
    """The report of the mirrored radiograph: left and right are exchanged, and all else stays to the letter.

    Mirroring twice gives the report back. The words known are "left-sided", "leftward", "Lt.",
    "levoscoliosis"/"dextroscoliosis" and the abbreviations of lobes and limbs (LUL/RUL ...).

    >>> mirror("Left effusion. RUL nodule. The heart is normal.")
    'Right effusion. LUL nodule. The heart is normal.'

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
