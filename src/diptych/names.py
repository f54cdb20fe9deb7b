"""The public names of diptych and where each is defined, read without importing anything.

A configuration may name any of these classes without its module, as ``TimmImage``. A checkpoint may name only these classes
and those of the catalogue (:mod:`diptych.plugins`).
"""

from __future__ import annotations

__all__ = ["PUBLIC", "RENAMED", "public_path"]

_BY_MODULE = {
    "data.datamodule": "RadiographDataModule",
    "data.dataset": "RadiographDataset Sample",
    "data.loading": "Loading",
    "data.splits": "Fractions",
    "data.tables": "Columns",
    "errors": "ConfigError DataError DiptychError",
    "evaluation.base": "Evaluator",
    "evaluation.class_retrieval": "ClassRetrieval",
    "evaluation.grounding": "Grounding",
    "evaluation.multi_resolution": "MultiResolution",
    "evaluation.prompts": "PromptSet load_prompts",
    "evaluation.retrieval": "Retrieval",
    "evaluation.retrieved_reports": "RetrievedReports",
    "evaluation.zero_shot": "ZeroShot",
    "head": "AlignmentHead gather_pairs tell_step",
    "metrics.bootstrap": "Metric",
    "model.encoder": "DualEncoder",
    "model.inference": "TrainedModel load",
    "model.module": "AlignmentModule",
    "model.pretrained": "from_pretrained push_to_hub save_pretrained",
    "nn.norm": "GlobalBatchNorm",
    "reports.chexbert": "Chexbert",
    "reports.labeller": "Labeller Rules",
    "reports.tokenizer": "Tokenizer",
    "tasks.attentive_probe": "AttentiveProbe",
    "tasks.base": "PyramidTask Task TrainedTask",
    "tasks.detect": "Detect",
    "tasks.few_shot": "FewShot",
    "tasks.finetune": "FineTune",
    "tasks.generate": "Generate",
    "tasks.multiple_instance": "MultipleInstance",
    "tasks.probe": "Probe",
    "tasks.segment": "Segment",
    "tasks.trained_image": "TrainedImage",
    "towers.base": "Tower",
    "towers.fused": "FusedImage",
    "towers.image": "ImageTower TimmImage",
    "towers.transformers_image": "TransformersImage",
    "towers.lora": "LoraImage LoraText",
    "towers.open_clip": "OpenClipImage OpenClipText",
    "towers.text": "ScratchText TextTower TransformersText",
    "training.figures": "Figures",
    "types": "Batch Dims Embedding Features Pairs TextBatch TokenEmbedding",
}

PUBLIC = {name: f"diptych.{module}" for module, names in _BY_MODULE.items() for name in names.split()}
"""The module that defines each public name."""

RENAMED = {"AlignmentModel": "TrainedModel", "Located": "PyramidTask", "Tuned": "TrainedTask"}
"""The present name for each old public name. Configurations, checkpoints and imports with old names keep working."""


def public_path(name: str) -> str | None:
    """The path ``diptych.NAME`` of a public name, or None. It is what configurations and checkpoints store.

    Any module of diptych may stand before the name. So a path keeps its meaning when the module moves. An old name
    (:data:`RENAMED`) means the present one.

    >>> public_path("TimmImage"), public_path("diptych.image.TimmImage")
    ('diptych.TimmImage', 'diptych.TimmImage')
    >>> public_path("diptych.task.Tuned")
    'diptych.TrainedTask'
    >>> public_path("torch.nn.Linear") is None
    True
    """
    before, _, last = name.rpartition(".")
    last = RENAMED.get(last, last)
    known = last in PUBLIC and (not before or before.partition(".")[0] == "diptych")
    return f"diptych.{last}" if known else None
