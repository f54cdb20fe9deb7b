"""CheXbert (Smit et al., EMNLP 2020, arXiv 2004.09167) as a labeller, for users who have its weights."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertModel

from diptych.checks import check_number
from diptych.errors import ConfigError
from diptych.files import sha256
from diptych.reports.labeller import FINDINGS, Labeller

__all__ = ["Chexbert"]

_VALUES = np.array([np.nan, 1, 0, -1], np.float32)  # blank, positive, negative, uncertain


class _Network(nn.Module):
    """BERT base, and a linear layer on its first token for each finding. The last layer has two classes, others four."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.bert = BertModel(config)
        width = int(config.hidden_size)
        self.linear_heads = nn.ModuleList(nn.Linear(width, 4) for _ in FINDINGS[:-1])
        self.linear_heads.append(nn.Linear(width, 2))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        first = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]
        return [head(first) for head in self.linear_heads]


class Chexbert(Labeller):
    """CheXbert's architecture with the user's own copy of its weights. The weights are under terms of their own.

    Args:
        checkpoint: ``chexbert.pth``.
        bert: a local folder with the config.json and the tokenizer of bert-base-uncased, or a name on the hub.
        batch_size: reports at a time.

    Raises:
        ConfigError: a file is missing, or holds other weights.
    """

    def __init__(self, checkpoint: str, *, bert: str = "google-bert/bert-base-uncased", batch_size: int = 32) -> None:
        check_number("Chexbert: batch_size", batch_size, least=1, whole=True)
        try:
            stored = torch.load(checkpoint, map_location="cpu", weights_only=True)
            state = stored["model_state_dict"]
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise ConfigError(
                f"Chexbert: {checkpoint} cannot be read as chexbert.pth ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:80]}); give the file of its authors"
            ) from error
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(bert, trust_remote_code=False)
            config = BertConfig.from_pretrained(bert)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"Chexbert: bert '{bert}' cannot be loaded ({str(error).splitlines()[0]}); give a local folder with its "
                "config.json and tokenizer"
            ) from error
        self._network = _Network(config).eval()
        state = {key.removeprefix("module."): value for key, value in state.items() if "position_ids" not in key}
        try:
            self._network.load_state_dict(state)
        except RuntimeError as error:
            raise ConfigError(
                f"Chexbert: {checkpoint} holds other weights than CheXbert's: {' '.join(str(error).split())[:160]}"
            ) from error
        self._batch = batch_size
        self._origin = {"name": "CheXbert", "sha256": sha256(checkpoint)}

    @property
    def origin(self) -> dict[str, Any]:
        """Its name and the hash of its weights."""
        return self._origin

    @torch.inference_mode()
    def __call__(self, reports: Sequence[str]) -> NDArray[np.float32]:
        """Label reports, ``[n,14]``. They are cut to BERT's 512 word pieces, as CheXbert does."""
        rows = [np.zeros((0, len(FINDINGS)), np.float32)]
        for start in range(0, len(reports), self._batch):
            texts = [" ".join(text.split()) for text in reports[start : start + self._batch]]
            pieces = self._tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
            classes = [scores.argmax(1).numpy() for scores in self._network(pieces.input_ids, pieces.attention_mask)]
            rows.append(np.stack([_VALUES[column] for column in classes], axis=1))
        return np.concatenate(rows)
