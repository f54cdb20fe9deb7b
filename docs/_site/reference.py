"""The reference: pages of every public name, written from the tables of names before Sphinx reads anything.

Nothing is listed by hand. The names come from :mod:`diptych.names`, from ``__all__`` of modules and from the catalogue of
entry points. So a new public name is in the reference at once.
"""

from __future__ import annotations

import pkgutil
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from diptych.names import PUBLIC
from diptych.plugins import DATAMODULES, HEADS, PEERS, plugins

__all__ = ["names", "pages", "setup"]

FOLDER = Path(__file__).resolve().parents[1] / "reference"
FACES = {
    "contract": ("The contract", "Values with shapes, the head, and errors.", ["types", "head", "errors"]),
    "model": ("Model and use", "Load, share, train, and ask a model.", ["model", "training"]),
    "towers": ("Towers", "What turns pictures and texts into features.", ["towers"]),
    "data": ("Data", "From tables and files to batches.", ["data"]),
    "reports": ("Reports", "Tokenizers and labellers.", ["reports"]),
    "evaluation": ("Evaluators", "Scores of pairs become figures.", ["evaluation"]),
    "tasks": ("Downstream tasks", "What is trained on an image tower.", ["tasks"]),
}
"""Pages of the public names: title, what they are, and the folders that define them. All stand in ``diptych``."""
PACKAGES = {
    "metrics": ("Metrics", "Numbers from arrays. No model is needed.", "diptych.metrics"),
    "nn": ("Parts of heads", "Functions, layers and norms that heads are made of.", "diptych.nn"),
}
"""Pages of whole packages, a section a module."""
CATALOGUES = {
    "heads": ("Heads", "`--model.head NAME` chooses one.", HEADS),
    "datamodules": ("Data sets", "`--data NAME` chooses one.", DATAMODULES),
    "peers": ("Peers", "`diptych convert NAME` reads a checkpoint of one.", PEERS),
}
"""Pages of what the entry points name."""
INTERNAL = {"diptych.metrics.radeval_child"}
"""Modules that are programs of their own."""
_TESTING = "diptych.testing"


def names() -> dict[str, list[tuple[str, str]]]:
    """Page by page, each name as users import it, and the module that it is shown under (empty: none)."""
    listed: dict[str, list[tuple[str, str]]] = {}
    for page, (*_, folders) in FACES.items():
        listed[page] = [(f"diptych.{name}", "") for name, module in PUBLIC.items() if module.split(".")[1] in folders]
    listed["testing"] = [(f"{_TESTING}.{name}", "") for name in dir(import_module(_TESTING))]
    for page, (_, _, package) in PACKAGES.items():
        for module in _modules(package):
            listed.setdefault(page, []).extend(
                (_public(module, name), module) for name in import_module(module).__all__
            )
    for page, (_, _, group) in CATALOGUES.items():
        listed[page] = [(plugin.path, "") for plugin in plugins(group) if plugin.distribution == "diptych"]
    there = {name for page in listed.values() for name, _ in page}
    nowhere = sorted(name for name in PUBLIC if f"diptych.{name}" not in there)
    if nowhere:
        raise LookupError(f"no page of the reference takes {', '.join(nowhere)}; name its folder in FACES")
    return listed


def _public(module: str, name: str) -> str:
    return f"diptych.{name}" if PUBLIC.get(name) == module else f"{module}.{name}"


def _modules(package: str) -> list[str]:
    found = pkgutil.iter_modules(import_module(package).__path__, f"{package}.")
    return [module.name for module in found if module.name not in INTERNAL]


def pages() -> dict[str, str]:
    """Each page's text, in reStructuredText."""
    titles = {**FACES, "testing": ("The contract suite", "For the tests of any package.", ""), **PACKAGES, **CATALOGUES}
    listed = names()
    texts = {}
    for page, (title, what, _) in titles.items():
        shown = ""
        parts = [_title(title), what.replace("`", "``")]
        for name, module in listed[page]:
            if module != shown:
                parts += [_title(module, "-"), f".. py:module:: {module}", _summary(import_module(module))]
                shown = module
            owner, _, last = name.rpartition(".")
            parts.append(_directive(name, getattr(import_module(owner), last)))
        texts[page] = "\n\n".join(parts) + "\n"
    toctree = [".. toctree::", "   :maxdepth: 1", "", *(f"   {page}" for page in titles)]
    what = "Written from the docstrings of the public names. A name that stands on no page may change without notice."
    return {"index": f"{_title('Reference')}\n\n{what}\n\n" + "\n".join(toctree) + "\n", **texts}


def _title(text: str, line: str = "=") -> str:
    return f"{text}\n{line * len(text)}"


def _summary(module: Any) -> str:
    return (module.__doc__ or "").strip().split("\n\n")[0]


def _directive(name: str, value: Any) -> str:
    if isinstance(value, type):
        ends = ", ".join(
            [
                base.__name__
                for base in value.__mro__[1:]
                if base.__name__ in PUBLIC or not base.__module__.startswith("diptych")
            ]
        )
        return f".. autoclass:: {name}\n   :members:\n   :inherited-members: {ends}\n   :show-inheritance:"
    return f".. auto{'function' if callable(value) else 'data'}:: {name}"


def _write(app: Any, _config: Any) -> None:
    """Write what has changed, so that a second build reads little."""
    FOLDER.mkdir(exist_ok=True)
    written = pages()
    for file in FOLDER.glob("*.rst"):
        if file.stem not in written:
            file.unlink()
    for page, text in written.items():
        file = FOLDER / f"{page}.rst"
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


def _missing(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """What a name of ours leads to that is documented elsewhere or not at all. A name that is not there stays a warning.

    A public name is documented as ``diptych.NAME``, and may be called by the module that defines it. What is in no page is
    shown as code.
    """
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    module, inside = node.get("py:module"), node.get("py:class")
    beside = (module, inside, f"{module}.{inside}", *sorted(name for name in sys.modules if name.startswith("diptych")))
    for path in (target, *(f"{place}.{target}" for place in beside if place)):
        owner, _, last = path.rpartition(".")
        if PUBLIC.get(last) == owner:
            domain = env.get_domain("py")
            return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", f"diptych.{last}", node, contnode)
        if _is_there(path):
            return contnode
    return None


@cache
def _is_there(path: str) -> bool:
    """Whether a dotted name can be imported, as a module or as a part of one."""
    try:
        pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError):
        return False
    return True


def _foreign(app: Any, what: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """Methods of other packages are left out. What a subclass of ours inherits from a base of ours is shown."""
    return True if callable(value) and not str(getattr(value, "__module__", "diptych")).startswith("diptych") else None


def _attribute(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """An attribute's first line may have a colon. napoleon would take what is before it for a type."""
    if what in {"attribute", "data", "property"}:
        lines[:0] = ["..", ""]  # an empty comment


def _signature(
    app: Any, what: str, name: str, value: Any, options: Any, signature: str | None, returns: str | None
) -> Any:
    """A field that a function fills in is printed as ``<factory>``, which is no Python. Sphinx could not read the rest."""
    return signature and signature.replace("<factory>", "..."), returns


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("config-inited", _write)
    app.connect("autodoc-process-docstring", _attribute, priority=100)
    app.connect("autodoc-skip-member", _foreign)
    app.connect("autodoc-process-signature", _signature)
    app.connect("missing-reference", _missing)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
