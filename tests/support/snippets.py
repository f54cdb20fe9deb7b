"""The fenced blocks of the documentation, with what the comment before each says of it.

A block runs, unless a comment before it says why not: ``<!-- not run: it needs SLURM -->``. Commands of such a block are
still held against the options that there are. ``<!-- ends with 1: ... -->`` is the exit code of the block's last command.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import yaml
from mini import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"(?:^<!-- (?P<note>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Snippet:
    """A fenced block."""

    page: Path
    line: int
    language: str
    """``sh``, ``python``, ``yaml``, or empty for a listing."""
    text: str
    note: str
    """The comment before it, or empty."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def reason(self) -> str:
        """Why it is not run, or empty."""
        return self.note.partition("not run: ")[2]

    @property
    def exit_code(self) -> int:
        """Of the last command."""
        found = re.match(r"ends with (\d+)", self.note)
        return int(found[1]) if found else 0

    @property
    def file(self) -> str:
        """The name in the first line, as ``# small.yaml``: the block is that file. Or empty."""
        found = re.match(r"# (\S+\.\w+)\n", self.text)
        return found[1] if found else ""

    def commands(self) -> list[list[str]]:
        """The words of each command of a block of ``sh``, without comments."""
        joined = self.text.replace("\\\n", " ")
        return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def snippets(page: Path) -> list[Snippet]:
    """The blocks of a page, in order."""
    text = page.read_text()
    return [
        Snippet(page, text[: found.start("text")].count("\n"), found["language"], found["text"], found["note"] or "")
        for found in _BLOCK.finditer(text)
    ]


ALL = [snippet for page in PAGES for snippet in snippets(page)]
TINY = {
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "devices": 1},
    "model": {
        "image": {
            "class_path": "TimmImage",
            "init_args": {
                "name": "resnet10t",
                "pretrained": False,
                "stage": 3,
                "model_args": {"channels": [8, 8, 16, 16], "stem_width": 8},
            },
        },
        "text": {"init_args": {"width": 32, "depth": 1, "heads": 2, "vocabulary": 256, "max_tokens": 48}},
    },
    "data": {
        "init_args": {
            "train": 32,
            "val": 16,
            "test": 24,
            "size": 64,
            "loading": {"image_size": 64, "batch_size": 8, "eval_batch_size": 12, "workers": 0},
        }
    },
    "figures": {"pairs": 1, "words_per_pair": 1},
}
"""What makes the demo's recipe (phantom.yaml) as small as a test wants it."""
PHANTOM = "experiments/pretrain/phantom.yaml"


def write_tiny(folder: Path) -> None:
    """``tiny.yaml``, and ``my.yaml``: a whole recipe of the smallest model on phantoms."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))

    def over(base: dict, more: dict) -> dict:
        both = {
            key: over(base[key], value) if isinstance(value, dict) and key in base else value
            for key, value in more.items()
        }
        return base | both

    (folder / "my.yaml").write_text(yaml.safe_dump(over(yaml.safe_load((ROOT / PHANTOM).read_text()), TINY)))
