"""Runs of untrained models with sharp maps, as folders that ``diptych.load`` takes, and files to ask them about."""

import hostile
import pytest
import torch
from mini import IMAGE, TEXT, write_pairs

from diptych.model.stored import build_module

HEADS = {
    "local": {"class_path": "local_pooling", "init_args": {"attention": "softmax", "attention_temperature": 0.01}},
    "flat": {"class_path": "local_pooling", "init_args": {"attention": "softmax", "attention_temperature": 1e4}},
    "whole": "global",
}
REPORTS = ["There is no nodule.", "There is an effusion.", "<b>Both</b> & more."]


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("app")
    write_pairs(root / "pairs", n=3, size=48)
    (root / "scan").write_bytes(hostile.dicom("ExplicitVRLittleEndian"))
    (root / "reports.txt").write_text("\n".join(REPORTS))
    for name, head in HEADS.items():
        config = {
            "image": {"class_path": "TimmImage", "init_args": {**IMAGE, "stage": 3}},
            "text": {"class_path": "ScratchText", "init_args": TEXT},
            "head": head,
        }
        torch.manual_seed(1)
        module = build_module(config)
        module.tokenizer.learn(REPORTS)
        evaluators = [{"class_path": "ZeroShot", "init_args": {"prompts": "rsna"}}]
        stored = {"config": {**config, "evaluators": evaluators}, "head": name, "image_size": 64}
        (root / name / "checkpoints").mkdir(parents=True)
        torch.save({"state_dict": module.state_dict(), "diptych": stored}, root / name / "checkpoints" / "best.ckpt")
    return root
