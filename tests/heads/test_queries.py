"""A trained head's queries, kept beside its image tower for a decoder to attend to."""

import json
from types import SimpleNamespace

import pytest
import torch
from generating import REPORTS, batch_of, recipe, tiny
from inprocess import diptych
from mini import config, write_pairs

from diptych.data.loading import Loading
from diptych.errors import ConfigError
from diptych.head import Extracts
from diptych.model.inference import load
from diptych.tasks.generate import Generate
from diptych.tasks.trained_image import TrainedImage

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Checkpoints of runs with and without queries."""
    folder = tmp_path_factory.mktemp("pretrained")
    table = write_pairs(folder / "pairs")
    best = {}
    for head, options in (("pcma", ["--model.head.width", "16", "--model.head.queries", "5"]), ("global", [])):
        (folder / f"{head}.yaml").write_text(config(table, head=head, epochs=1))
        done = diptych("fit", "-c", str(folder / f"{head}.yaml"), *options, "--run", str(folder / head))
        assert done.returncode == 0, done.stderr
        best[head] = str(folder / head / "checkpoints" / "best.ckpt")
    return folder, table, best


@pytest.mark.parametrize("attend", ["queries", "both"])
def test_a_decoder_attends_to_the_queries_of_a_head(pretrained, attend):
    tower = TrainedImage(pretrained[2]["pcma"], queries=True)
    assert tower.query_width == 16
    task = tiny(image=tower, attend=attend)
    batch = batch_of(task.tokenizer)
    memory = task.memory(batch.image)
    regions = tower(batch.image).tokens.shape[1]
    assert memory.shape == (len(REPORTS), 5 if attend == "queries" else regions + 5, 16)
    model = load(pretrained[2]["pcma"])
    observations = model.module.embed_image(batch.image).tokens
    torch.testing.assert_close(memory[:, -5:], task.queries(observations))
    task._costs(memory, batch.text)[0].sum().backward()
    assert tower.head.extractor.queries.grad.abs().sum() > 0
    assert (task.regions is None) == (attend == "queries")


def test_only_what_is_attended_to_is_trained(pretrained, monkeypatch):
    monkeypatch.setattr(Generate, "data", SimpleNamespace(loading=Loading(image_size=32)))
    task = tiny(image=TrainedImage(pretrained[2]["pcma"], queries=True, layer_decay=0.5), attend="queries").train()
    task.configure_model()
    assert task.training
    batch = batch_of(task.tokenizer)
    task._costs(task.memory(batch.image), batch.text)[0].sum().backward()
    for name, parameter in task.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert not task.image.head.text_projection.weight.requires_grad
    assert task.image.layer_of("head.extractor.queries") == task.image.num_layers
    frozen = tiny(image=TrainedImage(pretrained[2]["pcma"], queries=True, frozen=True), attend="both").train()
    frozen.configure_model()
    assert not any(parameter.requires_grad for parameter in frozen.image.parameters())
    assert not any(module.training for module in frozen.image.tower.modules())


def test_a_run_on_queries_is_fitted_and_tested(pretrained, tmp_path):
    _, table, best = pretrained
    image = {"class_path": "TrainedImage", "init_args": {"checkpoint": best["pcma"], "queries": True, "frozen": True}}
    file = recipe(tmp_path, table, "queries", image=image, options={"attend": "both"}, max_epochs=1)
    for command in (["fit"], ["test", "--ckpt_path", "best"]):
        done = diptych(command[0], "-c", file, "--run", str(tmp_path / "run"), *command[1:])
        assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "results.json").read_text())
    assert result["protocol"]["decoder"]["attends to"] == "both"
    assert result["protocol"]["tower"]["head"] == "diptych_heads.pcma.Pcma"


def test_which_heads_have_queries_that_extract(pretrained):
    from diptych.model.building import register_names
    from diptych_heads.composite import Composite
    from diptych_heads.global_ import Global
    from diptych_heads.pcma import Pcma

    register_names()
    dims = load(pretrained[2]["pcma"]).module.encoder.dims
    both = Composite(dims, heads=[lambda d: Global(d), lambda d: Pcma(d, width=16)])
    assert isinstance(both, Extracts)
    assert not isinstance(Composite(dims, heads=[lambda d: Global(d)]), Extracts)
    with pytest.raises(
        ConfigError, match=r"queries is true, and its head Global has none that extract anything; use a run"
    ):
        TrainedImage(pretrained[2]["global"], queries=True)
    image = TrainedImage(pretrained[2]["global"]).eval()
    features = image(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ConfigError, match="TrainedImage has no queries; use TrainedImage with queries: true"):
        image.queries(features)
