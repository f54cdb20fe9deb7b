"""Paths that a table writes otherwise than the file is called: suffix, capitals, slashes, form of Unicode."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

__all__ = ["Spelling", "nearest_folder"]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class Spelling:
    """Finds the files that a path may mean.

    Args:
        children: the names directly in a folder; none where there is no such folder.
        suffixes: those of images, in small letters; a path may lack one.
    """

    def __init__(self, children: Callable[[str], Iterable[str]], suffixes: Collection[str]) -> None:
        self.children, self.suffixes = children, suffixes
        self._known: dict[str, dict[str, list[str]]] = {}

    def matches(self, folder: str, path: str) -> list[str]:
        """Every file below a folder that the path may mean; none if it leaves the folder.

        Slashes may be backslashes. Capitals and Unicode forms of each part may differ, and an image's suffix may lack. A
        folder that is there as it is written is taken so.
        """
        parts = os.path.normpath(path.replace("\\", "/")).split("/")
        if not parts[0] or ".." in parts:
            return []
        found = [folder]
        for at, part in enumerate(parts):
            found = [
                os.path.join(here, name) for here in found for name in self._like(here, part, last=at == len(parts) - 1)
            ]
        return sorted(found)

    def _like(self, folder: str, part: str, last: bool) -> list[str]:
        known = self._names(folder)
        same = known.get(_folded(part), [])
        if last:
            return same + known.get(f"{_folded(part)}\0", [])
        return [part] if part in same else same

    def _names(self, folder: str) -> dict[str, list[str]]:
        """Folded name to the names, and folded stem with a NUL to those of images."""
        if folder not in self._known:
            known: dict[str, list[str]] = {}
            for name in self.children(folder):
                known.setdefault(_folded(name), []).append(name)
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in self.suffixes:
                    known.setdefault(f"{_folded(stem)}\0", []).append(name)
            self._known[folder] = known
        return self._known[folder]


def nearest_folder(path: Path | str) -> str:
    """What is there of a path that is not, for messages: the last folder of it that exists, and what lies in it."""
    folder = next((above for above in Path(path).absolute().parents if above.is_dir()), Path("/"))
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        return f"{folder} cannot be listed ({error.strerror})"
    some = ", ".join(names[:4]) + (f", ... ({len(names)} in all)" if len(names) > 4 else "")
    return f"{folder} holds {some or 'nothing'}"
