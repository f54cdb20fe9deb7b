"""Run by :mod:`diptych.metrics.radeval` in a process of its own: reads reports as json, writes radeval's values as json."""

from __future__ import annotations

import json
import math
import os
import sys
from typing import Any


def _numbers(column: Any) -> list[float | None]:
    values = [float(value) for value in column]
    return [value if math.isfinite(value) else None for value in values]


def main() -> None:
    """Compute each metric by itself, so that one without its model does not hold up the others."""
    answer_to = os.dup(1)
    os.dup2(2, 1)  # radeval and its packages print
    asked = json.loads(sys.stdin.read())
    if not asked["download"]:
        import nltk

        nltk.download = lambda *_, **__: False  # radeval fetches when it is imported
    import radeval

    # Its RadGraph imports itself under the name RadEval, which only some file systems take for radeval (2.2.1).
    sys.modules.setdefault("RadEval", radeval)
    answer: dict[str, Any] = {}
    for name in asked["metrics"]:
        try:
            metric = radeval.RadEval(metrics=[name], per_sample=True, show_progress=False)
            result = metric(refs=asked["refs"], hyps=asked["hyps"])
            answer[name] = {"values": {key: _numbers(column) for key, column in result.items()}, "error": None}
        except Exception as error:  # whatever a package of theirs raises is told, and the next metric goes on
            told = " ".join(str(error).split())[:200]
            answer[name] = {"values": {}, "error": f"{type(error).__name__}: {told}"}
    with os.fdopen(answer_to, "w", encoding="utf-8") as file:
        json.dump(answer, file)


if __name__ == "__main__":
    main()
