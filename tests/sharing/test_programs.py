"""Programs of torch.export and ONNX give what PyTorch gives, whatever the number of pictures, reports and words."""

import json

import inprocess
import numpy as np
import pytest
import torch
from sharing import PICTURES, REPORTS, trained

from diptych.cli.export import main
from diptych.errors import ConfigError
from diptych.sharing.panels import ImagePanel, ScorePanel, TextPanel, text_inputs
from diptych.sharing.programs import write_programs

pytestmark = pytest.mark.timeout(900)  # the exporters take long on a busy machine

HEADS = {
    "global": "global",
    "local_pooling": "local_pooling",
    "local_pooling softmax": {"attention": "softmax", "region_places": True, "joining": "learned"},
    "local_pooling scan": {"attention": "scan", "pooling": "logmeanexp"},
    "local_pooling raw": {"attention": "raw", "pooling": "best_word"},
    "local_pooling max": {"pooling": "max"},
    "reclf": {"matching_width": 8},
    "reclf parallel": {"matching_width": 8, "mode": "parallel", "word_relations": True},
    "mgca": {"prototypes": 8, "hidden": 16},
    "pcma": {"queries": 5},
    "pcma sinkhorn": {"queries": 5, "matching": "sinkhorn", "sentence_weights": "learned"},
    "composite": {"heads": ["global", "local_pooling", "cce"]},
}


VIT = {
    "name": "vit_tiny_patch16_224",
    "pretrained": False,
    "model_args": {"img_size": 32, "depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 8},
}
SMALLEST = {"class_path": "diptych.TimmImage", "init_args": VIT}


def head_of(name):
    options = HEADS[name]
    return options if isinstance(options, str) else {"class_path": name.partition(" ")[0], "init_args": options}


def twins(folder, model, kind):
    """Scores by the programs alone, from pictures and texts, and those of the model."""
    described = json.loads((folder / "programs.json").read_text())["programs"]

    def run(name, given):
        file, inputs, outputs = (described[name][key] for key in ("file", "inputs", "outputs"))
        if kind == "onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(folder / file)
            values = session.run(outputs, {key: given[key] for key in inputs})
            return dict(zip(outputs, values, strict=True))
        program = torch.export.load(folder / file).module()
        tensors = {key: torch.from_numpy(given[key]) for key in inputs}
        if name == "score":
            sides = [
                {key.partition(".")[2]: value for key, value in tensors.items() if key.startswith(side)}
                for side in ("image.", "text.")
            ]
            return {key: value.detach().numpy() for key, value in program(*sides).items()}
        return {key: value.detach().numpy() for key, value in program(*tensors.values()).items()}

    image = run("image", {"picture": np.stack(PICTURES)[:, None]})
    text = run("text", {key: value.numpy() for key, value in text_inputs(model.module.tokenizer(REPORTS)).items()})
    both = {
        f"{side}.{key.removeprefix('embedding.')}": value
        for side, values in (("image", image), ("text", text))
        for key, value in values.items()
    }
    return run("score", both)["score"], model.similarity(PICTURES, REPORTS).numpy()


def embedded(values):
    return {path.removeprefix("embedding."): x for path, x in values.items() if path.startswith("embedding.")}


@pytest.mark.parametrize("name", HEADS)
@torch.inference_mode()
def test_panels_score_as_the_model_does_in_the_form_that_is_exported(name, monkeypatch):
    model = trained(head_of(name), image=SMALLEST)
    module = model.module
    own = model.similarity(PICTURES, REPORTS)
    assert own.std() > 1e-3
    pictures = torch.from_numpy(np.stack(PICTURES)[:, None])
    any_pair = module.embed_image(pictures[:1]), module.embed_prompts(REPORTS[1:2])
    score = ScorePanel(module.head, *any_pair)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    image = ImagePanel(module.encoder.image, module.head)(pictures)
    text = TextPanel(module.encoder.text, module.head)(**text_inputs(module.tokenizer(REPORTS)))
    torch.testing.assert_close(score(embedded(image), embedded(text))["score"], own, rtol=0, atol=2e-6)
    torch.testing.assert_close(image["features"], module.encoder.encode_image(pictures).pooled)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_programs_score_as_the_model_does(tmp_path, kind):
    model = trained("local_pooling", image=SMALLEST)
    gaps = write_programs(model, tmp_path / "programs", kind)
    assert set(gaps) == {"image", "text", "score"}
    assert all(gap <= 1e-5 for gap in gaps.values())
    programs, own = twins(tmp_path / "programs", model, kind)
    np.testing.assert_allclose(programs, own, atol=1e-5)
    assert own.std() > 1e-3
    assert (tmp_path / "programs" / "tokenizer.json").read_text() == model.module.tokenizer.state()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("global", "onnx"),
        ("local_pooling raw", "onnx"),
        ("reclf", "onnx"),
        ("pcma sinkhorn", "onnx"),
        ("mgca", "onnx"),
        ("global", "torch"),
        ("local_pooling softmax", "torch"),
        ("mgca", "torch"),
        ("pcma", "torch"),
    ],
)
def test_every_head_scores_so(tmp_path, name, kind):
    model = trained(head_of(name), image=SMALLEST)
    write_programs(model, tmp_path / "programs", kind)
    programs, own = twins(tmp_path / "programs", model, kind)
    np.testing.assert_allclose(programs, own, atol=1e-5)


@pytest.mark.slow
def test_a_convolutional_tower_is_exported_too(tmp_path):
    model = trained("local_pooling")
    write_programs(model, tmp_path / "programs", "onnx")
    np.testing.assert_allclose(*twins(tmp_path / "programs", model, "onnx"), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "options", "kind", "reason"),
    [
        (
            "pcma",
            {"matching": "hungarian"},
            "torch",
            "matching hungarian is solved by scipy, which a program cannot hold",
        ),
        ("reclf", {"matching_width": 8}, "torch", r"the score program \(Reclf\) cannot be exported \(.*Guard failed"),
    ],
)
def test_what_no_program_holds_is_refused_with_the_reason(tmp_path, head, options, kind, reason):
    model = trained({"class_path": head, "init_args": options}, image=SMALLEST)
    with pytest.raises(ConfigError, match=reason):
        write_programs(model, tmp_path / "programs", kind)
    assert not list((tmp_path / "programs").iterdir())


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_a_module_named_by_a_word_of_python_is_refused(tmp_path, kind):
    with pytest.raises(ConfigError, match="has a module named 'global', a word of Python"):
        write_programs(trained(head_of("composite"), image=SMALLEST), tmp_path / "programs", kind)


def test_the_command_writes_each_form(tmp_path, capsys):
    folder = trained("global").save_pretrained(tmp_path / "model")
    for form, file in {"hub": "README.md", "timm": "config.json", "transformers": "tokenizer.json"}.items():
        main([str(folder), "--to", form, "--out", str(tmp_path / form)])
        assert (tmp_path / form / file).is_file()
        assert f"written: {tmp_path / form}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([str(folder), "--to", "timm", "--out", str(tmp_path / "x"), "--licence", "mit"])
    assert "--licence and --push are of --to hub" in capsys.readouterr().err
    done = inprocess.diptych("--help")
    assert done.returncode == 0
