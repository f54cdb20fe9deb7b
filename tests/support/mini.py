"""Small real inputs for the tests: a table of pictures with reports, and the smallest model that trains on it."""

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import warm
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "experiments"
FINDINGS = ["Effusion", "Nodule"]

# The smallest towers, as command-line options and as constructor arguments.
IMAGE = {"name": "resnet10t", "pretrained": False, "model_args": {"channels": [8, 8, 16, 16], "stem_width": 8}}
TEXT = {"width": 32, "depth": 1, "heads": 2, "vocabulary": 256, "max_tokens": 48}


def write_pairs(folder: Path, n: int = 24, size: int = 32, seed: int = 0) -> Path:
    """``n`` pictures of distinct patients whose bright corner the report names; returns the table."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text", "patient", "split", *FINDINGS])
        for i in range(n):
            picture = rng.integers(0, 120, (size, size)).astype(np.uint8)
            effusion, nodule = int(rng.random() < 0.5), int(rng.random() < 0.5)
            if effusion:
                picture[size // 2 :, : size // 2] += 100
            if nodule:
                picture[4:12, size - 12 : size - 4] += 120
            Image.fromarray(picture).save(folder / f"{i:03d}.png")
            text = (
                f"There is {'an' if effusion else 'no'} effusion. There is {'a' if nodule else 'no'} nodule. Case {i}."
            )
            split = "train" if i < n * 2 // 3 else ("val" if i < n * 5 // 6 else "test")
            writer.writerow([f"{i:03d}.png", text, f"p{i}", split, effusion, nodule])
    return folder / "table.csv"


def write_masks(folder, n=42, size=32):
    """Pictures with one bright rectangle or none, their masks, and the table; two pictures a patient."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "mask", "patient", "split"])
        for i in range(n):
            picture, mask = rng.integers(0, 90, (size, size)).astype(np.uint8), np.zeros((size, size), bool)
            if i % 4:
                y, x, h, w = rng.integers((2, 2, 9, 9), (12, 12, 18, 18))
                mask[y : y + h, x : x + w] = True
                picture[mask] += 150
            Image.fromarray(picture).save(folder / f"{i:02d}.png")
            Image.fromarray(mask if i % 2 else mask.astype(np.uint8)).save(folder / f"{i:02d}_mask.png")
            split = "train" if i < n - 17 else ("val" if i < n - 11 else "test")
            writer.writerow([f"{i:02d}.png", f"{i:02d}_mask.png", f"{split}{i // 2}", split])
    return folder / "table.csv"


TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
}


DDP = {"class_path": "DDPStrategy"}


def write_recipe(path: Path, model: tuple[str, dict], data: tuple[str, dict], **trainer: object) -> str:
    """A YAML of a downstream task; ``model`` and ``data`` are a class and its arguments."""
    import yaml

    named = {
        part: {"class_path": name, "init_args": args} for part, (name, args) in {"model": model, "data": data}.items()
    }
    path.write_text(yaml.safe_dump({"seed_everything": 1, "trainer": {**TRAINER, **trainer}, **named}))
    return str(path)


def config(table: Path, *, head: str = "global", epochs: int = 2, **loading: object) -> str:
    """A YAML that trains the smallest model on such a table."""
    import yaml

    options = {"image_size": 32, "batch_size": 4, "eval_batch_size": 3, "workers": 0, **loading}
    columns = {"patient": "patient", "split": "split", "labels": FINDINGS}
    return yaml.safe_dump(
        {
            "seed_everything": 1,
            "trainer": {"max_epochs": epochs, **TRAINER},
            "model": {
                "image": {"class_path": "TimmImage", "init_args": IMAGE},
                "text": {"class_path": "ScratchText", "init_args": TEXT},
                "head": head,
                "lr": 1e-3,
            },
            "data": {
                "class_path": "tabular",
                "init_args": {"table": str(table), "columns": columns, "loading": options},
            },
            "early_stopping": {"monitor": "val/retrieval/r@5", "mode": "max", "patience": 100},
            "figures": {"pairs": 0},
        }
    )


def diptych(
    *arguments: str, cwd: Path | None = None, timeout: float = 240, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, as a user would; but a process that has imported everything."""
    return warm.Command(arguments, cwd or Path.cwd(), own_environment() | env).finish(timeout)


def script(*arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run the installed script itself, with all its imports."""
    words = [str(warm.SCRIPT), *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=timeout, env=own_environment(), check=False)


def own_environment() -> dict[str, str]:
    """The variables of a command: one thread, and the modules that are imported here."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def installed(package: str, path: str) -> Path:
    """A file inside an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed; `make install` does it")
    found = Path(next(iter(spec.submodule_search_locations))) / path
    if not found.exists():
        pytest.skip(f"this {package} has no {path}")
    return found
