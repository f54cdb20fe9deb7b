"""diptych: vision-language contrastive pre-training on chest radiographs and their reports.

An image panel and a text panel - one dual encoder - hinged by an interchangeable alignment head. Importing the package
imports no torch: what needs it is loaded when it is first asked for.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych.loading import AlignmentModel, load

__all__ = ["AlignmentModel", "__version__", "load"]

try:
    __version__ = version("diptych")
except PackageNotFoundError:  # run from a source tree that was never installed: there is no catalogue either
    __version__ = "0+uninstalled"


def __getattr__(name: str) -> Any:
    if name in {"load", "AlignmentModel"}:
        from diptych import loading

        return getattr(loading, name)
    raise AttributeError(f"module 'diptych' has no attribute {name!r}")
