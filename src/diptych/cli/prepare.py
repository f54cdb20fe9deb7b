"""``diptych prepare``: a data set's images read once, scaled down and packed into shards that training reads.

What is there is not made again, so an interrupted run goes on where it was, and any number of jobs may work at once.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from diptych.errors import ConfigError, DataError
from diptych.escaping import csv_rows
from diptych.files import remove_parts, replace_text, replacing
from diptych.plugins import DATAMODULES, find
from diptych.radiographs.intensity import Intensity
from diptych.radiographs.packed import FORMAT, PICTURES, TABLES, TEXTS, Manifest, is_image
from diptych.radiographs.packing import write_shard, write_texts

__all__ = ["Scan", "main", "prepare", "scan", "verify"]

_ARCHIVES = (".zip", ".tgz", ".tar.gz")
"""Taken where the name says that they hold reports."""


@dataclass(frozen=True)
class Scan:
    """What lies below a folder, by its path there, sorted."""

    images: list[tuple[str, int]]
    """With their bytes."""
    tables: list[str]
    """Everything that a datamodule may read beside images."""
    others: list[str]
    texts: list[tuple[str, int, int]]
    """Small text files, with their bytes and the time of their last change."""

    def key(self, size: int, per_shard: int, intensity: Intensity) -> str:
        """Hash of all that decides the store's bytes."""
        digest = hashlib.sha256(repr((FORMAT, PICTURES, size, per_shard, intensity)).encode())
        for name, number in self.images:
            digest.update(f"{name}\0{number}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]


def scan(root: Path, small_texts: str = "") -> Scan:
    """List a folder, links followed, each file looked at once.

    Args:
        root: the folder.
        small_texts: pattern of the paths of files that are packed into one; none, if empty.

    Raises:
        DataError: it is not there, holds no image, or cannot be listed.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the data set's as --root")
    found = Scan([], [], [], [])
    packs = re.compile(small_texts or "(?!)").search
    try:
        for path, status in _files(str(root), os.path.realpath(root), frozenset()):
            name = path[len(str(root)) + 1 :]
            lower = name.lower()
            if packs(name):
                found.texts.append((name, status.st_size, status.st_mtime_ns))
            elif is_image(path):
                found.images.append((name, status.st_size))
            elif lower.endswith(TABLES) or ("report" in os.path.basename(lower) and lower.endswith(_ARCHIVES)):
                found.tables.append(name)
            else:
                found.others.append(name)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}); make it readable") from error
    if not found.images:
        raise DataError(
            f"{root}: no image (DICOM, PNG, JPEG, TIFF, WebP, BMP) below it; unpack the data set's images there"
        )
    return Scan(sorted(found.images), sorted(found.tables), sorted(found.others), sorted(found.texts))


def _files(folder: str, real: str, above: frozenset[str]) -> Iterator[tuple[str, os.stat_result]]:
    """Every file, with the one look that is taken at it; ``real`` is the folder's path without links."""
    if real in above:  # a link to a folder that it lies in
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                inside = os.path.realpath(entry.path) if entry.is_symlink() else f"{real}/{entry.name}"
                yield from _files(entry.path, inside, above | {real})
            elif entry.is_file():
                yield entry.path, entry.stat()


def _copy(root: Path, out: Path, folder: Path, tables: Sequence[str]) -> None:
    """Copy what is new or has changed, through ``folder``, and take away what an earlier run copied and is gone."""
    listed = out / "packed" / "tables.txt"
    before = set(listed.read_text().split("\n")) - {""} if listed.is_file() else set()
    for name in sorted(before - set(tables)):
        (out / name).unlink(missing_ok=True)
    try:
        for name in tables:
            source, target = root / name, out / name
            said = source.stat()
            if target.is_file() and (target.stat().st_size, target.stat().st_mtime_ns) == (
                said.st_size,
                said.st_mtime_ns,
            ):
                continue
            with source.open("rb") as content, replacing(target, "make room, and run the command again") as file:
                shutil.copyfileobj(content, file)
            shutil.copystat(source, target)  # its time says whether it has changed
        if before != set(tables):
            replace_text(listed, "".join(f"{name}\n" for name in tables))
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be copied to {out} ({error.strerror}); make room or give rights"
        ) from error


def _check(name: str, root: Path) -> str:
    """That the data set's datamodule finds its tables here; the pattern of its small text files."""
    target = find(DATAMODULES, name).load()
    if not target.needs:
        raise ConfigError(f"{name} reads no folder of images, so there is nothing to prepare")
    target.read_tables(root)
    pattern: str = target.small_texts
    return pattern


def _current(out: Path) -> Manifest | None:
    """The store that training reads here; None where there is none that can be read."""
    try:
        return Manifest.read(out / "packed.json")
    except DataError:
        return None


def prepare(
    name: str,
    root: Path,
    out: Path,
    *,
    size: int = 224,
    workers: int = 1,
    shard: tuple[int, int] = (0, 1),
    per_shard: int = 512,
    check: bool = False,
    intensity: Intensity = Intensity(),  # noqa: B008  # frozen
    say: Callable[[str], None] = print,
) -> bool:
    """Pack a data set, or what is missing of it.

    Args:
        name: of the data set.
        root: its folder.
        out: the packed one.
        size: longest side of a stored picture; smaller ones are kept as they are.
        workers: processes; 1 works in this one.
        shard: this job, and how many there are: it makes every ``n``-th shard.
        per_shard: files of a shard.
        check: hash the pixels of the shards that are there, and make damaged ones anew.
        intensity: how the files' values become grey; training from ``out`` gives the same.
        say: takes lines of progress.

    Returns:
        Whether the store is whole; the shards of other jobs may be missing.

    Raises:
        DataError: files cannot be read or written, or ``out`` holds something else.
    """
    root, out = Path(os.path.abspath(root)), Path(os.path.abspath(out))
    if root.resolve() in (out.resolve(), *out.resolve().parents) or out.resolve() in root.resolve().parents:
        raise ConfigError(f"--out {out} and --root {root} lie in each other; give another --out")
    small_texts = _check(name, root)
    strange = [entry.name for entry in out.iterdir() if not entry.name.startswith("packed")] if out.is_dir() else []
    if strange and not (out / "packed.json").is_file():
        raise DataError(f"{out}: holds other files, as {min(strange)}; give a new or empty folder as --out")
    found = scan(root, small_texts)
    key = found.key(size, per_shard, intensity)
    manifest = Manifest(name, str(root), size, per_shard, len(found.images), key, intensity)
    _start(manifest, out)
    _copy(root, out, manifest.folder(out), found.tables)
    if shard[0] == 0:
        write_texts(root, out, found.texts)
    texts = f", {len(found.texts):,} reports in {out / TEXTS}" if found.texts else ""
    say(
        f"{out}: {len(found.images):,} images in {manifest.shards} shards, {len(found.tables)} tables{texts}; key {key}"
    )
    if found.others:
        say(f"{out}: {len(found.others)} other files are not taken: {', '.join(found.others[:3])}...")
    missing = set(manifest.missing(out))
    mine = range(shard[0], manifest.shards, shard[1])
    if check:
        for number in mine:
            if number not in missing and (why := manifest.verify(out, number)):
                say(why)
                (manifest.folder(out) / f"{number:05d}.index").unlink(missing_ok=True)
                missing.add(number)
    names = [image for image, _ in found.images]
    todo = [(number, names[number * per_shard : (number + 1) * per_shard]) for number in mine if number in missing]
    begin = time.monotonic()
    for done, (number, bad) in enumerate(_made(manifest, out, todo, workers), start=1):
        left = (time.monotonic() - begin) / done * (len(todo) - done)
        say(f"shard {number:05d}: {bad} unusable; {done} of {len(todo)}, {left / 60:.0f} min left")
    if missing := set(manifest.missing(out)):
        say(f"{out}: {len(missing)} shards of other jobs are missing")
        return False
    _finish(manifest, out, say)
    return True


def _start(manifest: Manifest, out: Path) -> None:
    """The folders; a whole store of other options stays the one that training reads until this one is whole."""
    try:
        manifest.folder(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be made ({error.strerror}); give another --out") from error
    current = _current(out)
    if current is None or (current.key != manifest.key and current.missing(out)):
        replace_text(out / "packed.json", manifest.text())


def _finish(manifest: Manifest, out: Path, say: Callable[[str], None]) -> None:
    """Make a whole store the one that training reads, and say what is in it."""
    folder = manifest.folder(out)
    indices = [manifest.index(out, number) for number in range(manifest.shards)]
    bad = [(rule, rows[at][0], why) for _, rows, unusable, _ in indices for at, (rule, why) in unusable.items()]
    odd = [(note, rows[at][0]) for _, rows, _, notes in indices for at, told in notes.items() for note in told]
    listed, noted = folder / "unusable.csv", folder / "notes.csv"
    _list(listed, [("rule", "file", "detail"), *bad])
    _list(noted, [("note", "file"), *odd])
    remove_parts(folder)
    current = _current(out)
    if current is None or current.key != manifest.key:
        replace_text(out / "packed.json", manifest.text())
    used = sum(path.stat().st_size for path in folder.glob("*.bin")) / 1e9
    say(f"{out}: whole; {manifest.files - len(bad):,} images, {used:.1f} GB; train with --data.root {out}")
    if bad:
        counted = ", ".join(f"{number} {rule}" for rule, number in Counter(rule for rule, _, _ in bad).items())
        say(f"{out}: {counted}; listed in {listed}")
    for note, number in Counter(note for note, _ in odd).items():
        say(f"{out}: noted {number} image(s): {note}; listed in {noted}")
    for other in sorted(folder.parent.iterdir()):
        if other.is_dir() and other != folder:
            say(f"{other}: of other options; remove it if no run reads it")


def _list(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """A csv file, left alone where it says the same."""
    text = csv_rows(rows)
    if not path.is_file() or path.read_text() != text:
        replace_text(path, text)


def _made(
    manifest: Manifest, out: Path, todo: Sequence[tuple[int, list[str]]], workers: int
) -> Iterator[tuple[int, int]]:
    """Number and count of unusable images of each shard, as they are done."""
    if workers == 1 or len(todo) < 2:
        for number, names in todo:
            yield number, write_shard(manifest, out, number, names)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(todo)), context, _begin) as pool:
        jobs = {pool.submit(write_shard, manifest, out, number, names): number for number, names in todo}
        try:
            for job in as_completed(jobs):
                yield jobs[job], job.result()
        except BrokenProcessPool as error:
            raise DataError(
                f"{out}: a worker was killed, perhaps for want of memory; run the command again with fewer --workers"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
    """In a worker: one thread, and an end when the command ends, whatever ended it."""
    import cv2

    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def verify(out: Path) -> None:
    """Hash all pixels of the store that training reads.

    Raises:
        DataError: names the first damaged shard, and counts them.
    """
    manifest = Manifest.read(out / "packed.json")
    wrong = [why for number in range(manifest.shards) if (why := manifest.verify(out, number))]
    if wrong:
        raise DataError(f"{len(wrong)} of {manifest.shards} shards; {wrong[0]}")


def _share(text: str) -> tuple[int, int]:
    index, _, number = text.partition("/")
    if not (index.isdigit() and number.isdigit() and int(index) < int(number)):
        raise ConfigError(f"--shard is '{text}'; write i/n with i from 0 to n-1, as 0/8 ... 7/8")
    return int(index), int(number)


def _window(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdigit():
        raise ConfigError(f"--window is '{text}'; give 0, 1, ... or none")
    return int(text)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"prepare: {message} (`diptych prepare --help` lists every option)")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command ``diptych prepare``; see its ``--help``."""
    parser = _Parser(
        prog="diptych prepare",
        description="Read the images of a data set once and pack them small, so that training starts and reads fast. The "
        "same command goes on where it was interrupted.",
    )
    parser.add_argument("name", help="a datamodule that reads a folder of images (`diptych datamodules`)")
    parser.add_argument("--root", type=Path, help="the data set's folder, as --data.root")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; then given as --data.root")
    parser.add_argument(
        "--size", type=int, default=224, help="longest side, pixels: the largest image_size of training"
    )
    parser.add_argument("--workers", type=int, default=_cores(), help="processes; as many as cores")
    parser.add_argument("--shard", type=_share, default=(0, 1), metavar="i/n", help="this is job i of n, from 0")
    parser.add_argument("--per-shard", type=int, default=512, help="images of a shard (512)")
    parser.add_argument(
        "--percentiles",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="as loading.intensity.percentiles of training",
    )
    parser.add_argument("--window", type=_window, default=0, help="as loading.intensity.window; none ignores windows")
    parser.add_argument("--verify", action="store_true", help="hash every shard; with --root, make damaged ones anew")
    given = parser.parse_args(sys.argv[2:] if arguments is None else arguments)
    for option, value, least in (
        ("size", given.size, 8),
        ("workers", given.workers, 1),
        ("per-shard", given.per_shard, 1),
    ):
        if value < least:
            raise ConfigError(f"--{option} is {value}; give at least {least}")
    if given.root is None:
        if not given.verify:
            raise ConfigError("--root is missing; give the data set's folder")
        verify(given.out)
        print(f"{given.out}: every shard has its hash")
        return

    def stop(number: int, frame: object) -> None:
        print("interrupted; the same command goes on with the shards that are missing", file=sys.stderr, flush=True)
        os._exit(128 + number)  # workers see it and end

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        prepare(
            given.name,
            given.root,
            given.out,
            size=given.size,
            workers=given.workers,
            shard=given.shard,
            per_shard=given.per_shard,
            check=given.verify,
            intensity=Intensity(
                (given.percentiles[0], given.percentiles[1]) if given.percentiles else None, given.window
            ),
            say=lambda line: print(line, flush=True),
        )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
