"""The results of ``diptych compare``: means with intervals over seeds, paired differences, tables and a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from diptych.escaping import csv_rows, for_markdown
from diptych.files import replace_text
from diptych.predictions.reading import Tested
from diptych.results.dotplot import Panel, draw
from diptych.results.paired import RESAMPLES, Paired, holm, over_seeds, over_studies, signed_interval
from diptych.results.record import plain
from diptych.results.seeds import Summary, cell, markdown, show, summarise
from diptych.results.sheet import FORMATS

__all__ = ["LABELS", "Comparison", "Outcome", "Summary", "plain", "show", "summarise"]

LABELS = {
    "retrieval/r@5": "R@5",
    "retrieval/median_rank": "median rank",
    "zero_shot/auroc/macro": "zero-shot AUROC",
    "head_parameters": "head parameters",
    "seconds_per_step": "s a step",
}


@dataclass(frozen=True)
class Outcome:
    """The figures of one run."""

    variant: str
    seed: int
    metrics: dict[str, float]
    facts: dict[str, float]
    chance: dict[str, float] = field(default_factory=dict)
    """The figures of a model that knows nothing, as far as they are known."""
    tested: Tested | None = None
    """The predictions of its test. None if it kept none."""


def _fact(value: float) -> str:
    return f"{value:,.0f}" if value.is_integer() else show(value)


class Comparison:
    """The runs of all variants.

    Args:
        title: of the page.
        notes: a note for each variant, which may be empty. Their order is that of the rows.
        outcomes: the figures of every complete run.
        missing: names of the runs that are not there.
        against: the variant that the others are compared with, seed by seed. The first one, if not given.
    """

    def __init__(
        self,
        title: str,
        notes: dict[str, str],
        outcomes: Sequence[Outcome],
        missing: Sequence[str] = (),
        against: str | None = None,
    ) -> None:
        self.title, self.notes, self.outcomes, self.missing = title, notes, list(outcomes), list(missing)
        self.of = {name: [o for o in outcomes if o.variant == name] for name in notes}
        self.of = {name: runs for name, runs in self.of.items() if runs}
        self.metrics = list(dict.fromkeys(name for o in outcomes for name in o.metrics))
        self.metrics = sorted(self.metrics, key=self._is_part)  # parts of a metric after all whole ones
        self.facts = list(dict.fromkeys(name for o in outcomes for name in o.facts))
        self.summary = {metric: self._summaries(metric) for metric in [*self.metrics, *self.facts]}
        self.chance = {
            name: float(np.mean([o.chance[name] for o in outcomes if name in o.chance]))
            for name in self.metrics
            if any(name in o.chance for o in outcomes)
        }
        self.against = next(iter(notes)) if against is None else against
        self.paired = self._paired()

    def _is_part(self, name: str) -> bool:
        return "/" in name and name.rpartition("/")[0] in self.metrics

    def _summaries(self, metric: str) -> dict[str, Summary]:
        """The summary of each variant that has the metric. A seed that lacks it counts as undefined."""
        summaries = {}
        for variant, runs in self.of.items():
            values = [(o.metrics | o.facts).get(metric) for o in runs]
            if any(value is not None for value in values):
                summaries[variant] = summarise([math.nan if value is None else value for value in values])
        return summaries

    def _paired(self) -> dict[str, dict[str, Paired]]:
        """For each metric, how each variant differs from the reference, over the seeds that both have."""
        reference = {o.seed: o for o in self.of.get(self.against, ())}
        paired: dict[str, dict[str, Paired]] = {metric: {} for metric in self.metrics}
        for variant, runs in self.of.items():
            pairs = [(o, reference[o.seed]) for o in runs if o.seed in reference]
            if variant == self.against or not pairs:
                continue
            tests = [[o.tested for o in side if o.tested is not None] for side in zip(*pairs, strict=True)]
            paired_tests = all(len(side) == len(pairs) for side in tests)
            studies = over_studies(tests[0], tests[1]) if paired_tests else {}
            for metric in self.metrics:
                if not all(metric in o.metrics for pair in pairs for o in pair):
                    continue
                found = over_seeds(*([o.metrics[metric] for o in side] for side in zip(*pairs, strict=True)))
                low, high, name = studies.get(metric, (math.nan, math.nan, ""))
                paired[metric][variant] = replace(found, studies_low=low, studies_high=high, studies_interval=name)
        for by_variant in paired.values():
            corrected = holm([one.p for one in by_variant.values()])
            for variant, p in zip(list(by_variant), corrected, strict=True):
                by_variant[variant] = replace(by_variant[variant], p_holm=p)
        return {metric: by_variant for metric, by_variant in paired.items() if by_variant}

    def differences(self) -> str:
        """A table in Markdown: a row for each whole metric and variant, with its paired difference from the reference."""
        rows = [
            [
                LABELS.get(metric, metric),
                variant,
                "undefined" if math.isnan(one.difference) else f"{one.difference:+.3f}",
                signed_interval(one.low, one.high),
                signed_interval(one.studies_low, one.studies_high, one.studies_interval),
                "-" if math.isnan(one.p_holm) else f"{one.p_holm:.3f}",
                str(one.seeds),
            ]
            for metric, by_variant in self.paired.items()
            if not self._is_part(metric)
            for variant, one in by_variant.items()
        ]
        return markdown(
            ["metric", "variant", "difference", "95 % over seeds", "95 % over studies", "p (Holm)", "seeds"], rows
        )

    def means(self, parts: bool = False) -> str:
        """A table in Markdown: a row for each variant, and a column for each metric or, with ``parts``, each part of one."""
        columns = [name for name in self.metrics if self._is_part(name) == parts]
        facts = [] if parts else self.facts
        header = ["variant", *(LABELS.get(name, name) for name in [*columns, *facts]), "seeds"]
        rows = []
        for variant, runs in self.of.items():
            cells = [cell(self.summary[name].get(variant)) for name in columns]
            values = [self.summary[name].get(variant) for name in facts]
            cells += ["-" if value is None else _fact(value.mean) for value in values]
            rows.append([variant, *cells, str(len(runs))])
        chance = [show(self.chance[name]) if name in self.chance else "" for name in columns]
        foot = ["chance", *chance, *("" for _ in facts), ""]
        if not parts and any(self.notes[name] for name in self.of):
            header, foot = [*header, "note"], [*foot, ""]
            rows = [[*row, self.notes.get(row[0], "")] for row in rows]
        return markdown(header, rows, foot)

    def every_run(self) -> str:
        """A table in Markdown: a row for each run, a column for each metric and fact."""
        rows = []
        for runs in self.of.values():
            for o in runs:
                cells = [show(o.metrics[name]) if name in o.metrics else "-" for name in self.metrics]
                cells += [_fact(o.facts[name]) if name in o.facts else "-" for name in self.facts]
                rows.append([o.variant, str(o.seed), *cells])
        return markdown(["variant", "seed", *(LABELS.get(name, name) for name in [*self.metrics, *self.facts])], rows)

    def page(self) -> str:
        """The whole page in Markdown."""
        parts = [
            f"# Comparison: {for_markdown(self.title)}",
            "Mean over seeds ± half of the 95 % interval (Student's t over seeds). Last checkpoint of every run, test split.",
            self.means(),
        ]
        if any(map(self._is_part, self.metrics)):
            parts += ["Parts:", self.means(parts=True)]
        parts += ["![the same as a picture](compare.png)", f"## Against {for_markdown(self.against)}, paired"]
        if self.paired:
            parts += [
                "Differences of runs with the same seed. Over seeds: Student's t. Over studies: percentile bootstrap of the "
                f"test set's patients, {RESAMPLES:,} draws, the same for both, or what is named beside it, where few patients "
                "have a finding. p: paired t-test, with Holm's correction for the number of variants. Parts of "
                "metrics are in compare-paired.csv.",
                self.differences(),
            ]
        else:
            parts.append("No other variant has a seed in common with it.")
        steps = sorted({o.facts["steps"] for o in self.outcomes if "steps" in o.facts})
        if len(steps) > 1:
            parts.append(f"**Not all runs were trained equally long:** {', '.join(show(s, 0) for s in steps)} steps.")
        parts += ["## Every run", self.every_run()]
        if self.missing:
            missing = for_markdown(", ".join(self.missing))
            parts.append(f"Not there, or made otherwise than they would be now: {missing}.")
        return "\n\n".join(parts) + "\n"

    def panels(self) -> list[Panel]:
        """The panels of the picture: one for each metric, with a dot for each seed."""
        return [
            Panel(
                LABELS.get(metric, metric),
                self.summary[metric],
                {name: [o.metrics.get(metric, math.nan) for o in runs] for name, runs in self.of.items()},
                self.chance.get(metric),
            )
            for metric in self.metrics
        ]

    def write(self, folder: Path) -> None:
        """Print the tables of means, then write ``compare.md``, ``.csv``, ``.json``, the picture and ``compare-paired.csv``.

        Raises:
            DataError: one of them cannot be written.
        """
        print(f"\n{self.means()}\n")
        if any(map(self._is_part, self.metrics)):
            print(f"{self.means(parts=True)}\n")
        replace_text(folder / "compare.md", self.page())
        every = [[o.variant, o.seed, *figure] for o in self.outcomes for figure in (o.metrics | o.facts).items()]
        replace_text(folder / "compare.csv", csv_rows([["variant", "seed", "metric", "value"], *every]))
        rows = [[m, v, *asdict(one).values()] for m, by in self.paired.items() for v, one in by.items()]
        names = ["metric", "variant", *(field.name for field in fields(Paired))]
        replace_text(folder / "compare-paired.csv", csv_rows([names, *rows]))
        content = {
            "title": self.title,
            "notes": self.notes,
            "chance": self.chance,
            "summary": {m: {v: asdict(s) for v, s in by_variant.items()} for m, by_variant in self.summary.items()},
            "against": self.against,
            "paired": {m: {v: asdict(one) for v, one in by_variant.items()} for m, by_variant in self.paired.items()},
            "runs": [
                {k: v for k, v in asdict(replace(o, tested=None)).items() if k != "tested"} for o in self.outcomes
            ],
            "missing": self.missing,
        }
        replace_text(folder / "compare.json", json.dumps(plain(content), indent=2, allow_nan=False) + "\n")
        for kind in FORMATS:
            draw(self.panels(), list(self.of), folder / f"compare.{kind}")
        print(f"written: {folder / 'compare.md'}, with .csv, .json, .png, .svg and .pdf")
