"""A made-up paper's table, whole but for its size: two heads, three peers, two towers, five data sets.

    python tests/paper_table.py runs/paper --jobs 2

The data sets are phantoms in the releases' layouts. The peers and both towers have random weights of their true shapes, so
their figures are chance. What is shown is the way from models and data to the page of a paper. Each step is a command that
you would call with real data and weights. ``runs/paper/suite.yaml`` is the suite that is made.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent / "support"))
import true_shapes

from diptych_datamodules.phantoms.layouts.write import write_layout

ROOT = Path(__file__).resolve().parents[1]
EVALUATE = ROOT / "experiments" / "evaluate"
LAYOUTS = {"chexpert": 240, "rsna": 200, "siim": 200, "nih": 120, "ms_cxr": 60}
"""How many phantoms each data set has. CheXpert's are more, for few show one finding alone."""
MIX = {
    "Atelectasis": 1.0,
    "Cardiomegaly": 1.0,
    "Consolidation": 1.0,
    "Pleural Effusion": 1.0,
    "Lung Opacity": 1.0,
    "Pneumothorax": 1.0,
}
FINDINGS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def diptych(*words: str) -> None:
    """Call a command, and end with its exit code if it fails."""
    print("diptych", *words, flush=True)
    if code := subprocess.run([sys.executable, "-m", "diptych", *words], check=False).returncode:
        sys.exit(code)


def once(path: Path, make: Callable[[Path], object]) -> Path:
    """Make a file or folder, if it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)
    return path


@torch.no_grad()
def save(make: Callable[[], dict[str, torch.Tensor]], path: Path) -> None:
    """Save a state dict."""
    torch.save(make(), path)


def five_by_few(root: Path, out: Path, most: int = 12) -> None:
    """List frontal images of CheXpert's ``train.csv`` that show one of the five findings alone, ``most`` of each."""
    count = dict.fromkeys(FINDINGS, 0)
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


def head(name: str, folder: Path, quick: bool) -> Path:
    """Train a head of diptych on phantoms."""
    options = [
        "--data.train",
        "240" if quick else "1200",
        "--data.val",
        "100",
        "--data.test",
        "100",
        "--data.loading.workers",
        "0",
    ]
    options += [
        "--trainer.max_epochs",
        "1" if quick else "5",
        "--figures.pairs",
        "0",
        "--data.cache",
        str(folder.parent / "phantoms"),
    ]
    diptych(
        "fit",
        "-c",
        str(ROOT / "experiments/pretrain/phantom.yaml"),
        "--model.head",
        name,
        *options,
        "--run",
        str(folder),
    )
    return folder


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

    listed = once(out / "data" / "5x12.csv", lambda path: five_by_few(data["chexpert"], path))
    tests = {
        "chexpert": test("chexpert5x200_zero_shot_retrieval.yaml", "chexpert", "CheXpert 5x12", subset=str(listed)),
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
        }
    image = {"class_path": "TransformersImage", "init_args": {"name": str(tower)}}
    rows["dinov2"] = {"image": image, "title": "DINOv2-S, random weights", "options": {"data.loading.image_size": 224}}
    untrained = {"class_path": "TimmImage", "init_args": {"name": "resnet50", "pretrained": False}}
    rows["random"] = {
        "image": untrained,
        "title": "ResNet-50, random weights",
        "options": {"data.loading.image_size": 224},
    }
    columns = [
        {"test": "chexpert", "metric": "zero_shot/accuracy", "title": "accuracy"},
        {"test": "rsna", "metric": "zero_shot/auroc/Pneumonia", "title": "AUROC"},
        {"test": "siim", "metric": "zero_shot/auroc/Pneumothorax", "title": "AUROC"},
        {"test": "nih", "metric": "zero_shot/auroc/macro", "title": "AUROC"},
        {"test": "ms_cxr", "metric": "grounding/pointing", "title": "pointing"},
        {"test": "nih_probe", "metric": "probe/100%/auroc/macro", "title": "AUROC"},
    ]
    return {"models": rows, "tests": tests, "columns": columns, "against": "local_pooling"}


def main() -> None:
    """Write data and models, and call ``diptych suite``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder of everything that is made")
    parser.add_argument("--jobs", type=int, default=2, help="tests at a time")
    parser.add_argument("--quick", action="store_true", help="train the heads for seconds")
    args = parser.parse_args()
    out: Path = args.out
    data = {
        name: once(
            out / "data" / name, lambda path, name=name, n=n: write_layout(name, n, path, seed=7, size=256, mix=MIX)
        )
        for name, n in LAYOUTS.items()
    }
    models = {
        name: once(out / "models" / name, lambda path, name=name: head(name, path, args.quick))
        for name in ("local_pooling", "pcma")
    }
    words = once(out / "peers" / "wordpiece", true_shapes.wordpiece)
    pairs = once(out / "peers" / "byte_pairs", true_shapes.byte_pairs)
    peers = {
        name: once(out / "peers" / f"{name}.pt", lambda path, make=make: save(make, path))
        for name, make in true_shapes.PEERS.items()
    }
    tower = once(out / "peers" / "foundation", true_shapes.foundation)
    tokenizers = {"gloria": words, "mgca": words, "chexzero": pairs}
    suite = suite_of(data, models, peers, tokenizers, tower, out)
    (out / "suite.yaml").write_text(yaml.safe_dump(suite, sort_keys=False, width=120))
    diptych("suite", "-c", str(out / "suite.yaml"), "--run", str(out / "table"), "--jobs", str(args.jobs))
    print(f"the table: {out}/table/suite.md, table.tex (with page.tex), suite.csv, suite.png")


if __name__ == "__main__":
    main()
