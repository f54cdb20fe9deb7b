"""The kinds of predictions: which columns each has, and the figures that follow from them.

A figure function takes columns by name, how patients are drawn again, and settings. It returns figures by name, and facts for
the protocol. Evaluators and tasks call these functions, and ``diptych score`` calls them on columns from a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.metrics import detection
from diptych.metrics import measures as metrics
from diptych.metrics.bootstrap import Draws, Resampling
from diptych.metrics.class_retrieval import class_retrieval
from diptych.metrics.classification import VAL, BinaryValues, Threshold, binary_values, class_values, with_macro
from diptych.metrics.curves import AT
from diptych.metrics.decisions import thresholds_of
from diptych.metrics.delong import mean_spread
from diptych.metrics.few import TOO_FEW, intervals, mean_spreads
from diptych.metrics.localisation import MEASURES, region_figures
from diptych.predictions.base import Array, Boxes, Columns, Predictions, named

__all__ = [
    "KINDS",
    "RESAMPLES",
    "SHARES",
    "Figures",
    "Kind",
    "figures_of",
    "logistic",
    "named_regions",
    "names_of",
    "val_thresholds",
    "with_draws",
]

Settings = Mapping[str, Any]
Figures = tuple[dict[str, Draws], dict[str, Any]]
RESAMPLES = 1000
"""Draws of the bootstrap where nothing else is said."""
_FINDING = r"(?P<finding>.+)"
_FIXED = r"(?:iou|dice)@-?[\d.]+(?:e-?\d+)?"
"""Overlap at a fixed threshold of a map."""
_SHARE = r"(?P<share>[\d.]+(?:e[+-]?\d+)?%|\d+-shot)/seed(?P<seed>\d+)"
SHARES = re.compile(_SHARE)
"""The beginning of the names of a probe's columns: the share of the labels, and the seed."""


def names_of(columns: Columns, start: str) -> list[str]:
    """The names after ``start/`` of columns, in order.

    >>> names_of({"score/Edema": np.zeros(1), "label/Edema": np.zeros(1)}, "score")
    ['Edema']
    """
    return [name[len(start) + 1 :] for name in columns if name.startswith(f"{start}/")]


def named_regions(names: Sequence[str], table: Array, measures: Sequence[str] = MEASURES) -> dict[str, Array]:
    """The columns of the kind ``regions``.

    Args:
        names: of the ``L`` findings.
        table: ``[n,L,M+1]``, as :func:`diptych.metrics.localisation.region_figures` takes it.
        measures: names of the ``M`` measures.
    """
    columns: dict[str, Array] = {}
    for m, measure in enumerate((*measures, "area")):
        columns |= named(measure, names, table[..., m])
    return columns


def _table(columns: Columns, start: str, names: Sequence[str]) -> Array:
    """Columns ``start/<name>`` side by side, ``[n,L]``."""
    n = len(next(iter(columns.values()), ()))
    return np.stack([np.asarray(columns[f"{start}/{name}"]) for name in names], axis=1) if names else np.zeros((n, 0))


def _binary(columns: Columns, draw: Resampling, settings: Settings) -> Figures:
    """Scores or probabilities of findings against their labels."""
    of, threshold = "score", settings.get("threshold", "zero")
    if not names_of(columns, of):
        of, threshold = "probability", "half" if threshold == "zero" else threshold
    names = names_of(columns, of)
    known = names_of(columns, "probability")
    values = binary_values(
        names,
        _table(columns, of, names),
        _table(columns, "label", names),
        draw.weights(),
        threshold,
        chosen=settings.get("thresholds"),
        probabilities=_table(columns, "probability", names).astype(np.float64) if set(names) <= set(known) else None,
        group=draw.group,
        at=settings.get("at", AT),
    )
    wanted = settings.get("measures", values.values)
    figures = {name: value for name, value in values.figures().items() if name.partition("/")[0] in wanted}
    return figures, values.facts


def _classes(columns: Columns, draw: Resampling, settings: Settings) -> Figures:
    """Scores of classes, of which each sample has one."""
    names = names_of(columns, "score")
    scores, labels = (_table(columns, start, names) for start in ("score", "label"))
    return class_values(names, scores, labels, draw.weights(), draw.group)


def _seeds(columns: Columns, draw: Resampling, settings: Settings) -> Figures:
    """Means over the seeds of each share of the labels. Scores are logits, so that they give probabilities."""
    names, weights = names_of(columns, "label"), draw.weights()
    labels = _table(columns, "label", names)
    shares: dict[str, list[str]] = {}
    for match in (re.match(_SHARE, name) for name in columns):
        if match is not None and match[0] not in shares.setdefault(match["share"], []):
            shares[match["share"]].append(match[0])
    figures: dict[str, Draws] = {}
    facts: dict[str, Any] = {"auroc of each seed": {}, "thresholds of each seed": {}, "absent": {}, "excluded": {}}
    for share, seeds in shares.items():
        if settings.get("classes") == "exclusive":
            tables = [_table(columns, f"{seed}/score", names) for seed in seeds]
            each = [class_values(names, table, labels, weights, draw.group) for table in tables]
            for name, one in each[0][0].items():
                values_of = np.mean([found[name].values for found, _ in each], axis=0)
                instead = one.instead if one.instead is None or len(each) == 1 else TOO_FEW  # DeLong's is of one seed
                vary = mean_spreads([found[name] for found, _ in each])
                figures[f"{share}/{name}"] = Draws(values_of, one.n, instead, vary)
            facts["auroc of each seed"][share] = [float(found["auroc/macro"].values[0]) for found, _ in each]
            facts |= {key: each[0][1][key] for key in ("absent", "excluded")}
            continue
        values = []
        for seed in seeds:
            logits = _table(columns, f"{seed}/score", names)
            values.append(
                binary_values(
                    names,
                    logits,
                    labels,
                    weights,
                    settings.get("threshold", "zero"),
                    chosen=settings.get("thresholds", {}).get(seed),
                    probabilities=logistic(logits.astype(np.float64)),
                    group=draw.group,
                    at=settings.get("at", AT),
                )
            )
        every = [one.values for one in values]
        of_all = {
            measure: {
                name: np.mean([of_seed[measure][name] for of_seed in every], axis=0)
                for name in by_name
                if all(name in of_seed.get(measure, ()) for of_seed in every)
            }
            for measure, by_name in every[0].items()
        }
        of_all = {measure: by_name for measure, by_name in of_all.items() if by_name or measure == "auroc"}
        spreads = {name: mean_spread([one.spreads[name] for one in values]) for name in _common(values)}
        means = with_macro(of_all, values[0].counts, values[0].known, intervals(spreads, of_all), spreads)
        figures |= {f"{share}/{name}": value for name, value in means.items()}
        facts["auroc of each seed"][share] = [float(v.figures()["auroc/macro"].values[0]) for v in values]
        facts["thresholds of each seed"][share] = [one.facts["thresholds"] for one in values]
        facts |= {key: values[0].facts[key] for key in ("threshold", "absent", "excluded")}
    return figures, facts


def val_thresholds(kept: Predictions, threshold: Threshold) -> dict[str, Any]:
    """The thresholds that are best on predictions of ``val``, as the settings ``thresholds`` of a test on them has them.

    Args:
        kept: of the kind ``binary``, or ``seeds``, where each share and seed has its own.
        threshold: one of :data:`~diptych.metrics.classification.VAL`.
    """
    starts = ["score" if names_of(kept.columns, "score") else "probability"]
    if kept.kind == "seeds":
        starts = list(dict.fromkeys(f"{match[0]}/score" for name in kept.columns if (match := SHARES.match(name))))
    found = {}
    for start in starts:
        names = names_of(kept.columns, start)
        scores, labels = (_table(kept.columns, of, names) for of in (start, "label"))
        found[start.removesuffix("/score")] = thresholds_of(names, scores, labels, VAL[threshold])
    return found if kept.kind == "seeds" else found[starts[0].removesuffix("/score")]


def _common(values: Sequence[BinaryValues]) -> list[str]:
    return [name for name in values[0].spreads if all(name in one.spreads for one in values)]


def logistic(logits: Array) -> Array:
    """Probabilities of logits of any shape.

    >>> logistic(np.array([0.0, -800.0])).tolist()
    [0.5, 0.0]
    """
    return np.exp(-np.logaddexp(0, -logits))


def _retrieval(columns: Columns, draw: Resampling, settings: Settings) -> Figures:
    """Ranks of the right text for each image, and of the best right image for each text, at the text's first image."""
    weights, of_texts = draw.weights(), np.asarray(columns["text_rank"])
    first = np.flatnonzero(~np.isnan(of_texts))
    sides = {
        "image_to_text": (np.asarray(columns["image_rank"]), weights),
        "text_to_image": (of_texts[first], weights[:, first]),
    }
    ks, figures = settings.get("ks", (1, 5, 10)), {}
    recalls: dict[str, list[Array]] = {f"r@{k}": [] for k in ks}
    for side, (ranks, own) in sides.items():
        for k in ks:
            recalls[f"r@{k}"].append(metrics.recall_at(ranks, k, own))
            figures[f"{side}/r@{k}"] = Draws(recalls[f"r@{k}"][-1], len(ranks))
        figures[f"{side}/median_rank"] = Draws(metrics.median_rank(ranks, own), len(ranks))
    means = {name: Draws(np.mean(both, axis=0), len(of_texts)) for name, both in recalls.items()}
    return figures | means, {"images": len(of_texts), "texts": len(first)}


def _overlap(columns: Columns, draw: Resampling, settings: Settings) -> Figures:
    """Dice and IoU of each image, over all of them and over those with a mask."""
    positive, weights = np.asarray(columns["pixels"]) != 0, draw.weights()
    figures = {}
    for name in ("dice", "iou"):
        for part, rows in (("all", np.ones_like(positive)), ("positive", positive)):
            values = metrics.mean(np.asarray(columns[name])[rows], weights[:, rows])
            figures[f"{name}/{part}"] = Draws(values, int(rows.sum()))
    return figures, {"images": len(positive), "positive": int(positive.sum())}


def _episodes(columns: Columns, draw: Resampling, settings: Settings) -> Figures:
    """Dice, IoU and AUROC of queries, each a mean over episodes."""
    query = np.asarray(columns["query"]) != 0
    weights, figures = draw.weights(query), {}
    for shots in dict.fromkeys(name.partition("/")[0] for name in columns if "-shot/" in name):
        for measure in ("dice", "iou", "auroc"):
            of = [np.asarray(v) for name, v in columns.items() if re.fullmatch(rf"{shots}/episode\d+/{measure}", name)]
            means = metrics.mean(np.stack(of, axis=1)[query].mean(axis=1), weights)
            figures[f"{shots}/{measure}"] = Draws(means, int(query.sum()))
    return figures, {"images": int(query.sum())}


def _boxes(columns: Columns, draw: Resampling, settings: Settings) -> Figures:
    """Predicted boxes against true ones."""
    predicted, truth = columns["boxes"], columns["truth"]
    assert isinstance(predicted, Boxes)
    assert isinstance(truth, Boxes)
    names = truth.findings
    shown = [np.zeros((0, 6)) if row is None else row for row in predicted.rows]
    matches = detection.match(shown, [np.zeros((0, 5)) if row is None else row for row in truth.rows], len(names))
    broken = any(row is None for row in predicted.rows)
    figures = detection.box_figures(matches, names, draw.weights(), settings.get("confidence"), broken)
    counts = dict(zip(names, matches.truths.sum(axis=0).tolist(), strict=True))
    return figures, {"images": len(shown), "boxes": counts}


def _reports(columns: Columns, draw: Resampling, settings: Settings) -> Figures:
    """Written reports against their references, by words and by what a labeller read in both."""
    from diptych.metrics import generated_text as nlg
    from diptych.metrics.clinical import clinical
    from diptych.reports.labeller import FINDINGS

    weights, n = draw.weights(), len(columns["hypothesis"])
    written, expected = ([str(text) for text in columns[name]] for name in ("hypothesis", "reference"))  # type: ignore[union-attr]  # texts
    text = nlg.scores(written, expected, weights, blanks=settings.get("words") == "blanks")
    figures = {name: Draws(values, n) for name, values in text.items()}
    for name in names_of(columns, "radeval"):
        figures[f"radeval/{name}"] = Draws(metrics.mean(np.asarray(columns[f"radeval/{name}"]), weights), n)
    generated, reference = (_table(columns, f"{side}_label", FINDINGS) for side in ("hypothesis", "reference"))
    of_findings, facts = clinical(generated, reference, weights, settings.get("uncertain", False))
    figures |= {f"clinical/{name}": value for name, value in of_findings.items()}
    if not np.isfinite(np.asarray(columns.get("log_likelihood", 0.0))).all():
        # A diverged model writes something too, which is often read as "No Finding".
        figures = {name: Draws(np.full_like(draws.values, np.nan), draws.n) for name, draws in figures.items()}
    return figures, {"clinical": facts}


def _regions(columns: Columns, draw: Resampling, settings: Settings) -> Figures:
    """How well maps point at the regions of findings."""
    names = names_of(columns, "area")
    fixed = dict.fromkeys(match[0] for match in (re.match(_FIXED, name) for name in columns) if match)
    measures = [name for name in (*MEASURES, *fixed, "entropy") if names_of(columns, name)]
    table = np.stack([_table(columns, measure, names) for measure in (*measures, "area")], axis=2)  # [n,L,M+1]
    return region_figures(table, names, draw.weights(), measures)


@dataclass(frozen=True)
class Kind:
    """How the columns of a kind are called, and what follows from them."""

    columns: Mapping[str, str]
    """The type of each column, by a pattern of its name. Types are those of :mod:`diptych.predictions.reading`."""
    figures: Callable[[Columns, Resampling, Settings], Figures]
    signs: str
    """A pattern. A column whose name fits it shows that a file without settings holds this kind."""
    needs: Sequence[str] = ()
    """Columns that must be there. ``{finding}`` stands for each finding of the columns of ``signs``."""
    given: str = ""
    """A pattern of the columns that are of the data, not of a model."""
    measured: bool = False
    """Whether these are measured on each model's own input. Those of two models then agree in which cells are empty alone."""


KINDS: dict[str, Kind] = {
    "seeds": Kind(
        {f"{_SHARE}/score/{_FINDING}": "number", f"label/{_FINDING}": "label"},
        _seeds,
        f"{_SHARE}/score/{_FINDING}",
        ["label/{finding}"],
        "label/.+",
    ),
    "episodes": Kind(
        {r"\d+-shot/episode\d+/(dice|iou|auroc)": "number", "query": "flag"},
        _episodes,
        r"\d+-shot/episode\d+/(dice|iou|auroc)",
        ["query"],
        "query",
    ),
    "retrieval": Kind(
        {"image_rank": "rank", "text_rank": "rank or empty", "top10": "ids"},
        _retrieval,
        "image_rank|text_rank",
        ["image_rank", "text_rank"],
    ),
    "overlap": Kind(
        {"dice|iou": "number", "pixels": "count"}, _overlap, "dice|iou", ["dice", "iou", "pixels"], "pixels"
    ),
    "boxes": Kind({"boxes": "boxes", "truth": "truth"}, _boxes, "boxes", ["boxes", "truth"], "truth"),
    "reports": Kind(
        {
            "hypothesis|reference": "text",
            "log_likelihood": "number",
            "radeval/[a-z0-9_]+": "number",
            f"(hypothesis|reference)_label/{_FINDING}": "label",
        },
        _reports,
        "hypothesis",
        ["hypothesis", "reference"],
        "reference|reference_label/.+",
    ),
    "class_retrieval": Kind(
        {"class": "text", r"(image_to_text|text_to_image)/(p|hit)@\d+": "number", r"prompt/\d+/.+": "number"},
        class_retrieval,
        r"image_to_text/(p|hit)@\d+",
        given="class",
    ),
    "regions": Kind(
        {f"(pointing|cnr|miou|dice|auroc|entropy|area|{_FIXED})/{_FINDING}": "number"},
        _regions,
        f"pointing/{_FINDING}",
        [f"{name}/{{finding}}" for name in (*MEASURES, "area")],
        "area/.+",
        measured=True,  # the share of the input that a region takes, which is counted in pixels
    ),
    "binary": Kind(
        {f"score/{_FINDING}": "number", f"probability/{_FINDING}": "probability", f"label/{_FINDING}": "label"},
        _binary,
        f"(score|probability)/{_FINDING}",
        ["label/{finding}"],
        "label/.+",
    ),
    "classes": Kind(
        {f"(score|probability)/{_FINDING}": "number", f"label/{_FINDING}": "label"},
        _classes,
        f"score/{_FINDING}",
        ["label/{finding}"],
        "label/.+",
    ),
}
"""The kinds by name. Where a name's columns fit several and no settings say which, the first counts."""


def figures_of(
    kind: str, columns: Columns, draw: Resampling, settings: Settings
) -> tuple[dict[str, Draws], dict[str, Any]]:
    """The figures of predictions by name, and facts for the protocol.

    Args:
        kind: a name of :data:`KINDS`.
        columns: by name, as ``score/Edema``.
        draw: how the patients are drawn again.
        settings: what else the figures depend on.
    """
    return KINDS[kind].figures(columns, draw, settings)


def with_draws(kept: Predictions, group: Array, resamples: int | None = None, seed: int | None = None) -> Figures:
    """Figures of predictions by name, with draws of the patients ``group`` ``[n]``, and facts for the protocol.

    Args:
        kept: predictions of samples.
        group: the patients of these samples.
        resamples: draws of the bootstrap. None takes those of the settings, or else :data:`RESAMPLES`.
        seed: of the draws. None takes that of the settings, or else 0.
    """
    number = kept.settings.get("resamples", RESAMPLES) if resamples is None else resamples
    draw = Resampling(group, number, kept.settings.get("seed", 0) if seed is None else seed)
    return figures_of(kept.kind, kept.columns, draw, kept.settings)
