"""Text towers: a pooled vector of the report, and one vector for every whole word."""

from __future__ import annotations

import copy
import json
import re
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, BertConfig, BertModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from diptych.checks import check_number
from diptych.errors import ConfigError, shown
from diptych.reports.tokenizer import Tokenizer
from diptych.towers.architecture import architecture_args, check_no_weights, shape_fields, transformers_architecture
from diptych.towers.base import Tower, class_attention, origin_of
from diptych.towers.text_model import load_text_model, load_tokenizer, looks_back_only, most_pieces, quiet_loading
from diptych.types import Features, TextBatch

__all__ = ["ScratchText", "TextTower", "TransformersText", "sum_pieces"]

Pool = Literal["cls", "mean", "last"]

# Models that take a mask [B,1,1,P] as it is. With [B,P], transformers asks the device for padding, and waits for it.
_TAKES_BROADCAST_MASK = frozenset({"bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta"})
_BLOCK = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_RECORDER = "diptych_recorder"


def sum_pieces(pieces: Tensor, word_of_piece: Tensor, words: int) -> Tensor:
    """Whole-word vectors: the sum of each word's pieces, as in GLoRIA (ICCV 2021).

    >>> pieces = torch.tensor([[[9.0], [1.0], [2.0], [3.0]]])  # [CLS], two pieces of a word, and one of the next
    >>> sum_pieces(pieces, torch.tensor([[-1, 0, 0, 1]]), words=2).tolist()
    [[[3.0], [3.0]]]

    Args:
        pieces: ``[B,P,D]``
        word_of_piece: ``[B,P]`` int64, -1 for a piece of no word.
        words: ``N``

    Returns:
        ``[B,N,D]``, zero where there is no word.
    """
    batch, _, width = pieces.shape
    target = torch.where(word_of_piece < 0, words, word_of_piece)  # pieces of no word fall into a slot cut off below
    sums = pieces.new_zeros(batch, words + 1, width)
    return sums.scatter_add(1, target.unsqueeze(2).expand(-1, -1, width), pieces)[:, :words]


def _record(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> Any:
    """The library's fused attention. It also stores what the first piece attends to, as ``module.first_row``."""
    module.first_row = class_attention(query, key, options["scaling"], attention_mask)
    interface: Any = ALL_ATTENTION_FUNCTIONS
    return interface["sdpa"](module, query, key, value, attention_mask, **options)


AttentionInterface.register(_RECORDER, _record)


class TextTower(Tower):
    """Base of every text tower: a report becomes a pooled vector, and one vector for each whole word."""

    tokenizer: Tokenizer
    """Turns reports into what :meth:`forward` reads. The loader's workers call it, not the training step."""

    @abstractmethod
    def forward(self, text: TextBatch) -> Features:
        """Features of tokenised reports: ``pooled`` ``[B,D]``, ``tokens`` ``[B,N,D]``, ``mask``, and the words' sentences."""


class _EncoderText(TextTower):
    """A transformers encoder as a text tower. Its subclasses make the model and the tokenizer."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        *,
        origin: dict[str, Any],
        last_layers: int,
        pool: Pool,
        frozen: bool,
        freeze_layers: int,
        layer_decay: float,
        gradient_checkpointing: bool,
        pool_layers: list[int] | None = None,
    ) -> None:
        super().__init__()
        config: Any = model.config
        depth = int(config.num_hidden_layers)
        room = most_pieces(config)
        for layer in pool_layers or []:
            remedy = f"whole numbers from {-depth - 1} to {depth}, where 0 is the embeddings and {depth} the top"
            check_number("pool_layers", layer, least=-depth - 1, most=depth, whole=True, remedy=remedy)
        remedy = f"a whole number from 1 to {depth}, as this text tower has {depth} layers"
        check_number("last_layers", last_layers, least=1, most=depth, whole=True, remedy=remedy)
        remedy = f"{room} or less, as this text tower reads no more word pieces"
        check_number("max_tokens", tokenizer.max_tokens, most=room, whole=True, remedy=remedy)
        if tokenizer.learned and tokenizer.size > config.vocab_size:
            raise ConfigError(
                f"the tokenizer has {tokenizer.size} pieces, the tower {config.vocab_size}: take both from one model"
            )
        if pool == "cls" and looks_back_only(model):
            raise ConfigError(
                f"text tower '{origin['name']}' is causal ('{config.model_type}'): its first piece sees no other, so with "
                "pool: cls all reports of one first word would be alike; set pool: mean or last"
            )
        self.model = model
        self.tokenizer = tokenizer
        self._origin = origin
        self.width = self.token_width = int(config.hidden_size)
        self.num_layers = depth
        self.last_layers = last_layers
        self.pool = pool
        self.pool_layers = pool_layers or None
        last_block = [
            module
            for name, module in model.named_modules()
            if (match := _BLOCK.search(f"{name}.")) and int(match[1]) == depth - 1 and hasattr(module, "config")
        ]
        takes_functions = getattr(model, "_supports_attention_backend", False) and config._attn_implementation == "sdpa"
        self._attending = last_block if takes_functions else []
        self.gives_attention = bool(self._attending)
        self._broadcast_mask = config.model_type in _TAKES_BROADCAST_MASK and config._attn_implementation == "sdpa"
        if gradient_checkpointing:
            enable: Any = model.gradient_checkpointing_enable
            try:
                enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            except ValueError as error:
                raise ConfigError(
                    f"text tower '{origin['name']}' ('{config.model_type}') has no gradient checkpointing; set "
                    "gradient_checkpointing: false"
                ) from error
        self._set_up_training(frozen=frozen, freeze_layers=freeze_layers, layer_decay=layer_decay)

    @property
    def origin(self) -> dict[str, Any]:
        """The tower's ``name``, and its ``weights``: the hub's name, a file with hash and prefix, or ``random``."""
        return dict(self._origin)

    def layer_of(self, name: str) -> int:
        """0 for the embeddings, ``i + 1`` for the i-th block, ``num_layers`` for what comes after the blocks."""
        if match := _BLOCK.search(name):
            return int(match.group(1)) + 1
        return 0 if "emb" in name or ".wte." in name or ".wpe." in name else self.num_layers

    def forward(self, text: TextBatch) -> Features:
        """Features of tokenised reports. It never waits for the device."""
        attended = text.attention_mask
        recording: AbstractContextManager[list[Tensor]] = self._recording() if self.attention else nullcontext([])
        with recording as rows:
            output = self.model(
                input_ids=text.input_ids,
                attention_mask=attended[:, None, None, :] if self._broadcast_mask else attended.long(),
                output_hidden_states=self.last_layers > 1 or self.pool_layers is not None,
            )
        last: Tensor = output.last_hidden_state  # [B,P,D]
        pieces = last
        if self.last_layers > 1:
            pieces = torch.stack(output.hidden_states[-self.last_layers :]).sum(dim=0)
        if self.pool_layers is not None:
            last = torch.stack([output.hidden_states[layer] for layer in self.pool_layers]).mean(dim=0)
        if self.pool == "cls":
            pooled = last[:, 0]
        elif self.pool == "last":
            end = attended.sum(dim=1, keepdim=True).unsqueeze(2) - 1  # [B,1,1]
            pooled = last.gather(1, end.expand(-1, -1, last.shape[2])).squeeze(1)
        else:
            weight = attended.unsqueeze(2).to(last.dtype)  # special tokens too, as the sentence encoders are trained
            pooled = (last * weight).sum(dim=1) / weight.sum(dim=1)
        words = text.mask.shape[1]
        return Features(
            pooled=pooled,
            tokens=sum_pieces(pieces, text.word_of_piece, words),
            mask=text.mask,
            sentences=text.sentences,
            attention=sum_pieces(rows[0].unsqueeze(2), text.word_of_piece, words).squeeze(2) if rows else None,
            sentence_hash=text.sentence_hash,
        )

    @contextmanager
    def _recording(self) -> Iterator[list[Tensor]]:
        """Within it the last block attends by :func:`_record`. Afterwards the list holds the first row ``[B,P]``.

        Only that block gets another configuration, and its own one again at the end. The model still makes the mask for
        its own attention.
        """
        rows: list[Tensor] = []
        before = [module.config for module in self._attending]
        config: Any = copy.copy(self.model.config)
        config._attn_implementation = _RECORDER
        for module in self._attending:
            module.config = config
        try:
            yield rows
        finally:
            for module, own in zip(self._attending, before, strict=True):
                module.config = own
        rows += [
            cast(Tensor, module.__dict__.pop("first_row")) for module in self._attending if "first_row" in vars(module)
        ]

    def get_extra_state(self) -> dict[str, str]:
        """What a checkpoint carries besides weights: ``tokenizer``, ``architecture`` and ``origin``, all JSON."""
        config: Any = self.model.config
        known = shape_fields(type(config))
        shape = {key: value for key, value in json.loads(config.to_json_string()).items() if key in known}
        return {
            "tokenizer": self.tokenizer.state(),
            "architecture": json.dumps(shape, indent=2, sort_keys=True),
            "origin": json.dumps(self._origin),
        }

    def set_extra_state(self, state: dict[str, str]) -> None:
        """Take the tokenizer and the origin of a checkpoint.

        Raises:
            ConfigError: the tokenizer is damaged, or has more pieces than the tower.
        """
        if not isinstance(state, dict):
            raise ConfigError(f"the text tower's state is refused: it is {shown(state)}, and must be a mapping")
        config: Any = self.model.config
        self.tokenizer.load(state.get("tokenizer", ""), most=int(config.vocab_size))
        self._origin = origin_of(state, self._origin["name"])


class TransformersText(_EncoderText):
    """Any encoder that the transformers library knows, by its name on the hub or by the path of a local folder.

    Args:
        name: as ``emilyalsentzer/Bio_ClinicalBERT``, or a folder with config.json, weights and tokenizer files.
        pretrained: False starts from random weights of the same architecture.
        weights: a local file of weights for it (.safetensors, .pth), instead of the hub's or the folder's. A prefix before
            their names, as ``text_encoder.model.``, is searched for. Weights of other models in the file are left out, and
            a message says so.
        weights_prefix: that prefix, for a file that has the model more than once; "" for none.
        max_tokens: most word pieces of a report, special tokens included. Longer reports lose their last sentences.
        last_layers: word vectors are the sum of the last k layers' (GLoRIA: 4).
        pool: what becomes the report's vector: the first piece of the last layer (``cls``), the mean of all pieces
            (``mean``), as in sentence encoders such as MiniLM, or the last piece (``last``), as in CLIP. A causal model such
            as GPT-2 does not allow ``cls``.
        pool_layers: layers whose mean is pooled, instead of the last. 0 is the embeddings, and -1 is the last. GLoRIA pools
            the last four.
        frozen: whether no parameter is trained. Dropout is off then.
        freeze_layers: how many of the lowest layers are not trained. The embeddings count as one.
        layer_decay: factor of the learning rate from each layer to the one below, above 0 to 1.
        gradient_checkpointing: recompute the blocks in backward, to save memory.
        lower_case: whether the tokenizer folds case. None follows the model's tokenizer. But case is kept where the
            vocabulary has capitals: Bio_ClinicalBERT has them, and its settings do not say so.
        architecture: JSON of the transformers configuration, from a checkpoint. Then nothing is fetched, and the
            tokenizer comes from the checkpoint too. Needs ``pretrained=False``.

    Raises:
        ConfigError: the model cannot be found or loaded, lacks weights, is no encoder, or an argument does not fit it.
    """

    def __init__(
        self,
        name: str = "emilyalsentzer/Bio_ClinicalBERT",
        *,
        pretrained: bool = True,
        weights: str | None = None,
        weights_prefix: str | None = None,
        max_tokens: int = 112,
        last_layers: int = 1,
        pool: Pool = "cls",
        pool_layers: list[int] | None = None,
        frozen: bool = False,
        freeze_layers: int = 0,
        layer_decay: float = 1.0,
        gradient_checkpointing: bool = False,
        lower_case: bool | None = None,
        architecture: str | None = None,
    ) -> None:
        if architecture is None:
            with quiet_loading(f"text tower '{name}'"):
                config = AutoConfig.from_pretrained(name, trust_remote_code=False)
            tokenizer = load_tokenizer(name, max_tokens, lower_case)
        else:
            check_no_weights(f"text tower '{name}'", pretrained, weights)
            config = transformers_architecture(architecture, "text")
            tokenizer = Tokenizer(None, max_tokens)
        model, origin = load_text_model(name, config, pretrained, weights, weights_prefix)
        super().__init__(
            model,
            tokenizer,
            origin=origin,
            last_layers=last_layers,
            pool=pool,
            pool_layers=pool_layers,
            frozen=frozen,
            freeze_layers=freeze_layers,
            layer_decay=layer_decay,
            gradient_checkpointing=gradient_checkpointing,
        )

    @classmethod
    def rebuild_args(cls, extra_state: dict[str, str]) -> dict[str, Any]:
        """The stored architecture, instead of a pretrained model.

        Raises:
            ConfigError: the checkpoint holds none.
        """
        return architecture_args(extra_state, "text")


class ScratchText(_EncoderText):
    """A small BERT (arXiv 1810.04805) with random weights, whose vocabulary is learned from the training reports.

    Nothing is downloaded. The table of embeddings has ``vocabulary`` rows, also where fewer pieces are learned.

    Args:
        width: width of the vectors, a multiple of ``heads``.
        depth: number of blocks.
        heads: attention heads in each block.
        vocabulary: most pieces that are learned, at least 77.
        least_patients: a word is learned if the reports of so many patients use it. Rarer words, which may be names, are
            spelled in letters. Where patients are not known, every different report counts as one patient.
        max_tokens: most word pieces of a report.
        dropout: of the blocks and of the attention, from 0 to 1.
        last_layers: word vectors are the sum of the last k layers'.
        pool: what becomes the report's vector: the first piece (``cls``), the mean of all, or the last piece (``last``). The
            mean learns sooner.
        layer_decay: factor of the learning rate from each layer to the one below, above 0 to 1.
        gradient_checkpointing: recompute the blocks in backward, to save memory.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        vocabulary: int = 4096,
        least_patients: int = 5,
        max_tokens: int = 112,
        dropout: float = 0.1,
        last_layers: int = 1,
        pool: Pool = "mean",
        layer_decay: float = 1.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        if width % heads:
            raise ConfigError(f"width={width}: not a multiple of heads={heads}")
        tokenizer = Tokenizer(None, max_tokens, vocabulary=vocabulary, least_patients=least_patients)
        config = BertConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            max_position_embeddings=max_tokens,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        super().__init__(
            BertModel(config, add_pooling_layer=False),
            tokenizer,
            origin={"name": type(self).__name__, "weights": "random"},
            last_layers=last_layers,
            pool=pool,
            frozen=False,
            freeze_layers=0,
            layer_decay=layer_decay,
            gradient_checkpointing=gradient_checkpointing,
        )
