"""Faces of packages. A name is imported from the module that defines it when it is first used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from diptych.names import PUBLIC, RENAMED

__all__ = ["face"]


def face(package: str, *modules: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package that offers names of its modules without importing them at once.

    Args:
        package: the package's ``__name__``. It offers the public names (:data:`diptych.names.PUBLIC`) that are defined in it.
        modules: modules of the package. It also offers every name of their ``__all__``.
    """
    public = {name: module for name, module in PUBLIC.items() if f"{module}.".startswith(f"{package}.")}

    def get(name: str) -> Any:
        name = RENAMED.get(name, name)
        if name in public:
            return getattr(import_module(public[name]), name)
        if not name.startswith("_"):
            for module in modules:
                inside = import_module(f"{package}.{module}")
                if name in inside.__all__:
                    return getattr(inside, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted(public)
