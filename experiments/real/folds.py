"""Print the zero-shot AUROCs of runs that tested the folds of one cross-validation, and their mean over the folds.

    python experiments/real/folds.py runs/nih64-jaccard-0-*

Each folder is the run of one fold, and holds its ``results.json``. A finding of which a fold has one class only is ``nan``
there, and its mean is over the other folds.
"""

from __future__ import annotations

import sys

import numpy as np

from diptych.errors import ConfigError
from diptych.results.record import read_results

PREFIX = "test/zero_shot/auroc/"


def main(folders: list[str]) -> None:
    """Print a row for each run, and the mean."""
    if not folders:
        sys.exit(f"usage: {__doc__}")
    try:
        results = [read_results(f"{folder}/results.json") for folder in folders]
    except ConfigError as error:
        sys.exit(f"folds: {error}")
    splits = {result["split_hash"] for result in results}
    if len(splits) < len(results):
        sys.exit(f"folds: {len(results)} runs tested {len(splits)} different splits; give one run of each fold")
    names = list(dict.fromkeys(name for result in results for name in result["metrics"] if name.startswith(PREFIX)))
    values = np.array([[getattr(result["metrics"].get(name), "value", np.nan) for name in names] for result in results])
    print("| run |", " | ".join(name.removeprefix(PREFIX) for name in names), "|")
    print("|---" * (len(names) + 1) + "|")
    for folder, row in zip([*folders, "mean"], [*values, np.nanmean(values, axis=0)], strict=True):
        print(f"| {folder} |", " | ".join(f"{value:.3f}" for value in row), "|")


if __name__ == "__main__":
    main(sys.argv[1:])
