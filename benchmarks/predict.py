"""What ``diptych predict`` costs over the bare image tower, on the same loader of packed images, and its peak memory.

python benchmarks/predict.py [--images 10000] [--tower resnet50] [--size 224] [--rounds 3] [--batch 64] [--workers 0]

A store of so many packed noise pictures is made, and an untrained model. In each round the tower alone and the command take
turns, in one process. The ratio is that of the medians, of the clock's time and of processor time. Peak memory is that of a
process of its own, for so many images and for twice as many.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import memory
import torch
from packed import sparse_store

from diptych.cli.predict import main
from diptych.data.loading import Loading
from diptych.model.inference import load
from diptych.model.stored import build_module
from diptych_datamodules.folder import PictureFolder


def write_run(run: Path, tower: str, size: int) -> None:
    config = {
        "image": {"class_path": "diptych.towers.image.TimmImage", "init_args": {"name": tower, "pretrained": False}},
        "text": {"class_path": "diptych.towers.text.ScratchText", "init_args": {"width": 64, "depth": 1, "heads": 2}},
        "head": "global",
    }
    torch.manual_seed(0)
    module = build_module(config)
    module.tokenizer.learn(["no effusion", "a nodule"])
    (run / "checkpoints").mkdir(parents=True)
    about = {"config": config, "head": "global", "image_size": size}
    torch.save({"state_dict": module.state_dict(), "diptych": about}, run / "checkpoints" / "best.ckpt")


def store(folder: Path, images: int, size: int) -> Path:
    root = folder / f"packed{images}"
    sparse_store(root, [f"{i // 1000:03d}/{i:06d}.png" for i in range(images)], size, size, noise=True)
    return root


def predict(run: Path, root: Path, out: Path, arguments: argparse.Namespace) -> None:
    options = ["--batch-size", str(arguments.batch), f"--data.loading.workers={arguments.workers}", "--overwrite"]
    main(["--run", str(run), "--folder", str(root), "--out", str(out), *options])


def bare(run: Path, root: Path, arguments: argparse.Namespace) -> None:
    model = load(run)
    loading = Loading(image_size=model.image_size, eval_batch_size=arguments.batch, workers=arguments.workers)
    data = PictureFolder(str(root), loading=loading)
    data.setup("predict")
    with torch.inference_mode():
        for batch in data.test_dataloader():
            model.module.encoder.encode_image(batch.image)


def processor_time() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def peak(run: Path, root: Path, out: Path, arguments: argparse.Namespace) -> float:
    """Peak memory in MiB of the command in a process of its own."""
    words = [str(run), str(root), str(out), json.dumps(vars(arguments))]
    done = subprocess.run([sys.executable, __file__, "child", *words], check=True, capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


def child(words: list[str]) -> None:
    predict(Path(words[0]), Path(words[1]), Path(words[2]), argparse.Namespace(**json.loads(words[3])))
    print(memory.peak() * 1024)


def benchmark() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--tower", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_run(folder / "run", arguments.tower, arguments.size)
        root, twice = (store(folder, n, arguments.size) for n in (arguments.images, 2 * arguments.images))
        times: dict[str, list[tuple[float, float]]] = {"bare": [], "predict": []}
        for _ in range(arguments.rounds):
            for what, taken in times.items():
                begin = time.perf_counter(), processor_time()
                if what == "bare":
                    bare(folder / "run", root, arguments)
                else:
                    predict(folder / "run", root, folder / "e.npy", arguments)
                taken.append((time.perf_counter() - begin[0], processor_time() - begin[1]))
        for i, of in enumerate(("clock", "processor")):
            alone, whole = (statistics.median(pair[i] for pair in times[what]) for what in ("bare", "predict"))
            print(f"{of}: tower alone {alone:.2f} s, predict {whole:.2f} s, ratio {whole / alone:.3f}")
        once, double = (peak(folder / "run", place, folder / "p.npy", arguments) for place in (root, twice))
        print(f"peak memory: {once:.0f} MiB for {arguments.images} images, {double:.0f} MiB for {2 * arguments.images}")


if __name__ == "__main__":
    child(sys.argv[2:]) if sys.argv[1:2] == ["child"] else benchmark()
