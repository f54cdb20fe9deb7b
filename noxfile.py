"""Tests with other Pythons and other dependencies: ``nox -s oldest``. CONTRIBUTING.md says which were run."""

from __future__ import annotations

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["tests"]
_ENV = {"HF_HUB_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
_TOOLS = ("pytest>=8", "pytest-xdist>=3.6", "pytest-timeout>=2.3")
_REFERENCES = ("scikit-learn", "pycocotools>=2.0.8", "nltk", "rouge-score", "sacrebleu")
"""What tests of metrics compare with."""
_QUICK = (
    "tests/nn",
    "tests/metrics",
    "tests/data",
    "tests/model",
    "tests/heads",
    "tests/results",
    "tests/cli/test_console.py",
)
"""What other versions of dependencies would break first: files of tests, unless the command names others."""


def _test(session: nox.Session, *files: str) -> None:
    session.run("python", "-m", "pytest", *(session.posargs or files), env=_ENV)


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def tests(session: nox.Session) -> None:
    """The whole suite, with every extra and what pip chooses."""
    session.install("-e", ".[dev,dicom]")
    _test(session)


@nox.session(python="3.11")
def oldest(session: nox.Session) -> None:
    """The oldest dependencies that pyproject.toml allows (tests/support/floors.py)."""
    session.install("-e", ".[dicom,onnx,openclip,parquet,peft,seg]", *_TOOLS, *_REFERENCES, "-c", "tests/oldest.txt")
    _test(session, *_QUICK)


@nox.session(python="3.13")
def newest(session: nox.Session) -> None:
    """The newest dependencies that pyproject.toml allows."""
    session.install("-e", ".[dev,dicom]", "--upgrade", "--upgrade-strategy", "eager")
    _test(session, *_QUICK)


@nox.session(python="3.11")
def trackers(session: nox.Session) -> None:
    """Pictures and tables in W&B and MLflow, offline."""
    session.install("-e", ".", *_TOOLS, "wandb", "mlflow-skinny")
    _test(session, "tests/training/test_loggers.py")
