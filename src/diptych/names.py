"""The public names of diptych and where each is defined, read without importing anything.

A configuration may name any of these classes bare, as ``TimmImage``. A checkpoint may name these and the catalogue's
(:mod:`diptych.plugins`), and nothing else.
"""

from __future__ import annotations

__all__ = ["PUBLIC", "public_path"]

_BY_MODULE = {
    "chexbert": "Chexbert",
    "class_retrieval": "ClassRetrieval",
    "data": "Loading RadiographDataModule RadiographDataset Sample",
    "detect": "Detect",
    "encoder": "DualEncoder",
    "errors": "ConfigError DataError DiptychError",
    "evaluation": "Evaluator Retrieval ZeroShot",
    "few_shot": "FewShot",
    "figures": "Figures",
    "finetune": "FineTune",
    "generate": "Generate",
    "grounding": "Grounding",
    "head": "AlignmentHead gather_pairs",
    "image": "ImageTower TimmImage",
    "labeller": "Labeller Rules",
    "loading": "AlignmentModel load",
    "metrics": "Metric",
    "module": "AlignmentModule",
    "multi_resolution": "MultiResolution",
    "multiple_instance": "MultipleInstance",
    "norm": "GlobalBatchNorm",
    "probe": "Probe",
    "prompts": "PromptSet load_prompts",
    "segment": "Segment",
    "tables": "Columns Fractions",
    "task": "Located Task Tuned",
    "text": "ScratchText TextTower TransformersText",
    "tokenizer": "Tokenizer",
    "tower": "Tower",
    "trained": "TrainedImage",
    "types": "Batch Dims Embedding Features Pairs TextBatch TokenEmbedding",
}

PUBLIC = {name: f"diptych.{module}" for module, names in _BY_MODULE.items() for name in names.split()}
"""Public name to the module that defines it."""


def public_path(name: str) -> str | None:
    """The import path of a public name, given bare, as ``diptych.NAME``, or with any module of diptych before it.

    The last holds for modules that have moved since: ``diptych.<gone>.TimmImage`` means ``TimmImage``.
    """
    before, _, last = name.rpartition(".")
    if last not in PUBLIC or (before and before.partition(".")[0] != "diptych"):
        return None
    return f"{PUBLIC[last]}.{last}"
