"""The oldest dependencies that pyproject.toml allows, as a file of constraints for pip.

Run alone it writes ``tests/oldest.txt`` anew. The session ``oldest`` of noxfile.py installs by that file.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "tests" / "oldest.txt"
_HEAD = "# The oldest dependencies of pyproject.toml, written by `python tests/support/floors.py`.\n"
_TOOLS = {"dev", "docs"}
"""Extras that no user of the package needs."""
_NEED = re.compile(r"(?P<name>[\w.-]+)(?:\[[\w,]+\])?[>=]=(?P<floor>[\w.]+)(?:[,;].*)?")


def floors(project: dict[str, object]) -> str:
    """Constraints of the dependencies and extras of a ``[project]`` table, a line each. Tools may be of any version.

    >>> print(floors({"dependencies": ["torch>=2.6,<3", "b[c]==1.0"]}), end="")
    b==1.0
    torch==2.6
    """
    extras = project.get("optional-dependencies", {})
    found = set()
    for need in [
        *project["dependencies"],
        *(one for name, needs in extras.items() if name not in _TOOLS for one in needs),
    ]:
        match = _NEED.fullmatch(need)
        if match is None:
            raise ValueError(f"pyproject.toml names no oldest version of '{need}'; begin with NAME>=VERSION")
        found.add(f"{match['name']}=={match['floor']}")
    names = [line.split("==")[0] for line in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"pyproject.toml has two floors of {', '.join(sorted(twice))}; write one")
    return "".join(f"{line}\n" for line in sorted(found, key=str.lower))


def text() -> str:
    """What the file must hold."""
    return _HEAD + floors(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])


if __name__ == "__main__":
    FILE.write_text(text())
