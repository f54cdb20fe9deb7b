"""``diptych prepare``: a data set's images read once, scaled down and packed into shards that training reads.

A shard that is there is not written again. So an interrupted run goes on where it was, and many jobs may work at once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NoReturn

from diptych.checks import check_number
from diptych.cli.scan import scan
from diptych.errors import ConfigError, DataError
from diptych.escaping import csv_rows
from diptych.files import remove_parts, replace_text, replacing
from diptych.plugins import DATAMODULES, find
from diptych.radiographs.intensity import Intensity
from diptych.radiographs.manifest import TEXTS, Manifest
from diptych.radiographs.packing import write_shard, write_texts

__all__ = ["main", "prepare", "verify"]


def _copy(root: Path, out: Path, tables: Sequence[str]) -> None:
    """Copy the tables that are new or have changed. Remove those that an earlier run copied and that are gone."""
    list_file = out / "packed" / "tables.txt"
    before = set(list_file.read_text().split("\n")) - {""} if list_file.is_file() else set()
    for name in sorted(before - set(tables)):
        (out / name).unlink(missing_ok=True)
    try:
        for name in tables:
            source, target = root / name, out / name
            if target.is_file() and _size_and_time(target) == _size_and_time(source):
                continue
            with source.open("rb") as content, replacing(target, "make room, and run the command again") as file:
                shutil.copyfileobj(content, file)
            shutil.copystat(source, target)  # a later change of the source shows in its time
        if before != set(tables):
            replace_text(list_file, "".join(f"{name}\n" for name in tables))
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be copied to {out} ({error.strerror}); make room or give rights"
        ) from error


def _size_and_time(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _check(name: str, root: Path) -> str:
    """Check that the data set's datamodule finds its tables, and return the pattern of its small text files."""
    datamodule = find(DATAMODULES, name).load()
    if not datamodule.needs:
        raise ConfigError(f"{name} reads no folder of images, so there is nothing to prepare")
    datamodule.read_tables(root)
    pattern: str = datamodule.small_texts
    return pattern


def _current(out: Path) -> Manifest | None:
    """The manifest of the store that training reads in a folder, or None where none can be read."""
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
    """Pack a data set, or the shards of it that are missing.

    Args:
        name: name of the data set.
        root: folder of the data set.
        out: folder of the packed store.
        size: longest side of a stored picture. Smaller pictures are stored as they are.
        workers: number of processes. With 1 this process does all.
        shard: number ``i`` of this job and number ``n`` of all jobs. A job writes every ``n``-th shard.
        per_shard: number of files in a shard.
        check: whether to hash the pixels of the shards that are there, and write damaged ones again.
        intensity: how the values of files become grey. Training on ``out`` must ask for the same.
        say: function that takes lines of progress.

    Returns:
        Whether the store is whole. Shards of other jobs may be missing.

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
    files = scan(root, small_texts)
    key = files.key(size, per_shard, intensity)
    manifest = Manifest(name, str(root), size, per_shard, len(files.images), key, intensity)
    _start(manifest, out)
    _copy(root, out, files.tables)
    if shard[0] == 0:
        write_texts(root, out, files.texts)
    texts = f", {len(files.texts):,} reports in {out / TEXTS}" if files.texts else ""
    say(
        f"{out}: {len(files.images):,} images in {manifest.shards} shards, {len(files.tables)} tables{texts}; key {key}"
    )
    if files.others:
        say(f"{out}: {len(files.others)} other files are not taken: {', '.join(files.others[:3])}...")
    missing = set(manifest.missing(out))
    mine = range(shard[0], manifest.shards, shard[1])
    if check:
        for number in mine:
            if number not in missing and (why := manifest.verify(out, number)):
                say(why)
                (manifest.folder(out) / f"{number:05d}.index").unlink(missing_ok=True)
                missing.add(number)
    names = [image for image, _ in files.images]
    todo = [(number, names[number * per_shard : (number + 1) * per_shard]) for number in mine if number in missing]
    begin = time.monotonic()
    for done, (number, bad) in enumerate(_write_shards(manifest, out, todo, workers), start=1):
        left = (time.monotonic() - begin) / done * (len(todo) - done)
        say(f"shard {number:05d}: {bad} unusable; {done} of {len(todo)}, {left / 60:.0f} min left")
    if missing := set(manifest.missing(out)):
        say(f"{out}: {len(missing)} shards of other jobs are missing")
        return False
    _finish(manifest, out, say)
    return True


def _start(manifest: Manifest, out: Path) -> None:
    """Make the folders. If a whole store of other options is there, training reads it until the new one is whole."""
    try:
        manifest.folder(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be made ({error.strerror}); give another --out") from error
    current = _current(out)
    if current is None or (current.key != manifest.key and current.missing(out)):
        replace_text(out / "packed.json", manifest.text())


def _finish(manifest: Manifest, out: Path, say: Callable[[str], None]) -> None:
    """Let training read the store, which is whole now, and say what is in it."""
    folder = manifest.folder(out)
    indices = [manifest.index(out, number) for number in range(manifest.shards)]
    bad = [(rule, rows[at][0], why) for _, rows, unusable, _ in indices for at, (rule, why) in unusable.items()]
    odd = [(note, rows[at][0]) for _, rows, _, notes in indices for at, of_row in notes.items() for note in of_row]
    bad_file, odd_file = folder / "unusable.csv", folder / "notes.csv"
    _list(bad_file, [("rule", "file", "detail"), *bad])
    _list(odd_file, [("note", "file"), *odd])
    remove_parts(folder)
    current = _current(out)
    if current is None or current.key != manifest.key:
        replace_text(out / "packed.json", manifest.text())
    used = sum(path.stat().st_size for path in folder.glob("*.bin")) / 1e9
    say(f"{out}: whole; {manifest.files - len(bad):,} images, {used:.1f} GB; train with --data.root {out}")
    if bad:
        counts = ", ".join(f"{number} {rule}" for rule, number in Counter(rule for rule, _, _ in bad).items())
        say(f"{out}: {counts}; listed in {bad_file}")
    for note, number in Counter(note for note, _ in odd).items():
        say(f"{out}: noted {number} image(s): {note}; listed in {odd_file}")
    for other in sorted(folder.parent.iterdir()):
        if other.is_dir() and other != folder:
            say(f"{other}: of other options; remove it if no run reads it")


def _list(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Write a csv file, unless it has the same rows already."""
    text = csv_rows(rows)
    if not path.is_file() or path.read_text() != text:
        replace_text(path, text)


def _write_shards(
    manifest: Manifest, out: Path, todo: Sequence[tuple[int, list[str]]], workers: int
) -> Iterator[tuple[int, int]]:
    """Write shards, and yield the number and the count of unusable images of each as it is done."""
    if workers == 1 or len(todo) < 2:
        for number, names in todo:
            yield number, write_shard(manifest, out, number, names)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(todo)), context, _set_up_worker) as pool:
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


def _set_up_worker() -> None:
    """Let a worker use one thread, and end when the command ends for any reason."""
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
        DataError: a shard is damaged. The message names the first, and counts them.
    """
    manifest = Manifest.read(out / "packed.json")
    damages = [why for number in range(manifest.shards) if (why := manifest.verify(out, number))]
    if damages:
        raise DataError(f"{len(damages)} of {manifest.shards} shards; {damages[0]}")


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
    """Run ``diptych prepare``. ``arguments`` are the words after that on the command line."""
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
    args = parser.parse_args(sys.argv[2:] if arguments is None else arguments)
    for option, value, least in (
        ("size", args.size, 8),
        ("workers", args.workers, 1),
        ("per-shard", args.per_shard, 1),
    ):
        check_number(f"--{option}", value, least=least, whole=True, remedy=f"at least {least}")
    if args.root is None:
        if not args.verify:
            raise ConfigError("--root is missing; give the data set's folder")
        verify(args.out)
        print(f"{args.out}: every shard has its hash")
        return

    def stop(number: int, frame: object) -> None:
        print("interrupted; the same command goes on with the shards that are missing", file=sys.stderr, flush=True)
        os._exit(128 + number)  # workers see it and end

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        prepare(
            args.name,
            args.root,
            args.out,
            size=args.size,
            workers=args.workers,
            shard=args.shard,
            per_shard=args.per_shard,
            check=args.verify,
            intensity=Intensity((args.percentiles[0], args.percentiles[1]) if args.percentiles else None, args.window),
            say=lambda line: print(line, flush=True),
        )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
