"""The contract of evaluators."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from diptych import distributed
from diptych.errors import DataError
from diptych.evaluation.base import Evaluator
from diptych.metrics.bootstrap import Metric
from diptych.testing.contract import Found, Rule, chosen, rule
from diptych.testing.processes import run_on
from diptych.testing.samples import FINDINGS, Samples, Words, embed_image, embed_text, evaluate

__all__ = ["RULES", "EvaluatorCase", "check_evaluator"]


@dataclass(frozen=True)
class EvaluatorCase:
    """An evaluator as it is configured, and the findings of its data."""

    evaluator: Evaluator
    findings: tuple[str, ...]

    def __str__(self) -> str:
        return f"evaluator {type(self.evaluator).__name__}"

    def measured(self, rows: Sequence[int] | None = None, **options: Any) -> tuple[dict[str, Metric], dict[str, Any]]:
        """Metrics and protocol of one pass of a copy of the evaluator, over 41 samples."""
        return _measure(copy.deepcopy(self.evaluator), self.findings, rows, **options)


def check_evaluator(
    evaluator: Evaluator, /, findings: Sequence[str] = FINDINGS, *, without: Collection[str] = ()
) -> None:
    """Check that an evaluator keeps to the whole contract, in seconds and on the CPU.

    It makes passes over 41 made-up samples with embeddings of words and regions. Their pictures have no boxes and no masks.

    >>> from diptych import Retrieval
    >>> check_evaluator(Retrieval(resamples=10), without=["processes"])

    Args:
        evaluator: as it is configured.
        findings: names of the labels that it reads.
        without: names of rules that do not apply.

    Raises:
        BrokenContract: a rule is broken. The message names the evaluator, the rule, the figures, the likely cause and the
            remedy.
        ConfigError: ``without`` names no rule.
    """
    case = EvaluatorCase(evaluator, tuple(findings))
    for each in chosen(RULES, without):
        each(case)


def _measure(
    evaluator: Evaluator, findings: tuple[str, ...], rows: Sequence[int] | None = None, **options: Any
) -> tuple[dict[str, Metric], dict[str, Any]]:
    data = Samples(n=41, findings=findings)
    evaluator.embed_image, evaluator.embed_reports = embed_image, embed_text
    evaluator.training_reports = lambda: [(f"p{i}", text) for i, text in enumerate(data.texts[:20])]
    if evaluator.wants_val:
        evaluator.start(embed_text, findings)
        for batch, image, text in data.batches(range(20), 8):
            evaluator.update(batch, image, text, Words())
        evaluator.settle()
    found = evaluate(evaluator, data, Words(), rows=rows, **options)
    return found, evaluator.protocol


def _same(what: str, actual: tuple[Any, Any], expected: tuple[Any, Any]) -> None:
    """Raise :class:`Found` unless metrics and protocols agree."""
    (metrics, protocol), (others, other_protocol) = actual, expected
    if metrics.keys() != others.keys():
        raise Found(f"{what} gives other metrics: {sorted(metrics.keys() ^ others.keys())}")
    for name, metric in metrics.items():
        for part in ("value", "low", "high", "n"):
            a, b = getattr(metric, part), getattr(others[name], part)
            if not (a == b or abs(a - b) <= 1e-5 * max(1.0, abs(b)) or (a != a and b != b)):
                raise Found(f"{what} changes '{part}' of {name} from {b:.6g} to {a:.6g}")
    if protocol != other_protocol:
        changed = sorted(k for k in protocol.keys() | other_protocol.keys() if protocol.get(k) != other_protocol.get(k))
        raise Found(f"{what} changes the protocol: {', '.join(changed)}")


@rule(
    "metrics",
    "`compute` returns bare numbers, or an interval that is not of the figure",
    "make each one by Metric.of(draws, n), with draws from bootstrap weights (`self._weights()` as in Evaluator's own classes)",
)
def metrics(case: EvaluatorCase) -> None:
    """`compute` returns metrics by name, each within its interval, and `count` is the number of samples."""
    evaluator = copy.deepcopy(case.evaluator)
    found, _ = _measure(evaluator, case.findings)
    if not found:
        raise Found(
            "there are no metrics", "the findings of the data are not those that it reads", "name them as `findings`"
        )
    for name, metric in found.items():
        if not isinstance(metric, Metric):
            raise Found(f"{name} is a {type(metric).__name__}, no Metric")
        if metric.value != metric.value and not evaluator.doubt:
            continue  # of what these samples lack
        if metric.low == metric.low and not metric.low - 1e-9 <= metric.value <= metric.high + 1e-9:
            raise Found(f"{name} is {metric.value:.4g}, outside its interval of {metric.low:.4g} to {metric.high:.4g}")
    if not 0 < evaluator.count <= 41:
        raise Found(
            f"`count` is {evaluator.count} after 41 samples", "`compute` gathers nothing", "call self._weights() in it"
        )


@rule(
    "protocol",
    "`protocol` holds objects, or leaves out what the base class says",
    "return super().protocol | {...} with plain values: texts, numbers, lists and mappings",
)
def protocol(case: EvaluatorCase) -> None:
    """`protocol` is plain, and says what the base class says."""
    _, said = case.measured()
    json.dumps(said)
    for key in ("interval", "samples"):
        if key not in said:
            raise Found(f"`protocol` lacks '{key}'")


@rule(
    "passes",
    "`start` does not empty what the pass before has kept",
    "set every list and sum to empty in `start`, and call super().start first",
)
def passes(case: EvaluatorCase) -> None:
    """A second pass gives what the first gave, and figures do not depend on intervals being computed."""
    evaluator = copy.deepcopy(case.evaluator)
    first = _measure(evaluator, case.findings)
    _same("a second pass", _measure(evaluator, case.findings), first)
    plain, _ = _measure(evaluator, case.findings, intervals=False)
    for name, metric in first[0].items():
        if name in plain and abs(plain[name].value - metric.value) > 1e-5 * max(1.0, abs(metric.value)):
            figures = f"{name} is {metric.value:.6g}, and {plain[name].value:.6g} where no intervals are computed"
            raise Found(figures, "the figure itself is computed from the draws", "compute it first, then its interval")


@rule(
    "batches",
    "a mean is taken over batches, or over the rows of a batch, before all samples are there",
    "keep a row a sample in `update`, and compute over all of them in `compute`",
)
def batches(case: EvaluatorCase) -> None:
    """No metric depends on the batch size, or on the order of the samples."""
    expected = case.measured()
    _same("another batch size", case.measured(size=7), expected)
    _same("another order", case.measured(rows=list(range(41))[::-1]), expected)


@rule(
    "rows that fill up",
    "`update` reads all rows of a batch",
    "take the rows that `self._samples.add(batch)` returns, or those with batch.valid",
)
def invalid_rows(case: EvaluatorCase) -> None:
    """Rows that only fill up an evaluation batch are not counted."""
    _same("a batch with rows that do not count", case.measured(fill=3), case.measured())


@rule(
    "samples once",
    "samples are not told to `self._samples`, which finds doubles",
    "call self._samples.add(batch) in `update`, and self._weights() or self._samples.gather() in `compute`",
)
def samples_once(case: EvaluatorCase) -> None:
    """A sample that is counted twice is an error."""
    try:
        case.measured(rows=[*range(41), 0])
    except DataError:
        return
    raise Found("sample 0 was counted twice without an error")


def task_measure(evaluator: Evaluator, findings: tuple[str, ...]) -> tuple[dict[str, Metric], dict[str, Any]]:
    """One pass over this process's share of the samples, which are not equally many. A task of the pool."""
    rank = distributed.rank()
    rows = list(range(41))[rank::2] if rank else list(range(41))[::2]
    return _measure(evaluator, findings, rows, size=8 - rank, fill=rank)


@rule(
    "processes",
    "`compute` reads only what this process has collected",
    "put values in order over all processes by self._samples.values(...), and gather what is not of one row a sample",
)
def processes(case: EvaluatorCase) -> None:
    """Two processes with a share each give the metrics of one, on both."""
    expected = case.measured()
    for rank, found in enumerate(run_on(2, task_measure, case.evaluator, case.findings)):
        _same(f"a job of two processes (rank {rank})", found, expected)


RULES: dict[str, Rule[EvaluatorCase]] = {
    each.name: each for each in (metrics, protocol, passes, batches, invalid_rows, samples_once, processes)
}
"""The rules by name."""
