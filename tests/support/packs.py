"""Packed releases: batches of a datamodule, and the state of a packed folder."""

import filecmp
from dataclasses import fields

import torch
from mini import TEXT

from diptych.cli.prepare import prepare
from diptych.data.loading import Loading
from diptych.plugins import DATAMODULES, find
from diptych.towers.text import ScratchText


def module_of(name, root, options, **loading):
    """The datamodule of a release, set up for training where it has reports."""
    loading = Loading(**{"image_size": 32, "batch_size": 3, "eval_batch_size": 3, "workers": 0, **loading})
    options = {**options, **({"images": str(root / options["images"])} if "images" in options else {})}
    module = find(DATAMODULES, name).load()(str(root), ScratchText(**TEXT).tokenizer, **options, loading=loading)
    module.prepare_data()
    module.setup("fit" if "text" in module.holds and options.get("section") != "none" else "test")
    return module


def same(one, other):
    """Whether two values are equal, with NaN equal to NaN, at any depth."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one.nan_to_num(7), other.nan_to_num(7))
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if hasattr(one, "__dataclass_fields__"):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    return one == other


def batches(module):
    """All batches of all splits."""
    loaders = [module.train_dataloader()] if len(module.datasets["train"]) >= 3 else []
    loaders += [module.evaluation_loader(split) for split in module.datasets if split != "train"]
    return [batch for loader in loaders for batch in loader]


def quiet(name, root, out, **options):
    """Pack a release. Returns whether the store is whole, and what was printed."""
    lines = []
    whole = prepare(name, root, out, **{"size": 32, "per_shard": 8, **options}, say=lines.append)
    return whole, "\n".join(lines)


def files_of(folder):
    """Every file below a folder, by its path there."""
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


def state_of(folder, suffix=""):
    """Inode and time of change of every file, by its path. They show which ones were written again."""
    return {
        name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for name, path in files_of(folder).items()
        if name.endswith(suffix)
    }


def equal(one, other):
    """Whether two folders have the same files with the same bytes."""
    names = sorted(files_of(one))
    return names == sorted(files_of(other)) and filecmp.cmpfiles(one, other, names, shallow=False)[1:] == ([], [])
