"""Report generation: a transformer decoder on what the image tower gives, frozen or trained along, and beam search."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from diptych import distributed
from diptych.errors import ConfigError
from diptych.escaping import csv_rows
from diptych.evaluation.rows import Rows
from diptych.files import replace_text
from diptych.metrics import bootstrap
from diptych.metrics import generated_text as nlg
from diptych.metrics import measures as metrics
from diptych.metrics.bootstrap import Metric
from diptych.metrics.clinical import clinical
from diptych.nn.functional import sine_code
from diptych.reports.labeller import Labeller, Rules
from diptych.reports.tokenizer import Tokenizer
from diptych.tasks.base import TrainedTask
from diptych.towers.image import ImageTower
from diptych.types import Batch, TextBatch

__all__ = ["Decoder", "Generate", "grid_code"]

Attend = Literal["regions", "queries", "both"]

_START, _END = 2, 3  # [CLS] and [SEP] of every learned vocabulary


def grid_code(grid: tuple[int, int], width: int) -> Tensor:
    """Sines and cosines of row and column, half of the width each: ``[rows*columns,width]``.

    As in arXiv 1706.03762, in two dimensions; it has no parameters, so that any image size will do.
    """
    places = torch.cartesian_prod(*(torch.arange(float(side)) for side in grid))
    return sine_code(places, width, base=100.0)


class Decoder(nn.Module):
    """GPT-2 with cross-attention, of transformers, from random weights: its search keeps what was computed of a beginning.

    Args:
        vocabulary: rows of the table of word pieces.
        max_tokens: most word pieces of a report, start and end included.
        width: of the vectors, a multiple of ``heads``.
        layers: decoder layers.
        heads: attention heads.
        dropout: of embeddings, attention and layers, 0 to 1.
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
        """Logits ``[B,P,vocabulary]`` of the piece after each of ``ids`` ``[B,P]``, given ``memory`` ``[B,N,width]``.

        Padding must be on the right, where no real piece sees it.
        """
        logits: Tensor = self.model(input_ids=ids, encoder_hidden_states=memory, use_cache=False).logits
        return logits

    @torch.no_grad()
    def search(
        self, memory: Tensor, *, beams: int, length_penalty: float, block_ngram: int, never: list[int]
    ) -> Tensor:
        """The best reports found, ``[B,P]`` with their start, padded after their end; deterministic.

        Args:
            memory: ``[B,N,width]``
            beams: unfinished reports kept at each step; 1 is greedy.
            length_penalty: a finished report's score is its log-likelihood divided by its length to this power.
            block_ngram: no run of so many pieces is written twice; 0 allows all.
            never: pieces that are not written.
        """
        start = torch.full((len(memory), 1), _START, dtype=torch.int64, device=memory.device)
        options: dict[str, Any] = {"max_length": self.max_tokens, "do_sample": False, "num_beams": beams}
        if beams > 1:  # "never" stop early: only when no unfinished report can still become the best
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
    """Writes the report of a radiograph: a transformer decoder that attends to the tower's regions, to its queries, or to both.

    The tower is trained along, lower layers more slowly where it has a ``layer_decay``, or ``frozen`` and then in evaluation
    mode. The loss is the cross entropy of every word piece after those before it. The vocabulary is that of the training
    reports, and is stored in the checkpoint. Within training, validation computes ``generate/log_likelihood`` (mean over word
    pieces) alone, which chooses the checkpoint and costs one pass; ``diptych validate`` and ``test`` write the reports and
    measure them: BLEU, METEOR, ROUGE-L and CIDEr (:mod:`diptych.metrics.generated_text`), and precision, recall and F1 of the
    findings that a labeller reads in them and in the references (:mod:`diptych.metrics.clinical`). The reports of the
    test are in the run's ``reports.csv``.

    Args:
        image: the tower; its ``layer_decay``, ``frozen`` and ``freeze_layers`` hold here.
        attend: to the tower's ``regions``, to its ``queries`` (``TrainedImage`` with ``queries: true``, of a run whose head
            has some, as ``pcma``), or to ``both``.
        width: of the decoder, a multiple of ``heads``.
        layers: of the decoder.
        heads: of its attention.
        dropout: of the decoder, 0 to 1.
        vocabulary: most word pieces that are learned, at least 77.
        least_patients: patients whose reports must share a word for it to be learned; rarer words, which may be names, are
            spelled in letters.
        max_tokens: most word pieces of a report, start and end included; longer references lose their last sentences in
            training, and none in evaluation.
        beams: of the search; 1 is greedy.
        length_penalty: of the search: scores are divided by the length to this power.
        block_ngram: no run of so many word pieces is written twice; 0 allows all.
        labeller: what reads the findings; the rules of :mod:`diptych.reports.labeller` if not given.
        uncertain: a finding that is uncertain counts as present in the clinical metrics; otherwise as absent.
        lr: peak of the decoder and of the tower's top layer.
        weight_decay: of AdamW, on weight matrices.
        warmup: steps of linear warm-up, or its share of all steps where below 1.
        lr_floor: share of ``lr`` at the end of the cosine.
        resamples: of the bootstrap on the test; 0 for no intervals.

    Raises:
        ConfigError: an argument out of its range, no queries where they are asked for, or nltk is not installed.
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
        labeller: Labeller | None = None,
        uncertain: bool = False,
        lr: float = 3e-4,
        weight_decay: float = 0.05,
        warmup: float = 0.05,
        lr_floor: float = 0.01,
        resamples: int = 1000,
    ) -> None:
        super().__init__(image, lr=lr, weight_decay=weight_decay, warmup=warmup, lr_floor=lr_floor, resamples=resamples)
        nlg.need_nltk()
        for name, value, fits, remedy in (
            ("heads", heads, heads >= 1, "at least 1"),
            ("width", width, width >= 4 and width % max(1, heads) == 0, f"a multiple of heads={heads}, at least 4"),
            ("vocabulary", vocabulary, vocabulary >= 77, "at least 77"),
            ("layers", layers, layers >= 1, "at least 1"),
            ("dropout", dropout, 0 <= dropout < 1, "0 or more, below 1"),
            ("beams", beams, beams >= 1, "at least 1"),
            ("block_ngram", block_ngram, block_ngram >= 0, "0 or more"),
        ):
            if not fits:
                raise ConfigError(f"Generate: {name} is {value}; give {remedy}")
        if attend != "regions" and not image.query_width:
            raise ConfigError(
                f"Generate: attend is '{attend}', and {type(image).__name__} has no queries; use TrainedImage with queries: "
                "true, of a run whose head has some, as pcma"
            )
        self.attend: Attend = attend
        self.beams, self.length_penalty, self.block_ngram = beams, length_penalty, block_ngram
        self.labeller, self.uncertain = labeller or Rules(), uncertain
        self.tokenizer = Tokenizer(None, max_tokens, vocabulary=vocabulary, least_patients=least_patients)
        self.vocabulary = vocabulary
        self.regions, self.queries = (
            nn.Sequential(nn.Linear(size, width), nn.LayerNorm(width)) if attend in (of, "both") else None
            for of, size in (("regions", image.token_width), ("queries", image.query_width))
        )
        self.decoder = Decoder(vocabulary, max_tokens, width=width, layers=layers, heads=heads, dropout=dropout)

    def get_extra_state(self) -> dict[str, str]:
        """What a checkpoint carries besides weights: the vocabulary, as JSON."""
        return {"tokenizer": self.tokenizer.state()}

    def set_extra_state(self, state: dict[str, str]) -> None:
        """Take the vocabulary of a checkpoint."""
        self.tokenizer.load(state["tokenizer"])

    def setup(self, stage: str) -> None:
        """Have the data read reports, and learn their vocabulary before training.

        Raises:
            ConfigError: the data have no reports.
        """
        super().setup(stage)
        self.data.tokenizer = self.tokenizer
        if stage == "fit":
            reports = list(self.data.datasets["train"].texts_by_patient()) if "train" in self.data.datasets else []
            if not any(text.strip() for _, text in reports):
                raise self._no_reports()
            self.tokenizer.learn([text for _, text in reports], [patient for patient, _ in reports])

    def configure_model(self) -> None:
        """Train what the decoder attends to."""
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
        """What the decoder attends to in radiographs ``[B,1,H,V]``: ``[B,N,width]``."""
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
        """Cross entropy of each word piece after the first ``[B,P-1]``, 0 at padding, and which are real."""
        real = text.attention_mask[:, 1:]
        logits = self.decoder(memory, text.input_ids[:, :-1])[..., : self.tokenizer.size].float()
        return F.cross_entropy(logits.transpose(1, 2), text.input_ids[:, 1:], reduction="none") * real, real

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean over the word pieces of all processes, exactly: DDP averages what each gives."""
        costs, real = self._costs(self.memory(batch.image), self._reports(batch))
        loss = distributed.mean_loss(costs.sum(), real.sum())
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        return loss

    def begin(self) -> None:
        """Begin a pass: likelihoods and texts are collected."""
        self._rows = Rows(self.device, 2)
        self._texts: list[tuple[str, str, str]] = []  # of this process: id, reference, generated

    def collect(self, batch: Batch) -> None:
        """Collect the likelihoods of a batch's reports; outside training, write reports too."""
        text, memory = self._reports(batch), self.memory(batch.image)
        costs, real = self._costs(memory, text)
        self._rows.add(batch, torch.stack([-costs.sum(1), real.sum(1)], dim=1))
        if self.trainer.state.fn != "fit":
            written = self.write(memory)
            for row in batch.valid.nonzero().squeeze(1).tolist():
                self._texts.append((batch.ids[row], text.raw[row], written[row]))

    def write(self, memory: Tensor) -> list[str]:
        """The reports that the decoder writes from the vectors ``[B,N,width]`` of :meth:`memory`."""
        reports = self.decoder.search(
            memory,
            beams=self.beams,
            length_penalty=self.length_penalty,
            block_ngram=self.block_ngram,
            never=self.tokenizer.ids_that_are_no_words(self.vocabulary),
        )
        return [self.tokenizer.decode(ids[1:]) for ids in reports.tolist()]

    def finish(self, stage: str, resamples: int) -> None:
        """The likelihood over the whole set; outside training, the measures of the written reports too."""
        patients, (gathered,) = self._rows.gather()
        weights = bootstrap.figure_and_bootstrap(patients.numpy(), resamples)
        likelihood, pieces = metrics.sums(gathered.double().numpy(), weights).T
        n = len(patients)
        self.results = {}
        if stage == "val":  # of one vocabulary: it chooses a checkpoint, and compares no models
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
            # A diverged model writes something too, above all what is read as "No Finding".
            self._measure(stage, weights, broken=not bool(gathered.isfinite().all()))

    def _measure(self, stage: str, weights: Any, broken: bool) -> None:
        """Compare all generated reports with their references, and write those of the test down; no figures if broken."""
        columns = zip(*self._texts, strict=True) if self._texts else ((), (), ())
        ids, references, written = (self._rows.samples.texts(column) for column in columns)
        of_text = nlg.scores(written, references, weights)
        found, real = self.labeller(written), self.labeller(references)
        of_findings, facts = clinical(found, real, weights, self.uncertain)
        start = f"{stage}/generate"
        self.results |= {f"{start}/{name}": Metric.of(values, len(ids)) for name, values in of_text.items()}
        self.results |= {f"{start}/clinical/{name}": value for name, value in of_findings.items()}
        if broken:
            nan = float("nan")
            self.results = {name: Metric(nan, nan, nan, value.n) for name, value in self.results.items()}
        self.protocol["generate"] |= {
            "search": {"beams": self.beams, "length_penalty": self.length_penalty, "block_ngram": self.block_ngram},
            "text": nlg.FACTS,
            "labeller": self.labeller.origin,
            "clinical": facts,
        }
        if stage == "test" and self.trainer.is_global_zero and not self.data.loading.private:
            path = Path(self.trainer.default_root_dir) / "reports.csv"
            rows = zip(ids, references, written, strict=True)
            replace_text(path, csv_rows([("id", "reference", "generated"), *rows]))
            rank_zero_info(f"written: {path}, with the reports themselves; keep it where the data may be")
