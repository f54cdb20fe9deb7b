"""``diptych convert``: a peer's checkpoint becomes one of diptych, and a report names every key."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from diptych.plugins import PEERS, find, plugins

__all__ = ["main"]


def main(arguments: Sequence[str]) -> None:
    """``diptych convert PEER FILE... --out run.ckpt``."""
    names = ", ".join(plugin.name for plugin in plugins(PEERS))
    parser = argparse.ArgumentParser(
        "diptych convert",
        description="A peer's checkpoint becomes one of diptych. Nothing in its files is run (docs/peers.md).",
        epilog=f"peers: {names}",
    )
    parser.add_argument("peer", help="which model it is")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="its files of weights, or folders with one")
    parser.add_argument(
        "--out", required=True, type=Path, help="the checkpoint; recipe and report are written beside it"
    )
    parser.add_argument(
        "--tokenizer", help="folder of the tokenizer; otherwise the hub's, by the name that the peer gives"
    )
    for what, whose in (
        ("missing", "diptych's weights that the files may lack"),
        ("unexpected", "the files' other keys"),
    ):
        parser.add_argument(f"--allow-{what}", action="append", default=[], metavar="PATTERN", help=whose)
    options = parser.parse_args(arguments)
    peer = find(PEERS, options.peer).load()

    from diptych.model.converting import convert

    done = convert(
        options.peer,
        peer(),
        options.files,
        options.out,
        tokenizer=options.tokenizer,
        allow_missing=options.allow_missing,
        allow_unexpected=options.allow_unexpected,
    )
    content = done.content
    counts = {key: len(content[key]) for key in ("mapped", "left_out", "set", "missing", "unexpected")}
    print(f"{done.checkpoint}: {', '.join(f'{number} {key}' for key, number in counts.items())}; see {done.report}")
    for key in ("missing", "unexpected", "objects_not_read", "inferred"):
        for line in content[key]:
            print(f"{key.replace('_', ' ')}: {line}")
    print(f"images: {content['image_size']} px, mean {content['mean']:.4g}, std {content['std']:.4g}")
    print(f"licence of the weights: {content['licence']}")
    print(f"use: diptych.load('{done.checkpoint}'), or diptych test -c {done.recipe} --ckpt_path {done.checkpoint}")
