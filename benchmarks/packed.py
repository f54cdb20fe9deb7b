"""What a packed data set gains: images a second, memory over epochs, and the start on tables of MIMIC-CXR's size.

python benchmarks/packed.py [speed] [memory] [start] [--images 24] [--epochs 6] [--rows 377110] [--folder DIR]

``speed`` writes radiographs of 2,500 x 2,048 pixels as JPEG, 16-bit PNG and DICOM, and packs them at 224. It loads epochs
with the default augmentation from three places: the originals, the store, and a bare memory map of the same pictures.
These take turns within one run, and ratios are of their medians. ``memory`` prints what processes hold after each epoch.
``start`` writes tables with reports for so many rows and a store of sparse (black) shards. It opens them in a new process
with spawned workers.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from torch.utils.data import DataLoader, Dataset

from diptych.cli.prepare import prepare
from diptych.data.augment import Augment, Augmenter
from diptych.data.loading import Loading, _Collate
from diptych.data.sampling import Draw, TrainingSampler, mix
from diptych.data.tables import Columns
from diptych.files import replace_text
from diptych.radiographs.letterbox import letterbox
from diptych.radiographs.manifest import Manifest
from diptych_datamodules.mimic_cxr import FINDINGS
from diptych_datamodules.tabular import Tabular

SIZE = 224
BATCH = 8


def radiograph(rng: np.random.Generator, height: int = 2500, width: int = 2048) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """A smooth picture with the noise of a detector, 12 bits."""
    coarse = Image.fromarray(rng.random((24, 20)).astype(np.float32))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(smooth * 3500 + rng.normal(0, 24, (height, width)) + 300, 0, 4095).astype(np.uint16)


def write_original(path: Path, pixels: np.ndarray[Any, np.dtype[np.uint16]]) -> None:
    if path.suffix == ".jpg":
        Image.fromarray((pixels >> 4).astype(np.uint8)).save(path, quality=92)
    elif path.suffix == ".png":
        Image.fromarray(pixels << 4).save(path)
    else:
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        meta.MediaStorageSOPInstanceUID = "1.2.3"
        data = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        data.Rows, data.Columns = pixels.shape
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
        data.SamplesPerPixel, data.PixelRepresentation, data.PhotometricInterpretation = 1, 0, "MONOCHROME2"
        data.PixelData = pixels.tobytes()
        data.save_as(path, enforce_file_format=True)


class Bare(Dataset[dict[str, Any]]):
    """The same pictures in one memory map, without names, checks or a table."""

    def __init__(self, path: Path, number: int) -> None:
        self.pictures = np.memmap(path, np.uint8, "r", shape=(number, SIZE, SIZE))
        self.augmenter = Augmenter(Augment())

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        augmented = self.augmenter(self.pictures[draw.index], None, None, mix(0, draw.epoch, draw.index))
        empty = dict.fromkeys(("text", "labels", "boxes", "mask"))
        return {**empty, "image": augmented.image, "draw": draw, "group": draw.index, "id": str(draw.index)}


def read_epoch(loader: Any, epoch: int) -> float:
    """Images a second of processor time. Other work on the machine disturbs it less than the clock's time."""
    loader.batch_sampler.set_epoch(epoch)
    begin, images = time.process_time(), 0
    for batch in loader:
        images += len(batch.image)
    return images / (time.process_time() - begin)


def tabular(folder: Path, table: Path) -> Any:
    loading = Loading(batch_size=BATCH, image_size=SIZE, workers=0)
    columns = Columns(text=[], patient="image", split="split")
    module = Tabular(str(table), root=str(folder), columns=columns, loading=loading)
    module.setup("fit")
    return module.train_dataloader()


def speed(folder: Path, images: int, epochs: int) -> None:
    rates: dict[str, list[float]] = {}
    for suffix in (".jpg", ".png", ".dcm"):
        root, out = folder / f"originals{suffix}", folder / f"packed{suffix}"
        root.mkdir()
        rng = np.random.default_rng(0)
        with (root / "table.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "split"])
            for i in range(images):
                write_original(root / f"{i:04d}{suffix}", radiograph(rng))
                writer.writerow([f"{i:04d}{suffix}", "train"])
        prepare("tabular", root, out, size=SIZE, say=lambda line: None)
        original, packed = (tabular(place, root / "table.csv") for place in (root, out))
        dataset = packed.dataset.dataset
        pictures = [letterbox(dataset.read(i, rng).image, SIZE)[0] for i in range(images)]
        (folder / f"bare{suffix}").write_bytes(np.stack(pictures).tobytes())
        bare = DataLoader(
            Bare(folder / f"bare{suffix}", images),
            batch_sampler=TrainingSampler(images, BATCH, seed=0, rank=0, processes=1),
            collate_fn=_Collate(None, to_max=False),
        )
        for loader in (packed, bare):
            read_epoch(loader, 0)  # imports albumentations
        for epoch in range(1, epochs + 1):
            rates.setdefault(f"originals{suffix}", []).append(read_epoch(original, epoch))
            for _ in range(10):  # an epoch of small pictures is over soon
                rates.setdefault(f"packed{suffix}", []).append(read_epoch(packed, epoch))
                rates.setdefault(f"bare{suffix}", []).append(read_epoch(bare, epoch))
        middle = {name: statistics.median(rates[f"{name}{suffix}"]) for name in ("originals", "packed", "bare")}
        print(
            f"{suffix[1:]}: originals {middle['originals']:.1f}, packed {middle['packed']:.0f}, bare memory map "
            f"{middle['bare']:.0f} images a second; packed is {middle['packed'] / middle['originals']:.0f}x the originals and "
            f"{middle['packed'] / middle['bare']:.2f}x the map",
            flush=True,
        )


def sparse_store(out: Path, names: list[str], height: int, width: int, noise: bool = False) -> None:
    """A whole store of equal pictures: all black in sparse files, or all of one noise."""
    manifest = Manifest("mimic_cxr", "/nowhere", SIZE, 512, len(names), "0" * 16)
    manifest.folder(out).mkdir(parents=True)
    size = height * width
    picture = np.random.default_rng(0).integers(0, 255, size, np.uint8).tobytes() if noise else bytes(size)
    names, crc = sorted(names), zlib.crc32(picture)
    for number in range(manifest.shards):
        members = names[number * 512 : (number + 1) * 512]
        rows = [(name, i * size, height, width, 3056, 2544, crc) for i, name in enumerate(members)]
        body = json.dumps({"unusable": {}, "notes": {}, "rows": rows}, separators=(",", ":")).encode()
        header = {"key": manifest.key, "shard": number, "files": len(rows), "bytes": len(rows) * size, "sha256": ""}
        path = manifest.folder(out) / f"{number:05d}.bin"
        with path.open("wb") as file:
            if noise:
                file.write(picture * len(rows))
            else:
                file.truncate(len(rows) * size)
        replace_text(path.with_suffix(".index"), f"{json.dumps(header | {'crc32': zlib.crc32(body)})}\n{body.decode()}")
    replace_text(out / "packed.json", manifest.text())


def write_mimic(out: Path, rows: int) -> None:
    """Tables and reports of so many images. Five images are three studies, and all reports have one length."""
    rng = np.random.default_rng(0)
    names, header = [], "dicom_id,study_id,subject_id"
    sentence = "The cardiomediastinal silhouette and hilar contours are within normal limits. "
    out.mkdir(parents=True)
    tables: dict[str, list[str]] = {"split": [], "metadata": [], "chexpert": []}
    with zipfile.ZipFile(out / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as reports:
        tables["split"].append(f"{header},split")
        tables["metadata"].append(f"{header},ViewPosition")
        tables["chexpert"].append(f"subject_id,study_id,{','.join(FINDINGS)}")
        study, subject, before = 50_000_000, 10_000_000, ""
        for i in range(rows):
            part = "test" if i < 5_159 * rows // 377_110 else "validate" if i < 8_150 * rows // 377_110 else "train"
            if new := i % 5 in (0, 2, 4) or part != before:
                study, subject = study + 1, subject + (study % 4 == 0 or part != before)
            before = part
            key = "-".join(rng.bytes(4).hex() for _ in range(5))
            place = f"files/p{subject // 1_000_000}/p{subject}/s{study}"
            names.append(f"{place}/{key}.jpg")
            tables["split"].append(f"{key},{study},{subject},{part}")
            tables["metadata"].append(f"{key},{study},{subject},{('PA', 'AP', 'LATERAL')[i % 3]}")
            if new:
                values = rng.choice(["", "1.0", "0.0", "-1.0"], len(FINDINGS), p=[0.8, 0.12, 0.05, 0.03])
                tables["chexpert"].append(f"{subject},{study},{','.join(values)}")
                text = (
                    f" FINAL REPORT\n FINDINGS:  Case {study}. {sentence * 5}\n\n IMPRESSION:  No change of {study}.\n"
                )
                reports.writestr(f"{place}.txt", text)
    for name, lines in tables.items():
        (out / f"mimic-cxr-2.0.0-{name}.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode(), 1))
    sparse_store(out, names, SIZE, 186)


_CHILD = """
import json, sys, time
def rss(pid="self"):
    return next(int(l.split()[1]) for l in open(f"/proc/{pid}/status") if l.startswith("VmRSS")) / 2**20
def main():
    begin = time.perf_counter()
    from diptych_datamodules.mimic_cxr import MimicCxr
    from diptych.data import Loading
    imported, base = time.perf_counter() - begin, rss()
    begin, used = time.perf_counter(), time.process_time()
    loading = Loading(workers=2, start_method="spawn", image_size=224)
    module = MimicCxr(sys.argv[1], views="all", loading=loading)
    module.setup("fit")
    opened, cpu, resident = time.perf_counter() - begin, time.process_time() - used, rss()
    begin = time.perf_counter()
    batches = iter(module.train_dataloader())
    for _ in range(20):
        next(batches)
    first = time.perf_counter() - begin
    import multiprocessing
    workers = [rss(child.pid) for child in multiprocessing.active_children()]
    peak = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) / 2**20
    print(json.dumps(dict(imports=imported, before=base, open=opened, cpu=cpu, resident=resident, peak=peak, first=first,
                          workers=workers, size=sum(map(len, module.datasets.values())))))
if __name__ == "__main__":
    main()
"""


def start(folder: Path, rows: int) -> None:
    out = folder / "mimic"
    write_mimic(out, rows)
    (folder / "child.py").write_text(_CHILD)
    done = subprocess.run(
        [sys.executable, str(folder / "child.py"), str(out)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    costs = json.loads(done.stdout.splitlines()[-1])
    print(
        f"start: {rows:,} rows, {costs['size']:,} samples: imports {costs['imports']:.1f} s and {costs['before']:.2f} GiB; "
        f"then opened in {costs['open']:.1f} s ({costs['cpu']:.1f} s of CPU), {costs['resident']:.2f} GiB resident "
        f"(peak {costs['peak']:.2f}); "
        f"20 batches by 2 spawned workers {costs['first']:.1f} s later, {max(costs['workers']):.2f} GiB each"
    )


def private_mib(pid: int) -> float:
    """MiB that a process shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024


def memory(folder: Path, epochs: int) -> None:
    import multiprocessing

    out, number = folder / "epochs", 8192
    names = [f"{i:05d}.png" for i in range(number)]
    sparse_store(out, names, SIZE, SIZE, noise=True)
    with (out / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "split", "text"])
        writer.writerows([name, "train", f"Report {name}. " * 20] for name in names)
    loading = Loading(batch_size=32, image_size=SIZE, workers=2)
    columns = Columns(patient="image", split="split")
    module = Tabular(str(out / "table.csv"), columns=columns, loading=loading)
    module.setup("fit")
    loader = module.train_dataloader()
    for epoch in range(epochs):
        read_epoch(loader, epoch)
        workers = [private_mib(child.pid) for child in multiprocessing.active_children()]
        print(
            f"memory: after epoch {epoch + 1} of {number} images ({number * SIZE**2 / 2**20:.0f} MiB of pixels): main "
            f"{private_mib(os.getpid()):.0f} MiB, workers {', '.join(f'{used:.0f}' for used in workers)} MiB private",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="*", default=["speed", "memory", "start"])
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rows", type=int, default=377_110)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        if "speed" in options.what:
            speed(folder, options.images, options.epochs)
        if "memory" in options.what:
            memory(folder, options.epochs)
        if "start" in options.what:
            start(folder, options.rows)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
