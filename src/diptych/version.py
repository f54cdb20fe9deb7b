"""The version. This is the one place that holds it: the build reads it here, and never imports the package for it."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
