"""The model card: ``README.md`` of a shared model, with the front matter that the hub reads."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from torch import nn

from diptych.errors import ConfigError, shown
from diptych.escaping import for_markdown
from diptych.files import sha256
from diptych.head import AlignmentHead
from diptych.metrics.bootstrap import Metric
from diptych.plain import read_yaml
from diptych.results.record import read_results
from diptych.sharing.folder import without_places
from diptych.towers.image import TimmImage
from diptych.version import __version__

if TYPE_CHECKING:
    from diptych.sharing.shareable import Shareable

__all__ = ["base_models", "model_card"]

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
_MOST = 80
"""With more figures than these, those of single findings stay in ``results.json``."""


def base_models(origin: Mapping[str, Any], timm: bool = False) -> list[str]:
    """Repositories of the hub whose weights a tower began with. None where it began at random or from a file.

    >>> base_models({"name": "resnet50", "weights": "a1_in1k"}, timm=True)
    ['timm/resnet50.a1_in1k']
    >>> base_models({"name": "owner/bert", "weights": "owner/bert@0123abc"})
    ['owner/bert']

    Args:
        origin: of the tower, as in ``results.json``.
        timm: whether it is a backbone of timm.
    """
    if isinstance(before := origin.get("before"), Mapping):
        return base_models(before, timm)  # it went on from a run, which began with them
    weights, name = str(origin.get("weights", "random")), str(origin.get("name", ""))
    if weights == "random" or "sha256" in origin:
        return []
    if name.startswith("hf-hub:"):
        names = [name.removeprefix("hf-hub:")]
    elif timm:
        names = [weights if "/" in weights else f"timm/{name.partition('.')[0]}.{weights}"]
    else:
        names = [weights.partition("@")[0]]
    return [name for name in names if _REPOSITORY.fullmatch(name)]


def _of_timm(tower: nn.Module) -> bool:
    return any(isinstance(part, TimmImage) for part in tower.modules())  # LoraImage and FusedImage hold one


def model_card(model: Shareable, licence: str | None = None) -> str:
    """The card of a model, in Markdown.

    The training data are what the run's ``config.yaml`` says, and the figures those of its ``results.json``, where they are
    of this very checkpoint.

    Args:
        model: the model.
        licence: the hub's name of a licence, as ``apache-2.0`` or ``cc-by-nc-4.0``. None leaves it open.

    Raises:
        ConfigError: the licence is no such name, or a file of the run is damaged.
    """
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise ConfigError(f"licence is {shown(licence)}; give the hub's name of one, as apache-2.0 or cc-by-nc-4.0")
    module = model.module
    head, towers = type(module.head), {"image": module.encoder.image, "text": module.encoder.text}
    bases = [base for tower in towers.values() for base in base_models(tower.origin, _of_timm(tower))]
    front: dict[str, Any] = {
        "license": licence or "unknown",
        "library_name": "diptych",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["diptych", "medical", "radiology", "chest-x-ray", "vision-language", "contrastive"],
    }
    if bases:
        front["base_model"] = list(dict.fromkeys(bases))
    run = _run_of(model.file)
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
        f"# {for_markdown(head.__name__)} on chest radiographs and reports",
        f"A dual encoder of radiographs and reports, trained with the head `{head.__name__}` of diptych {__version__}.",
        "**Not for clinical use.** It is for research. It was not validated for the care of patients.",
        *_USES,
        *_use(model),
        *_parts(model, towers),
        *_data(run),
        *_figures(run, model.file),
        _LIMITS,
        *_licence(licence, bases),
        *_cite(head),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


_USES = (
    "## Intended use",
    "Research on representations of chest radiographs and reports: retrieval, zero-shot classification, grounding, and as a "
    "beginning of other models. Users know radiographs, and test the model on their own data.",
    "## Out of scope",
    "- Diagnosis, triage, or any decision about a patient.\n"
    "- Pictures that are no chest radiographs of the kind in the training data.\n"
    "- Finding out who a patient is, or whose report was trained on.",
)
_LIMITS = """## Limits

Nobody has tried:

- Data other than the test set above: other hospitals, devices, views, ages and languages.
- Whether the model works alike for women and men, young and old, unless a figure above says so.
- Whether reports can be told from the weights. The vocabulary is in `tokenizer.json`.

A score ranks pairs. It is no probability, and its threshold is that of one data set."""


def _use(model: Shareable) -> Iterable[str]:
    yield "## How to use"
    yield (
        "```python\nimport diptych\n\n"
        'model = diptych.from_pretrained("PATH or OWNER/NAME")\n'
        'scores = model.similarity(["a.png"], ["There is a left pleural effusion.", "No pleural effusion."])\n```'
    )
    yield (
        "The weights are safetensors. Loading runs no code of this folder. A picture is made square, "
        f"{model.image_size} x {model.image_size} pixels, with one channel. `config.json` has its normalisation."
    )


def _parts(model: Shareable, towers: Mapping[str, Any]) -> Iterable[str]:
    head = type(model.module.head)
    yield "## Model"
    rows = [("head", head.__name__, head.paper or "not said")]
    for panel, tower in towers.items():
        origin = without_places(tower.origin)
        began = str(origin.get("weights", origin.get("peer", "not said")))
        rows.append((f"{panel} tower", f"{type(tower).__name__} {origin.get('name', '')}".strip(), f"began as {began}"))
    number = sum(parameter.numel() for parameter in model.module.parameters())
    lines = ["| part | what | source |", "|---|---|---|"]
    lines += [f"| {' | '.join(for_markdown(cell) for cell in row)} |" for row in rows]
    yield "\n".join(lines)
    yield f"{number:,} parameters."


def _data(run: Path | None) -> Iterable[str]:
    yield "## Training data"
    recipe = None if run is None else _recipe(run / "config.yaml")
    if recipe is None:
        yield "Not said: there was no `config.yaml` beside the checkpoint."
        return
    yield "As the run's `config.yaml` says. Folders are left out."
    yield _block({"data": _last_parts(recipe.get("data"))})
    training = {key: value for key, value in recipe.items() if key in ("trainer", "seed_everything")}
    optimiser = {
        key: value
        for key, value in (recipe.get("model") or {}).items()
        if key not in ("image", "text", "head", "evaluators")
    }
    yield "How it was trained:"
    yield _block(without_places({**training, "model": optimiser}))


def _figures(run: Path | None, checkpoint: Path | None) -> Iterable[str]:
    yield "## Figures"
    file = None if run is None else run / "results.json"
    if file is None or checkpoint is None or not file.is_file():
        yield "None: this model was not tested, or its `results.json` was not beside it."
        return
    results = read_results(file)
    tested = results.get("checkpoint")
    if not isinstance(tested, dict) or tested.get("sha256") != sha256(checkpoint):
        yield "None: the run's `results.json` is of another checkpoint."
        return
    metrics: dict[str, Metric] = results["metrics"]
    shown_here = {
        name: metric
        for name, metric in metrics.items()
        if len(metrics) <= _MOST
        or name.endswith(("/macro", "/micro"))
        or f"{name.rpartition('/')[0]}/macro" not in metrics
    }
    yield "On the run's own test set. Intervals are of 95 %, as the protocol says."
    lines = ["| figure | value | interval | n |", "|---|---|---|---|"]
    for name, metric in shown_here.items():
        value, low, high = (_number(figure) for figure in (metric.value, metric.low, metric.high))
        interval = "-" if low == high == "-" else f"{low} to {high}"
        lines.append(f"| {for_markdown(name)} | {value} | {interval} | {metric.n} |")
    yield "\n".join(lines)
    if len(shown_here) < len(metrics):
        yield f"{len(metrics) - len(shown_here)} figures of single findings are not shown."
    yield f"Protocol (split {for_markdown(str(results.get('split_hash')))}, seed {results.get('seed')}):"
    yield _block(without_places(results.get("protocol")))


def _licence(licence: str | None, bases: list[str]) -> Iterable[str]:
    yield "## Licence"
    began = f" It began with {', '.join(f'`{base}`' for base in bases)}, whose licences hold too." if bases else ""
    if licence is None:
        yield f"Not said by those who shared it. Ask them. The licence of the training data may forbid use.{began}"
    else:
        yield f"`{licence}`, as those who shared it say. The licence of the training data may limit use further.{began}"


def _cite(head: type[AlignmentHead[Any]]) -> Iterable[str]:
    yield "## Citing"
    source = f" The head is of: {for_markdown(head.paper)}." if head.paper else ""
    yield f"Cite diptych, those who shared the model, and the data.{source}"


def _run_of(checkpoint: Path | None) -> Path | None:
    """The run's folder of a checkpoint below ``checkpoints/``."""
    return checkpoint.parent.parent if checkpoint is not None and checkpoint.parent.name == "checkpoints" else None


def _recipe(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    content = read_yaml(file.read_text(encoding="utf-8", errors="replace"), str(file))
    return content if isinstance(content, dict) else None


def _last_parts(value: Any) -> Any:
    """The values of a data module, with the last part alone of whatever may be a path."""
    if isinstance(value, Mapping):
        return {key: _last_parts(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_last_parts(item) for item in value]
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if isinstance(value, str) else value


def _block(value: Any) -> str:
    """Plain values as a block of YAML. It is indented, so nothing in it can end the block."""
    text = yaml.safe_dump(json.loads(json.dumps(value, default=str)), sort_keys=False, width=1000)
    return "\n".join(f"    {line}" for line in text.splitlines())


def _number(figure: float) -> str:
    return "-" if math.isnan(figure) else f"{figure:.3f}" if abs(figure) <= 1 else f"{figure:.1f}"
