"""``diptych export``: a trained model for others: the hub, timm, transformers, ONNX or torch.export."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]

_FORMS = {
    "hub": "weights, configuration, tokenizer and model card, for diptych.from_pretrained",
    "timm": "the image tower, for timm.create_model('local-dir:DIR', pretrained=True)",
    "transformers": "the text tower, for transformers.AutoModel and AutoTokenizer",
    "onnx": "both towers and the score, for onnxruntime",
    "torch": "both towers and the score, for torch.export.load",
}


def main(arguments: Sequence[str]) -> None:
    """``diptych export RUN --to hub --out DIR``."""
    parser = argparse.ArgumentParser(
        "diptych export",
        description="Write a trained model for others (docs/sharing.md).",
        epilog="--to: " + ". ".join(f"{form}: {what}" for form, what in _FORMS.items()),
        allow_abbrev=False,
    )
    parser.add_argument("model", help="a run, a checkpoint, a folder of --to hub, or hf-hub:OWNER/NAME")
    parser.add_argument("--to", required=True, choices=list(_FORMS), help="what is written")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new folder")
    parser.add_argument("--licence", help="of --to hub: the hub's name of a licence, as cc-by-nc-4.0")
    parser.add_argument(
        "--push", metavar="OWNER/NAME", help="of --to hub: send the folder there too; a new repository is private"
    )
    options = parser.parse_args(arguments)
    if options.to != "hub" and (options.licence or options.push):
        parser.error("--licence and --push are of --to hub; leave them out")

    from diptych.model.inference import load
    from diptych.sharing.hub import upload
    from diptych.sharing.programs import write_programs
    from diptych.sharing.towers import write_timm, write_transformers

    model = load(options.model)
    encoder = model.module.encoder
    if options.to == "hub":
        model.save_pretrained(options.out, licence=options.licence)
        if options.push:
            print(f"sent: {upload(options.out, options.push, private=True)}")
    elif options.to == "timm":
        write_timm(encoder.image, model.image_size, options.out)
    elif options.to == "transformers":
        write_transformers(encoder.text, options.out)
    else:
        for name, gap in write_programs(model, options.out, options.to).items():
            print(f"{name}: differs from PyTorch by {gap:.1e} at most")
    print(f"written: {options.out} ({_FORMS[options.to]})")
