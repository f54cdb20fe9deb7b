"""The data set keeps to the contract of every data set, on a miniature that is written here."""

import csv
import sys
from pathlib import Path

import numpy as np
import PIL.Image
from mine import MineData

from diptych import Loading, ScratchText
from diptych.testing import check_datamodule


def miniature(root: Path) -> Path:
    """A folder as the data set's, with 24 pictures of 24 patients."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with (root / "table.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "report", "patient", "split"])
        for i in range(24):
            picture = rng.integers(0, 120, (48, 48)).astype(np.uint8)
            side, start = ("left", 30) if i % 2 else ("right", 6)  # the patient's left is at the right of the picture
            picture[12:36, start : start + 12] += 100
            PIL.Image.fromarray(picture).save(root / f"{i:02d}.png")
            split = "train" if i < 16 else "val" if i < 20 else "test"
            table.writerow([f"{i:02d}.png", f"An opacity on the {side}. Case {i}.", f"p{i}", split])
    return root


def test_mine_keeps_the_contract(tmp_path: Path) -> None:
    """Splits by patient, batches with what is promised, two processes, order and reports."""
    tokenizer = ScratchText(width=32, depth=1, heads=2, vocabulary=128, max_tokens=32).tokenizer
    loading = Loading(image_size=32, batch_size=4, eval_batch_size=3, workers=0)
    check_datamodule(MineData(str(miniature(tmp_path / "mine")), tokenizer, loading))


if __name__ == "__main__":
    print(miniature(Path(sys.argv[1])))
