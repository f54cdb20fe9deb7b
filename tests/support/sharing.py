"""Small models to be shared, built from a configuration as a run builds them."""

import numpy as np
import torch
from mini import IMAGE, TEXT

from diptych.model.inference import TrainedModel
from diptych.model.stored import build_module

REPORTS = [
    "There is a left effusion. No nodule is seen, the heart is small.",
    "No effusion.",
    "A nodule in the right lung. The heart is large. No effusion is seen here or there.",
    "The heart is large.",
]
PICTURES = list(np.random.default_rng(0).integers(0, 255, (5, 32, 32)).astype(np.uint8))


def trained(head, image=None, text=None):
    """A model of 32 pixels with a head, and with other towers where they are given."""
    torch.manual_seed(0)
    config = {
        "image": {"class_path": "diptych.TimmImage", "init_args": {**IMAGE, "stage": 2, "mean": 0.4, "std": 0.3}},
        "text": {"class_path": "diptych.ScratchText", "init_args": {**TEXT, "max_tokens": 64, "least_patients": 1}},
        "head": head,
    }
    module = build_module(config | {name: tower for name, tower in (("image", image), ("text", text)) if tower})
    if module.tokenizer.learnable:
        module.tokenizer.learn(REPORTS)
    with torch.no_grad():  # batch statistics and biases other than those of a new model
        for name, value in module.state_dict().items():
            if name.endswith(("running_mean", "running_var", ".bias")):
                value.add_(torch.rand_like(value) / 4)
    return TrainedModel(module, 32)
