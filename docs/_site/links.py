"""Pages that are written for the repository become pages of the site.

A page with the line ``<!-- page: ../README.md -->`` shows that file in the line's place. A link to a file outside ``docs/``
leads to the page that shows it, or else to the file in the repository. The line ``<!-- below: a b -->`` puts the pages ``a``
and ``b`` below this one in the site's contents. So every page reads well in both places.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

__all__ = ["rewritten", "setup", "shown"]

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
REPOSITORY = "https://github.com/diptych-cxr/diptych"
MARK = re.compile(r"^<!-- page: (\S+) -->$", re.M)
BELOW = re.compile(r"^<!-- below: (.+) -->$", re.M)
_CODE_OR_LINK = re.compile(r"^(?P<fence>`{3,}).*?^(?P=fence)|`[^`\n]+`|(?<=\]\()(?P<target>[^)\s]+)(?=\))", re.M | re.S)
"""A block of code, code in a line, or the target of a link. The first two are left as they are."""


def shown(docs: Path = DOCS) -> dict[Path, Path]:
    """The page in ``docs`` that shows each file from outside."""
    marks = ((page, MARK.search(page.read_text())) for page in sorted(docs.rglob("*.md")))
    return {(page.parent / mark[1]).resolve(): page for page, mark in marks if mark}


def rewritten(text: str, file: Path, page: Path, pages: dict[Path, Path]) -> str:
    """The text of ``file`` as it stands on ``page``, with its links to where the site has their targets.

    Args:
        text: Markdown.
        file: where its relative links start.
        page: the page in ``docs/`` that shows it.
        pages: what :func:`shown` gives.
    """

    def one(found: re.Match[str]) -> str:
        target = found["target"]
        if target is None or re.match(r"[a-z]+:|#", target):
            return found[0]
        name, mark, place = target.partition("#")
        path = (file.parent / name).resolve()
        path = path / "README.md" if path.is_relative_to(DOCS) and path.is_dir() else path
        path = pages.get(path, path)
        if path.is_relative_to(DOCS):
            return os.path.relpath(path, page.parent) + mark + place
        kind = "tree" if path.is_dir() else "blob"
        return f"{REPOSITORY}/{kind}/main/{path.relative_to(ROOT)}{mark}{place}"

    return _CODE_OR_LINK.sub(one, text)


def _read(app: Any, docname: str, source: list[str]) -> None:
    page = Path(app.env.doc2path(docname))
    if page.suffix != ".md":
        return
    pages = shown()
    text = rewritten(source[0], page, page, pages)
    mark = MARK.search(text)
    if mark:
        file = (page.parent / mark[1]).resolve()
        app.env.note_dependency(str(file))
        text = text[: mark.start()] + rewritten(file.read_text(), file, page, pages) + text[mark.end() :]
    source[0] = BELOW.sub(lambda found: "\n".join(["```{toctree}", ":hidden:", "", *found[1].split(), "```"]), text)


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
