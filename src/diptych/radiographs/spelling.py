"""Paths in tables that differ from the files' own: in suffix, capitals, slashes, or form of Unicode."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

__all__ = ["Spelling", "nearest_folder"]


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class Spelling:
    """Finds the files that a path may mean.

    Args:
        children: gives the names directly in a folder, and none where there is no such folder.
        suffixes: suffixes of images, in small letters. A path may lack one.
    """

    def __init__(self, children: Callable[[str], Iterable[str]], suffixes: Collection[str]) -> None:
        self.children, self.suffixes = children, suffixes
        self._folders: dict[str, dict[str, list[str]]] = {}

    def matches(self, folder: str, path: str) -> list[str]:
        r"""Every file below a folder that the path may mean. A path that leaves the folder means none.

        Slashes may be backslashes. Each part may have other capitals or another form of Unicode. An image may lack its
        suffix. Where a folder has the very name that is written, no other folder is looked into.

        >>> tree = {"": ["Images"], "Images": ["A.png", "b.png"]}
        >>> Spelling(lambda folder: tree.get(folder, []), {".png"}).matches("", "images\\a")
        ['Images/A.png']
        """
        parts = os.path.normpath(path.replace("\\", "/")).split("/")
        if not parts[0] or ".." in parts:
            return []
        paths = [folder]
        for at, part in enumerate(parts):
            last = at == len(parts) - 1
            paths = [os.path.join(path, name) for path in paths for name in self._like(path, part, last)]
        return sorted(paths)

    def _like(self, folder: str, part: str, last: bool) -> list[str]:
        names = self._names(folder)
        same = names.get(_fold(part), [])
        if last:
            return same + names.get(f"{_fold(part)}\0", [])
        return [part] if part in same else same

    def _names(self, folder: str) -> dict[str, list[str]]:
        """The names in a folder, by their folded form. Those of images stand by their folded stem and a NUL, too."""
        if folder not in self._folders:
            names: dict[str, list[str]] = {}
            for name in self.children(folder):
                names.setdefault(_fold(name), []).append(name)
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in self.suffixes:
                    names.setdefault(f"{_fold(stem)}\0", []).append(name)
            self._folders[folder] = names
        return self._folders[folder]


def nearest_folder(path: Path | str) -> str:
    """For the message about a missing file: the last folder of its path that exists, and what lies in it."""
    folder = next((above for above in Path(path).absolute().parents if above.is_dir()), Path("/"))
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        return f"{folder} cannot be listed ({error.strerror})"
    some = ", ".join(names[:4]) + (f", ... ({len(names)} in all)" if len(names) > 4 else "")
    return f"{folder} holds {some or 'nothing'}"
