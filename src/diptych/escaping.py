"""Text from files, made safe for tables. It is shown as it is, and never read as markup, a formula or a command.

There is one function for each kind of table. All put the text on one line. Control characters, which could clear a
terminal, become spaces.
"""

from __future__ import annotations

import csv
import io
import math
import re
import unicodedata
from collections.abc import Iterable

__all__ = ["csv_rows", "for_latex", "for_markdown", "one_line", "text_of_cell"]

# An underscore inside a word is no markup, and metrics are full of them.
_MARKDOWN = re.compile(r"[\\`*{}\[\]|~$#!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|^[-+](?=[-+ ])")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "[": "{[}",  # after the end of a row, a bracket or a star would be an argument of that end
    "]": "{]}",
    "*": "{*}",
}
_FORMULA = frozenset("=+-@\t\r\n" + "＝＋－＠")  # the wide forms start a formula too


def one_line(text: str) -> str:
    r"""The text with one space in place of each run of control characters and line ends.

    >>> one_line("two\nlines")
    'two lines'
    """
    printable = "".join(" " if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} else c for c in text)
    return printable if printable == text else " ".join(printable.split())


def for_markdown(text: str) -> str:
    r"""The text escaped for Markdown, also for a cell of a table.

    >>> print(for_markdown("a|b *c*"))
    a\|b \*c\*
    """
    line = "".join(_HTML.get(c, c) for c in one_line(text))
    if numbered := re.match(r"(\d+)([.)](?: .*)?)$", line):  # it would begin a list
        return numbered[1] + "\\" + _MARKDOWN.sub(r"\\\g<0>", numbered[2])
    return _MARKDOWN.sub(r"\\\g<0>", line)


def for_latex(text: str) -> str:
    r"""The text escaped for LaTeX.

    >>> print(for_latex("r@5_macro & 95 %"))
    r@5\_macro \& 95 \%
    """
    return re.sub("-(?=-)", "-{}", "".join(_LATEX.get(c, c) for c in one_line(text)))  # hyphens would join into a dash


def csv_rows(rows: Iterable[Iterable[object]]) -> str:
    r"""Rows as csv. None and NaN are empty cells.

    >>> csv_rows([["name", "auroc"], ["=SUM(A1)", 0.5], ["x", None]])
    "name,auroc\n'=SUM(A1),0.5\nx,\n"

    Text that a spreadsheet would take for a formula (it begins with ``=``, ``+``, ``-`` or ``@``) gets an apostrophe before it,
    as OWASP advises. Numbers stay as they are.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, int | float):
        return value
    text = str(value).replace("\r\n", "\n").replace("\r", "\n")  # alone it is not quoted, and would begin a row
    return f"'{text}" if _looks_like_formula(text) else text


def text_of_cell(cell: str) -> str:
    """The text that :func:`csv_rows` wrote into a cell, without the apostrophe that it put before a formula.

    >>> text_of_cell("'=SUM(A1)"), text_of_cell("'tis")
    ('=SUM(A1)', "'tis")
    """
    return cell[1:] if cell.startswith("'") and _looks_like_formula(cell) else cell


def _looks_like_formula(text: str) -> bool:
    """Whether a text is a formula once apostrophes and spaces before it are gone. So adding one changes no answer."""
    return text.lstrip("' ")[:1] in _FORMULA and bool(text.strip("' "))
