"""Pieces of a page that stands alone: escaped text, tables, pictures within a budget of bytes, and the page around them.

A page asks nothing of a network and runs no script: its policy forbids both. So a hostile name in a result stays a text.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from diptych.errors import DataError

__all__ = ["STYLE", "Pictures", "details", "document", "table_of"]

_WIDEST = 1400
"""Pixels. A wider picture is made smaller, where it would not fit otherwise."""
_QUALITY = 80
_SHORT = 60
"""Letters of a cell that is not broken into lines."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --paper: #ffffff; --line: #d5d9de; --soft: #f3f5f7; --mark: #0b57d0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --paper: #16181b; --line: #3a3f45; --soft: #202327; --mark: #8ab4f8; }
}
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); } h3 { margin-top: 1.5rem; }
nav a, a { color: var(--mark); } nav { display: flex; flex-wrap: wrap; gap: 0.3rem 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
td.best { font-weight: 700; } table.short { white-space: nowrap; }
.many { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 0 1.5rem; }
summary { margin: 0.5rem 0; cursor: pointer; }
figure { margin: 1rem 0; } figcaption, .note { font-size: 0.85rem; opacity: 0.8; }
figure img { max-width: 100%; background: #ffffff; border-radius: 4px; }
pre { background: var(--soft); padding: 1rem; overflow-x: auto; font-size: 0.8rem; }
svg { max-width: 100%; height: auto; } svg text { fill: var(--ink); }
.warn { border-left: 4px solid #d93025; padding-left: 0.8rem; }
"""


def document(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """A whole page.

    Args:
        title: as text.
        sections: the title of each as text, and its content as HTML.
    """
    links = "".join(f'<a href="#s{i}">{escape(name)}</a>' for i, (name, _) in enumerate(sections))
    body = "".join(f'<h2 id="s{i}">{escape(name)}</h2>\n{content}\n' for i, (name, content) in enumerate(sections))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1><nav>{links}</nav>\n{body}</body></html>\n"
    )


def table_of(header: Sequence[str], rows: Sequence[Sequence[str]], best: Sequence[tuple[int, int]] = ()) -> str:
    """A table. ``best`` names the cells in bold by row and column. Cells are lines, unless some are long texts.

    >>> table_of(["run", "AUROC"], [["a", "0.9"]], best=[(0, 1)]).count("best")
    1
    """
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines, bold = [], set(best)
    for i, row in enumerate(rows):
        cells = "".join(
            f"<td{' class=best' if (i, j) in bold else ''}>{escape(cell)}</td>" for j, cell in enumerate(row)
        )
        lines.append(f"<tr>{cells}</tr>")
    short = max((len(cell) for row in [header, *rows] for cell in row), default=0) <= _SHORT
    start = "<table class=short>" if short else "<table>"
    return f'<div class="wide">{start}<thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def details(title: str, text: str) -> str:
    """A text that is shown when its title is clicked."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


class Pictures:
    """Pictures of files, inside the page, within a budget.

    Args:
        budget: bytes of the page that all of them may take.
    """

    def __init__(self, budget: int) -> None:
        self.left = budget
        self.left_out: list[Path] = []
        """Files that did not fit."""

    def of(self, file: Path, caption: str) -> str:
        """A picture file (SVG, PNG) with a caption. Empty if the budget is spent: the file is then in ``left_out``.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            raw = file.read_bytes()
            kind = "svg+xml" if file.suffix == ".svg" else "png"
            if file.suffix != ".svg" and len(raw) > self.left // 4:
                raw, kind = _smaller(raw), "jpeg"
        except (OSError, ValueError) as error:  # Pillow's errors of damaged pictures are OSErrors
            raise DataError(f"'{file}' cannot be read as a picture ({error}); test the run anew") from error
        text = base64.b64encode(raw).decode()
        if len(text) > self.left:
            self.left_out.append(file)
            return ""
        self.left -= len(text)
        return (
            f'<figure><img alt="{escape(caption)}" src="data:image/{kind};base64,{text}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )


def _smaller(raw: bytes) -> bytes:
    picture = Image.open(io.BytesIO(raw)).convert("RGB")
    picture.thumbnail((_WIDEST, _WIDEST * 4))
    out = io.BytesIO()
    picture.save(out, format="JPEG", quality=_QUALITY)
    return out.getvalue()
