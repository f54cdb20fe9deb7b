"""Report generation: a transformer decoder on an image tower, and beam search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from diptych import distributed
from diptych.checks import check_choice, check_number
from diptych.errors import ConfigError
from diptych.evaluation.rows import Rows
from diptych.metrics import bootstrap
from diptych.metrics import generated_text as nlg
from diptych.metrics import measures as metrics
from diptych.metrics.bootstrap import Metric
from diptych.metrics.radeval import USUAL, check_names
from diptych.model.optim import OptimizerFactory, ScheduleFactory
from diptych.nn.functional import sine_code
from diptych.predictions.reports import compared
from diptych.reports.labeller import Labeller, Rules
from diptych.reports.r2gen import R2GEN, R2GenText
from diptych.reports.tokenizer import Tokenizer
from diptych.tasks.base import TrainedTask
from diptych.towers.image import ImageTower
from diptych.types import Batch, TextBatch

__all__ = ["Decoder", "Generate", "grid_code"]

Attend = Literal["regions", "queries", "both"]
TextProtocol = Literal["diptych", "r2gen/openi", "r2gen/mimic_cxr"]

_START, _END = 2, 3  # [CLS] and [SEP] of every learned vocabulary


def grid_code(grid: tuple[int, int], width: int) -> Tensor:
    """A code of each place of a grid, ``[rows*columns,width]``: sines and cosines (arXiv 1706.03762) in two dimensions.

    Half of the width codes the row and half the column. There are no parameters, so any size of image will do.

    >>> grid_code((2, 3), 8).shape
    torch.Size([6, 8])
    """
    places = torch.cartesian_prod(*(torch.arange(float(side)) for side in grid))
    return sine_code(places, width, base=100.0)


class Decoder(nn.Module):
    """GPT-2 with cross-attention, of transformers, from random weights.

    Args:
        vocabulary: number of word pieces that have a vector.
        max_tokens: most word pieces of a report, start and end included.
        width: width of the vectors, a multiple of ``heads``.
        layers: number of decoder layers.
        heads: number of attention heads.
        dropout: probability of dropout of embeddings, attention and layers, 0 to 1.
    """

    def __init__(
        self, vocabulary: int, max_tokens: int, *, width: int, layers: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        config = GPT2Config(
            vocab_size=vocabulary,
            n_positions=max_tokens,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            add_cross_attention=True,
            bos_token_id=_START,
            eos_token_id=_END,
        )
        self.model = GPT2LMHeadModel(config)
        self.max_tokens = max_tokens

    def forward(self, memory: Tensor, ids: Tensor) -> Tensor:
        """Logits ``[B,P,vocabulary]`` of the word piece that follows each of ``ids``.

        Args:
            memory: the vectors ``[B,N,width]`` to attend to.
            ids: word pieces ``[B,P]``. Padding must be on the right, where no word piece attends to it.
        """
        logits: Tensor = self.model(input_ids=ids, encoder_hidden_states=memory, use_cache=False).logits
        return logits

    @torch.no_grad()
    def search(
        self, memory: Tensor, *, beams: int, length_penalty: float, block_ngram: int, never: list[int]
    ) -> Tensor:
        """Reports by beam search, ``[B,P]`` with their start, padded after their end. The search is deterministic.

        Args:
            memory: the vectors ``[B,N,width]`` to attend to.
            beams: unfinished reports that are followed at each step. 1 is greedy search.
            length_penalty: the score of a finished report is its log-likelihood divided by its length to this power.
            block_ngram: no sequence of so many word pieces is written twice. 0 allows all.
            never: word pieces that are not written.
        """
        start = torch.full((len(memory), 1), _START, dtype=torch.int64, device=memory.device)
        options: dict[str, Any] = {"max_length": self.max_tokens, "do_sample": False, "num_beams": beams}
        if beams > 1:  # "never" ends the search only when no unfinished report can become the best
            options |= {"length_penalty": length_penalty, "early_stopping": "never"}
        model: Any = self.model  # the mix-in that searches is typed for other classes
        reports: Tensor = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            encoder_hidden_states=memory,
            **options,
            no_repeat_ngram_size=block_ngram,
            suppress_tokens=never,
            bos_token_id=_START,
            eos_token_id=_END,
            pad_token_id=0,
        )
        return reports


class Generate(TrainedTask):
    """Writes the report of a radiograph, by a transformer decoder on the tower's regions or queries.

    The tower is trained along, unless it is ``frozen``. With a ``layer_decay`` its lower layers learn more slowly. The loss
    is the cross entropy of each word piece, given those before it. The vocabulary is learned from the training reports, and
    is stored in the checkpoint.

    Within training, validation computes only ``generate/log_likelihood``, the mean over word pieces. It chooses the
    checkpoint, and costs one pass. ``diptych validate`` and ``test`` write reports and measure them.

    - BLEU, METEOR, ROUGE-L and CIDEr (:mod:`diptych.metrics.generated_text`) compare words with the reference.
    - Precision, recall and F1 (:mod:`diptych.metrics.clinical`) compare the findings that a labeller reads in both.
    - Metrics of radeval (:mod:`diptych.metrics.radeval`) are computed where the package and their models are there.

    A test writes its reports to the run's ``predictions.csv``.

    Args:
        image: the tower. Its ``layer_decay``, ``frozen`` and ``freeze_layers`` hold here.
        attend: what the decoder attends to: the tower's ``regions``, its ``queries``, or ``both``. Queries need a
            ``TrainedImage`` with ``queries: true``, of a run whose head has some, as ``pcma``.
        width: width of the decoder, a multiple of ``heads``.
        layers: number of decoder layers.
        heads: number of attention heads.
        dropout: probability of dropout in the decoder, 0 to 1.
        vocabulary: most word pieces that are learned, at least 77.
        least_patients: a word is learned if it is in the reports of so many patients. Rarer words, which may be names, are
            spelled in letters.
        max_tokens: most word pieces of a report, start and end included. In training a longer reference loses its last
            sentences. In evaluation it loses nothing.
        beams: unfinished reports that the search follows. 1 is greedy search.
        length_penalty: the search divides the score of a report by its length to this power.
        block_ngram: no sequence of so many word pieces is written twice. 0 allows all.
        protocol: what is done to texts. ``diptych`` compares them as they are. ``r2gen/openi`` and ``r2gen/mimic_cxr`` train on
            and compare texts under R2Gen's rules (:mod:`diptych.reports.r2gen`).
        radeval: metrics of the package radeval, of :data:`diptych.metrics.radeval.RADEVAL`.
        labeller: what reads findings in reports. The default is the rules of :mod:`diptych.reports.labeller`.
        uncertain: whether an uncertain finding counts as present in the clinical metrics. Otherwise it counts as absent.
        lr: peak learning rate of the decoder and of the tower's top layer.
        weight_decay: weight decay of AdamW on weight matrices.
        warmup: number of steps of linear warm-up. Below 1, their share of all steps.
        lr_floor: learning rate at the end of the cosine, as a share of ``lr``.
        resamples: number of bootstrap resamples of the test. 0 gives no intervals.
        optimizer: another optimiser than AdamW, as :class:`~diptych.model.module.AlignmentModule` has it. ``lr`` and
            ``weight_decay`` are then its own.
        schedule: another schedule than warm-up and cosine.

    Raises:
        ConfigError: an argument is out of its range, the tower lacks the queries to attend to, or nltk is not installed.
    """

    monitor = "val/generate/log_likelihood"

    def __init__(
        self,
        image: ImageTower,
        *,
        attend: Attend = "regions",
        width: int = 256,
        layers: int = 3,
        heads: int = 8,
        dropout: float = 0.1,
        vocabulary: int = 8192,
        least_patients: int = 5,
        max_tokens: int = 112,
        beams: int = 3,
        length_penalty: float = 1.0,
        block_ngram: int = 0,
        protocol: TextProtocol = "diptych",
        radeval: Sequence[str] = USUAL,
        labeller: Labeller | None = None,
        uncertain: bool = False,
        lr: float = 3e-4,
        weight_decay: float = 0.05,
        warmup: float = 0.05,
        lr_floor: float = 0.01,
        resamples: int = 1000,
        optimizer: OptimizerFactory | None = None,
        schedule: ScheduleFactory | None = None,
    ) -> None:
        super().__init__(
            image,
            lr=lr,
            weight_decay=weight_decay,
            warmup=warmup,
            lr_floor=lr_floor,
            resamples=resamples,
            optimizer=optimizer,
            schedule=schedule,
        )
        nlg.need_nltk()
        for name, value, least in (
            ("heads", heads, 1),
            ("vocabulary", vocabulary, 77),
            ("layers", layers, 1),
            ("beams", beams, 1),
            ("block_ngram", block_ngram, 0),
        ):
            check_number(f"Generate: {name}", value, least=least, whole=True)
        check_number("Generate: dropout", dropout, least=0, below=1)
        check_choice("Generate: protocol", protocol, ["diptych", *R2GEN])
        check_names("Generate: radeval", radeval)
        if width < 4 or width % heads:
            raise ConfigError(f"Generate: width is {width}; give a multiple of heads={heads}, at least 4")
        if attend != "regions" and not image.query_width:
            raise ConfigError(
                f"Generate: attend is '{attend}', and {type(image).__name__} has no queries; use TrainedImage with queries: "
                "true, of a run whose head has some, as pcma"
            )
        self.attend: Attend = attend
        self.beams, self.length_penalty, self.block_ngram = beams, length_penalty, block_ngram
        self.labeller, self.uncertain = labeller or Rules(), uncertain
        self.text_protocol: TextProtocol = protocol
        self.radeval = tuple(radeval)
        self.rules: R2GenText | None = None
        """The rules of a published protocol, known when the training reports are."""
        self.tokenizer = Tokenizer(None, max_tokens, vocabulary=vocabulary, least_patients=least_patients)
        self.vocabulary = vocabulary
        self.regions, self.queries = (
            nn.Sequential(nn.Linear(size, width), nn.LayerNorm(width)) if attend in (part, "both") else None
            for part, size in (("regions", image.token_width), ("queries", image.query_width))
        )
        self.decoder = Decoder(vocabulary, max_tokens, width=width, layers=layers, heads=heads, dropout=dropout)

    def get_extra_state(self) -> dict[str, str]:
        """The vocabulary, as JSON. A checkpoint stores it beside the weights."""
        return {"tokenizer": self.tokenizer.state()}

    def set_extra_state(self, state: dict[str, str]) -> None:
        """Take over the vocabulary of a checkpoint."""
        self.tokenizer.load(state["tokenizer"])

    def setup(self, stage: str) -> None:
        """Give the datamodule the tokenizer, and learn its vocabulary before training.

        A published protocol looks at the training reports in each stage. So a checkpoint holds no rare words.

        Raises:
            ConfigError: the data set has no reports.
        """
        super().setup(stage)
        self.data.tokenizer = self.tokenizer
        if stage == "fit" or self.text_protocol != "diptych":
            reports = list(self.data.datasets["train"].texts_by_patient()) if "train" in self.data.datasets else []
            if not any(text.strip() for _, text in reports):
                raise self._no_reports()
            if self.text_protocol != "diptych":
                self.rules = R2GenText(self.text_protocol, reports)
                self.tokenizer.rewrite = self.rules.reference
                reports = [(patient, self.rules.reference(text)) for patient, text in reports]
            if stage == "fit":
                self.tokenizer.learn([text for _, text in reports], [patient for patient, _ in reports])

    def configure_model(self) -> None:
        """Freeze the parameters of the tower that the decoder does not attend to."""
        self.train_what_is_used(lambda image: [self.memory(image)])

    def _no_reports(self) -> ConfigError:
        return ConfigError(
            f"Generate: {self.data.protocol} gives no reports; choose data that have some (mimic_cxr, openi, phantom; tabular "
            "with data.columns.text)"
        )

    def _reports(self, batch: Batch) -> TextBatch:
        if batch.text is None:
            raise self._no_reports()
        return batch.text

    def memory(self, image: Tensor) -> Tensor:
        """The vectors ``[B,N,width]`` of radiographs ``[B,1,H,V]`` that the decoder attends to."""
        features = self.image(image)
        parts = []
        if self.regions is not None:
            regions = self.regions(features.tokens)
            code = 0.0 if features.grid is None else grid_code(features.grid, regions.shape[-1]).to(regions)
            parts.append(regions + code)
        if self.queries is not None:
            parts.append(self.queries(self.image.queries(features)))
        return torch.cat(parts, dim=1)

    def _costs(self, memory: Tensor, text: TextBatch) -> tuple[Tensor, Tensor]:
        """The cross entropy ``[B,P-1]`` of each word piece after the first, 0 at padding, and which are no padding."""
        real = text.attention_mask[:, 1:]
        logits = self.decoder(memory, text.input_ids[:, :-1])[..., : self.tokenizer.size].float()
        return F.cross_entropy(logits.transpose(1, 2), text.input_ids[:, 1:], reduction="none") * real, real

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean cross entropy over the word pieces of all processes."""
        costs, real = self._costs(self.memory(batch.image), self._reports(batch))
        loss = distributed.mean_loss(costs.sum(), real.sum())
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        return loss

    def begin(self) -> None:
        """Begin a pass, with no likelihoods and texts yet."""
        self._rows = Rows(self.device, 2)
        self._texts: list[tuple[str, str]] = []  # of this process: reference, generated

    def collect(self, batch: Batch) -> None:
        """Keep the likelihoods of the reports of a batch. Outside training, write reports too."""
        text, memory = self._reports(batch), self.memory(batch.image)
        costs, real = self._costs(memory, text)
        self._rows.add(batch, torch.stack([-costs.sum(1), real.sum(1)], dim=1))
        if self.trainer.state.fn != "fit":
            reports = self.write(memory)
            for row in batch.valid.nonzero().squeeze(1).tolist():
                self._texts.append((text.raw[row], reports[row]))

    def write(self, memory: Tensor) -> list[str]:
        """The reports that the decoder writes from the vectors ``[B,N,width]`` that ``memory`` returns."""
        reports = self.decoder.search(
            memory,
            beams=self.beams,
            length_penalty=self.length_penalty,
            block_ngram=self.block_ngram,
            never=self.tokenizer.ids_that_are_no_words(self.vocabulary),
        )
        return [self.tokenizer.decode(ids[1:]) for ids in reports.tolist()]

    def finish(self, stage: str, resamples: int) -> None:
        """Compute the likelihood over the whole set. Outside training, measure the written reports too."""
        patients, (likelihoods,) = self._rows.gather()
        weights = bootstrap.figure_and_bootstrap(patients.numpy(), resamples)
        likelihood, pieces = metrics.sums(likelihoods.double().numpy(), weights).T
        n = len(patients)
        self.results = {}
        if stage == "val":  # it chooses a checkpoint; models with other vocabularies cannot be compared by it
            self.results["val/generate/log_likelihood"] = Metric.of(likelihood / pieces, n)
        self.protocol["decoder"] = {  # of the model, not of how it is measured
            "attends to": self.attend,
            "vocabulary": self.tokenizer.size,
            "parameters": sum(p.numel() for p in self.decoder.parameters()),
        }
        self.protocol["generate"] = {
            "tower": self.how_trained(),
            "most word pieces": self.tokenizer.max_tokens,
            "interval": bootstrap.interval_name(resamples),
            "reports": n,
        }
        if self.trainer.state.fn != "fit":
            self._measure(stage, patients.numpy(), likelihoods[:, 0].double().numpy(), resamples)

    def _measure(self, stage: str, group: NDArray[Any], likelihood: NDArray[Any], resamples: int) -> None:
        """Compare all generated reports with their references. Every metric is NaN if a likelihood is no number."""
        columns = zip(*self._texts, strict=True) if self._texts else ((), ())
        references, reports = (self._rows.samples.texts(column) for column in columns)
        kept, how, untold = compared(
            reports,
            references,
            self.labeller,
            uncertain=self.uncertain,
            resamples=resamples,
            rules=self.rules,
            radeval=self.radeval,
            likelihood=likelihood,
        )
        for line in untold:
            rank_zero_info(f"{stage}/generate: {line}")
        figures, facts = self.figures(self._rows, group, "generate", kept)
        if not np.isfinite(likelihood).all():  # as all other figures then
            nan = float("nan")
            self.results = {name: Metric(nan, nan, nan, value.n) for name, value in self.results.items()}
        self.results |= bootstrap.as_metrics(figures, f"{stage}/generate/")
        self.protocol["generate"] |= {
            "search": {"beams": self.beams, "length_penalty": self.length_penalty, "block_ngram": self.block_ngram},
            **how,
            **facts,
        }
