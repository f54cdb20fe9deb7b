"""A tokenizer as the files that transformers reads."""

from __future__ import annotations

import json
from pathlib import Path

from diptych.files import replace_text
from diptych.reports.tokenizer import Tokenizer

__all__ = ["TOKENIZER", "special_tokens", "write_tokenizer"]

TOKENIZER = "tokenizer.json"
"""The file with the whole state of a tokenizer, as the tokenizers library writes it."""

_ROLES = {
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "mask_token": ("[MASK]", "<mask>"),
    "bos_token": ("<|startoftext|>", "<s>"),
    "eos_token": ("<|endoftext|>", "</s>"),
}


def special_tokens(state: str, pad_id: int) -> dict[str, str]:
    """The special tokens of a tokenizer by the names that transformers gives their roles.

    >>> state = '{"added_tokens": [{"id": 0, "content": "[PAD]"}, {"id": 2, "content": "[CLS]"}]}'
    >>> special_tokens(state, pad_id=0)
    {'cls_token': '[CLS]', 'pad_token': '[PAD]'}

    Args:
        state: of the tokenizers library, as JSON.
        pad_id: number of the padding piece.
    """
    added = {token["content"]: token["id"] for token in json.loads(state).get("added_tokens", [])}
    found = {role: next((name for name in names if name in added), None) for role, names in _ROLES.items()}
    found["pad_token"] = next((name for name, number in added.items() if number == pad_id), None)
    return {role: name for role, name in found.items() if name is not None}


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``. ``transformers.AutoTokenizer`` reads them.

    Raises:
        ConfigError: it has no vocabulary yet.
        DataError: they cannot be written.
    """
    pad_id, state = tokenizer.pad_id, tokenizer.state()  # pad_id first: it refuses a tokenizer without vocabulary
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": tokenizer.max_tokens,
        "clean_up_tokenization_spaces": False,
        **special_tokens(state, pad_id),
    }
    replace_text(folder / TOKENIZER, state)
    replace_text(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")
