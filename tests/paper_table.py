"""A made-up paper's table, whole but for its size: two heads, three peers, two towers, five data sets.

    python tests/paper_table.py runs/paper --jobs 2

The data sets are phantoms in the releases' layouts. The peers and both towers have random weights of their true shapes, so
their figures are chance. What is shown is the way from models and data to the page of a paper. Each step is a command that
you would call with real data and weights. ``runs/paper/suite.yaml`` is the suite that is made.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent / "support"))
import true_shapes

from diptych.cli import suite
from diptych.cli.children import call, cores, warm
from diptych.errors import DiptychError
from diptych_datamodules.phantoms.layouts.write import write_layout

ROOT = Path(__file__).resolve().parents[1]
EVALUATE = ROOT / "experiments" / "evaluate"
HEADS = ("local_pooling", "pcma")
SIDE = 112
"""Pixels a side of what models see, but for CheXzero. The published sizes are up to seven times as many pixels."""
SHOWN = ("Atelectasis", "Cardiomegaly", "Consolidation", "Pleural Effusion")
LAYOUTS: dict[str, dict[str, Any]] = {
    "chexpert": {"n": 90, "mix": dict.fromkeys(SHOWN, 1.0), "normal": 0.0, "max_findings": 1, "uncertain": 0.0},
    "rsna": {"n": 200},
    "siim": {"n": 220, "normal": 0.1},
    "nih": {
        "n": 90,
        "mix": dict.fromkeys(SHOWN, 1.0),
        "normal": 0.4,
        "max_findings": 4,
        "held_out": 0.9,
    },
    "ms_cxr": {"n": 50},
}
"""The phantoms of each data set. There are as few as leave ten patients with and ten without a finding in each test set.

CheXpert's show one finding each, as its 5x200 asks. Phantoms have no oedema, so four of the five classes have images.
"""
TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def once(path: Path, make: Callable[[Path], object]) -> Path:
    """Make a file or folder, if it is not there. What was left half made is made again."""
    if not path.exists():
        part, start = path.with_name(f"{path.name}.part"), time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        if part.is_dir():
            shutil.rmtree(part)
        make(part)
        part.rename(path)
        print(f"{path} ... made ({time.monotonic() - start:.0f} s)", flush=True)
    return path


@torch.no_grad()
def save(make: Callable[[], dict[str, torch.Tensor]], path: Path) -> None:
    """Save a state dict."""
    torch.save(make(), path)


def four_by_few(root: Path, out: Path, most: int = 10) -> None:
    """List frontal images of CheXpert's ``train.csv`` that show one of the four findings alone, ``most`` of each."""
    count = dict.fromkeys(SHOWN, 0)
    with (root / "CheXpert-v1.0-small" / "train.csv").open(newline="") as file, out.open("w", newline="") as listed:
        writer = csv.writer(listed)
        writer.writerow(["Path"])
        for row in csv.DictReader(file):
            names = [name for name in list(row)[5:] if name != "No Finding"]
            present = [name for name in names if row[name] not in ("", "0.0", "0")]
            if (
                len(present) == 1
                and float(row[present[0]]) == 1
                and row["Frontal/Lateral"] == "Frontal"
                and count.get(present[0], most) < most
            ):
                count[present[0]] += 1
                writer.writerow([row["Path"]])


def layout(name: str, folder: Path) -> None:
    """Write a data set of phantoms."""
    options = dict(LAYOUTS[name])
    write_layout(name, options.pop("n"), folder, seed=7, size=128, **options)


def head(name: str, folder: Path) -> None:
    """Train a head of diptych on phantoms, for seconds."""
    options = {
        "model.head": name,
        "data.train": 160,
        "data.val": 30,
        "data.test": 10,
        "data.loading.workers": 0,
        "data.cache": folder.parent / "phantoms",
        "trainer.max_epochs": 2,
        "figures.pairs": 0,
    }
    words = [f"--{key}={value}" for key, value in options.items()]
    command = ["fit", "-c", str(ROOT / "experiments/pretrain/phantom.yaml"), *words, "--run", str(folder)]
    print("diptych", *command, flush=True)
    call(command, folder.parent / f"{name}.log", f"{name}: diptych fit")


def suite_of(
    data: dict[str, Path],
    models: dict[str, Path],
    peers: dict[str, Path],
    tokenizers: dict[str, Path],
    tower: Path,
    out: Path,
) -> dict[str, Any]:
    """The suite: every row, every test, and the columns that a paper would show."""
    quiet = {f"trainer.{key}": value for key, value in TRAINER.items()} | {"data.loading.workers": 0}
    quiet["data.loading.eval_batch_size"] = 16
    whole = {**quiet, "figures.pairs": 0}

    def test(recipe: str, name: str, title: str, image: bool = False, **options: object) -> dict[str, Any]:
        words = {"data.root": str(data[name]), **{f"data.{key}": value for key, value in options.items()}}
        words |= quiet if image else whole
        return {"config": str(EVALUATE / recipe), "title": title, "image": image, "options": words}

    listed = once(out / "data" / "4x10.csv", lambda path: four_by_few(data["chexpert"], path))
    tests = {
        "chexpert": test("chexpert5x200_zero_shot_retrieval.yaml", "chexpert", "CheXpert 4x10", subset=str(listed)),
        "rsna": test("rsna_zero_shot.yaml", "rsna", "RSNA"),
        "siim": test("siim_zero_shot.yaml", "siim", "SIIM"),
        "nih": test("nih_zero_shot.yaml", "nih", "NIH"),
        "ms_cxr": {**test("ms_cxr_grounding.yaml", "ms_cxr", "MS-CXR"), "models": [*models, "gloria", "mgca"]},
        "nih_probe": test("nih_probe.yaml", "nih", "NIH, probe", image=True),
    }
    rows: dict[str, Any] = {name: {"run": str(path), "title": f"diptych, {name}"} for name, path in models.items()}
    for name, path in peers.items():
        rows[name] = {
            "peer": name,
            "files": [str(path)],
            "tokenizer": str(tokenizers[name]),
            "title": f"{name}, random weights",
            "options": {} if name == "chexzero" else {"data.loading.image_size": SIDE},  # its patches have 32 pixels
        }
    image = {"class_path": "TransformersImage", "init_args": {"name": str(tower)}}
    rows["dinov2"] = {"image": image, "title": "DINOv2-S, random weights", "options": {"data.loading.image_size": SIDE}}
    untrained = {"class_path": "TimmImage", "init_args": {"name": "resnet50", "pretrained": False}}
    rows["random"] = {
        "image": untrained,
        "title": "ResNet-50, random weights",
        "options": {"data.loading.image_size": SIDE},
    }
    columns = [
        {"test": "chexpert", "metric": "zero_shot/accuracy", "title": "accuracy"},
        {"test": "rsna", "metric": "zero_shot/auroc/Pneumonia", "title": "AUROC"},
        {"test": "siim", "metric": "zero_shot/auroc/Pneumothorax", "title": "AUROC"},
        {"test": "nih", "metric": "zero_shot/auroc/macro", "title": "AUROC"},
        {"test": "ms_cxr", "metric": "grounding/pointing/macro", "title": "pointing"},
        {"test": "nih_probe", "metric": "probe/100%/auroc/macro", "title": "AUROC"},
    ]
    return {"models": rows, "tests": tests, "columns": columns, "against": "local_pooling"}


def write_files(out: Path) -> tuple[dict[str, Path], dict[str, Path], dict[str, Path], Path]:
    """Write the data sets, the peers' weights and tokenizers, and a foundation tower."""
    data = {name: once(out / "data" / name, partial(layout, name)) for name in LAYOUTS}
    words = once(out / "peers" / "wordpiece", true_shapes.wordpiece)
    pairs = once(out / "peers" / "byte_pairs", true_shapes.byte_pairs)
    peers = {
        name: once(out / "peers" / f"{name}.pt", lambda path, make=make: save(make, path))
        for name, make in true_shapes.PEERS.items()
    }
    tower = once(out / "peers" / "foundation", true_shapes.foundation)
    return data, peers, {"gloria": words, "mgca": words, "chexzero": pairs}, tower


def main() -> None:
    """Write data and models, and call ``diptych suite``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder of everything that is made")
    parser.add_argument("--jobs", type=int, default=2, help="tests at a time")
    args = parser.parse_args()
    out: Path = args.out
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // args.jobs)))
    start = time.monotonic()
    with warm(), ThreadPoolExecutor(1) as pool:  # files are written while the heads are trained
        files = pool.submit(write_files, out)
        models = {name: once(out / "models" / name, partial(head, name)) for name in HEADS}
        data, peers, tokenizers, tower = files.result()
        content = suite_of(data, models, peers, tokenizers, tower, out)
        (out / "suite.yaml").write_text(yaml.safe_dump(content, sort_keys=False, width=120))
        words = ["-c", str(out / "suite.yaml"), "--run", str(out / "table"), "--jobs", str(args.jobs)]
        print("diptych suite", *words, flush=True)
        suite.main(words)
    print(
        f"{out}/table: suite.md, table.tex (with page.tex), suite.csv, suite.png, after {time.monotonic() - start:.0f} s"
    )


if __name__ == "__main__":
    try:
        main()
    except DiptychError as error:
        sys.exit(f"paper_table: error: {error}")
