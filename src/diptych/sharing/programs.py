"""Towers and score as programs that need no diptych: of ``torch.export``, or ONNX for onnxruntime.

A program is written only if it gives what PyTorch gives, for batches and reports of other sizes than those that it was
made with.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from keyword import iskeyword
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from diptych.errors import ConfigError, DiptychError
from diptych.escaping import one_line
from diptych.files import replace_text
from diptych.sharing.folder import make_room
from diptych.sharing.panels import TEXT_INPUTS, ImagePanel, ScorePanel, TextPanel, leaves, text_inputs
from diptych.sharing.tokenizer_files import write_tokenizer
from diptych.version import __version__

if TYPE_CHECKING:
    from diptych.sharing.shareable import Shareable

__all__ = ["Kind", "write_programs"]

Kind = Literal["onnx", "torch"]
"""``onnx`` are files for onnxruntime, ``torch`` are files that ``torch.export.load`` reads."""

TOLERANCE = 1e-5
"""Largest difference to PyTorch, over the largest value of an output or over 1."""
_REPORTS = (
    "There is a left pleural effusion. No pneumothorax is seen, and the heart is of normal size.",
    "No effusion.",
    "The heart is large. There is an opacity in the right lower zone. No nodule. No fracture of the ribs is seen.",
    "The lungs are clear. There is no effusion.",
    "Normal.",
)
"""What programs are made and checked with. Their vocabulary does not matter."""

Values = dict[str, Tensor]


@dataclass(frozen=True)
class _Panel:
    """A module with the inputs that its program is made with, and others that it is checked with."""

    name: str
    module: nn.Module
    inputs: tuple[Any, ...]
    dynamic: tuple[Any, ...]
    others: list[tuple[Any, ...]]


def write_programs(model: Shareable, folder: Path | str, kind: Kind) -> dict[str, float]:
    """Write ``image``, ``text`` and ``score`` as programs, the tokenizer, and ``programs.json``, which describes them.

    Args:
        model: what is exported.
        folder: a new one.
        kind: of programs.

    Returns:
        For each program the largest difference to PyTorch, over the largest value of an output or over 1.

    Raises:
        ConfigError: a tower or the head cannot be exported, the program differs by more than 1e-5, or packages are missing.
    """
    if kind == "onnx":
        _need_onnx()
    folder = make_room(folder)
    device = next(model.module.parameters()).device
    differences: dict[str, float] = {}
    described: dict[str, Any] = {}
    model.module.cpu()  # so that the programs hold no device
    try:
        with torch.no_grad():
            for panel in _panels(model):
                file = folder / f"{panel.name}.{'onnx' if kind == 'onnx' else 'pt2'}"
                run, described[panel.name] = _write(panel, file, kind)
                differences[panel.name] = _furthest(panel, run, file)
    except BaseException:
        for file in folder.iterdir():  # which was empty
            file.unlink()
        raise
    finally:
        model.module.to(device)
    write_tokenizer(model.module.tokenizer, folder)
    content = {
        "diptych_version": __version__,
        "head": type(model.module.head).__name__,
        "image_size": model.image_size,
        "intensity": model.intensity.plain(),
        "programs": described,
        "largest_difference_to_pytorch": differences,
    }
    replace_text(folder / "programs.json", json.dumps(content, indent=2) + "\n")
    return differences


def _panels(model: Shareable) -> Iterator[_Panel]:
    module, size = model.module, model.image_size
    head = module.head.eval()
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.randint(0, 256, (n, 1, size, size), dtype=torch.uint8, generator=generator) for n in (2, 1, 5)]
    reports = [module.tokenizer(list(part)) for part in (_REPORTS[:3], _REPORTS[1:2], _REPORTS)]
    # Tensors of their own: from a view torch.export takes facts of its base, and the program refuses what is no such view.
    texts = [tuple(x.clone() for x in text_inputs(report).values()) for report in reports]
    batch = torch.export.Dim.DYNAMIC
    yield _Panel(
        "image", ImagePanel(module.encoder.image, head), (pictures[0],), ({0: batch},), [(x,) for x in pictures[1:]]
    )
    dynamic: tuple[Any, ...] = tuple({0: batch, 1: batch} for _ in texts[0])
    yield _Panel("text", TextPanel(module.encoder.text, head), texts[0], dynamic, texts[1:])
    images = [head.embed_image(module.encoder.image(x)) for x in pictures]
    embedded = [head.embed_text(module.encoder.text(report)) for report in reports]
    pairs = [
        tuple({path: leaf.clone() for path, leaf in leaves(side).items()} for side in both)
        for both in zip(images, embedded, strict=True)
    ]
    # Regions are as many as the input has. Words are as many as a report has.
    growing = {
        path: {0: batch, 1: batch} if leaf.ndim > 1 and path.rpartition(".")[2] != "pooled" else {0: batch}
        for path, leaf in pairs[0][1].items()
    }
    yield _Panel(
        "score",
        ScorePanel(head, images[0], embedded[0]),
        pairs[0],
        ({path: {0: batch} for path in pairs[0][0]}, growing),
        pairs[1:],
    )


def _named(inputs: Sequence[Any], names: Sequence[str]) -> Values:
    """The tensors of inputs by their names, in order."""
    flat: list[Tensor] = []
    for value in inputs:
        flat += list(value.values()) if isinstance(value, Mapping) else [value]
    return dict(zip(names, flat, strict=True))


def _names(panel: _Panel) -> list[str]:
    if panel.name == "image":
        return ["picture"]
    if panel.name == "score":
        return [
            f"{side}.{path}" for side, values in zip(("image", "text"), panel.inputs, strict=True) for path in values
        ]
    return list(TEXT_INPUTS)


def _write(panel: _Panel, file: Path, kind: Kind) -> tuple[Callable[[tuple[Any, ...]], Values], dict[str, Any]]:
    """Write one program. Returns what runs it, and its description."""
    names = _names(panel)
    parts = {part for name, _ in panel.module.named_modules() for part in name.split(".")}
    if words := sorted(filter(iskeyword, parts)):
        raise ConfigError(
            f"the {panel.name} program has a module named '{words[0]}', a word of Python, with which torch.export writes "
            "code that cannot run; share the model with --to hub instead"
        )
    with _refusing(panel):
        program = torch.export.export(panel.module, panel.inputs, dynamic_shapes=panel.dynamic, strict=False)
    outputs = list(panel.module(*panel.inputs))
    described = {"file": file.name, "inputs": names, "outputs": outputs}
    if kind == "torch":
        with _refusing(panel):
            torch.export.save(program, file)
            again = torch.export.load(file).module()
        return lambda inputs: again(*inputs), described
    with _refusing(panel):
        made: Any = torch.onnx.export(program, dynamo=True, input_names=names, output_names=outputs, verbose=False)
        for value in list(made.model.graph.inputs):
            if not value.uses():  # what this head does not read
                made.model.graph.inputs.remove(value)
        made.save(file)
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    described["inputs"] = [value.name for value in session.get_inputs()]

    def run(inputs: tuple[Any, ...]) -> Values:
        named = _named(inputs, names)
        given = {name: named[name].numpy() for name in described["inputs"]}
        return dict(zip(outputs, map(torch.from_numpy, session.run(outputs, given)), strict=True))

    return run, described


def _furthest(panel: _Panel, run: Callable[[tuple[Any, ...]], Values], file: Path) -> float:
    """The largest difference of a program to its module.

    Raises:
        ConfigError: it is too large.
    """
    furthest = 0.0
    for inputs in (panel.inputs, *panel.others):
        own = panel.module(*inputs)
        with _refusing(panel):
            made = run(inputs)
        for name, value in own.items():
            if made[name].shape != value.shape:
                furthest = float("inf")
            elif value.numel():
                gap = (made[name].double() - value.double()).abs().max() / value.double().abs().max().clamp_min(1)
                furthest = max(furthest, float(gap))
    if not furthest <= TOLERANCE:
        raise ConfigError(
            f"the exported program {file.name} differs from PyTorch by {furthest:.2g}, more than {TOLERANCE:g}, so it is not "
            "written; share the model with --to hub instead"
        )
    return furthest


@contextmanager
def _refusing(panel: _Panel) -> Iterator[None]:
    """Within it, the exporter is quiet, and its failure becomes one line that names the tower or the head."""
    module: Any = panel.module
    part = (
        type(module.head).__name__
        if panel.name == "score"
        else f"{type(module.tower).__name__} with {type(module.head).__name__}"
    )
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [log.level for log in loggers]
    for log in loggers:
        log.setLevel(logging.ERROR)
    try:
        yield
    except DiptychError:
        raise
    except Exception as error:  # the exporters fail in many ways
        lines = [one_line(line).strip() for line in str(error).splitlines()]
        reason = next((line for line in reversed(lines) if "Error" in line), next(filter(None, lines), ""))
        raise ConfigError(
            f"the {panel.name} program ({part}) cannot be exported ({type(error).__name__}: {reason[:300]}); share the model "
            "with --to hub instead"
        ) from error
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)


def _need_onnx() -> None:
    try:
        import onnx
        import onnxruntime
        import onnxscript

        del onnx, onnxruntime, onnxscript
    except ImportError as error:
        raise ConfigError(f"ONNX needs packages ({error}); run: pip install 'diptych[onnx]'") from error
