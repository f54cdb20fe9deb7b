"""Checkpoints from elsewhere run nothing: a hostile one is refused in one line, watched by an audit hook."""

import copy
import json
import sys
import zipfile
from collections import OrderedDict

import inprocess
import pytest
import torch
import yaml
from mini import IMAGE, TEXT, config, write_pairs
from refusing import COMMAND, WORDS, at, refused, tensor
from watched import watched

import diptych
from diptych import names
from diptych.errors import ConfigError
from diptych.model import building
from diptych.model.stored import build_module
from diptych.tasks.base import Task

HEADS = ["local_pooling", {"class_path": "global", "init_args": {"width": 16}}]


@pytest.fixture(scope="module")
def good():
    """A checkpoint's contents, as a run leaves them."""
    torch.manual_seed(0)
    module = build_module(
        {
            "image": {"class_path": "diptych.towers.image.TimmImage", "init_args": IMAGE},
            "text": {"class_path": "diptych.towers.text.ScratchText", "init_args": TEXT},
            "head": {"class_path": "composite", "init_args": {"heads": HEADS, "shares": [1.0, 0.5]}},
            "evaluators": [{"class_path": "diptych.evaluation.retrieval.Retrieval", "init_args": {"ks": [1, 5]}}],
            "betas": [0.9, 0.98],
        }
    )
    module.tokenizer.learn(["There is a left effusion.", "There is no nodule."])
    return {
        "epoch": 1,
        "global_step": 4,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": OrderedDict(module.state_dict()),
        "diptych": {
            "version": "0.1.0",
            "config": module.config,
            "head": "diptych_heads.composite.Composite",
            "findings": [],
            "image_size": 32,
        },
    }


def within(checkpoint, path, **changes):
    """Change keys of the JSON at ``state_dict/path``; None removes one."""
    extra = checkpoint["state_dict"][path[0]] = dict(checkpoint["state_dict"][path[0]])
    held = {**json.loads(extra[path[1]]), **changes}
    extra[path[1]] = json.dumps(held)
    return checkpoint


TIMM, BERT = ("encoder.image._extra_state", "architecture"), ("encoder.text._extra_state", "architecture")
CONFIG = "diptych/config"


def arguments(checkpoint, **model_args):
    return within(checkpoint, TIMM, model_args={**IMAGE["model_args"], **model_args})


def bert(checkpoint, **changes):
    """As if the text tower were one of the transformers library, with other keys."""
    at(
        checkpoint,
        f"{CONFIG}/text",
        {"class_path": "diptych.towers.text.TransformersText", "init_args": {"max_tokens": 48}},
    )
    return within(checkpoint, BERT, **changes)


def deep(levels, value="x"):
    for _ in range(levels):
        value = [value]
    return value


def bomb(levels=40):
    """A value of 2 ** 40 parts, by sharing; it takes no room in a pickle."""
    value = ["x"]
    for _ in range(levels):
        value = [value, value]
    return value


def loop():
    value = {"class_path": "global"}
    value["init_args"] = value
    return value


CHECKPOINTS = {
    # functions, and modules on the path
    "head os.system": lambda c: at(c, f"{CONFIG}/head", COMMAND),
    "head getoutput": lambda c: at(
        c, f"{CONFIG}/head", {"class_path": "subprocess.getoutput", "init_args": {"cmd": "id"}}
    ),
    "head os.mkdir": lambda c: at(c, f"{CONFIG}/head", {"class_path": "os.mkdir", "init_args": {"path": "/tmp/made"}}),
    "head as text": lambda c: at(c, f"{CONFIG}/head", "os.system"),
    "head builtin": lambda c: at(c, f"{CONFIG}/head/class_path", "builtins.exec"),
    "head eval": lambda c: at(c, f"{CONFIG}/head", {"class_path": "builtins.eval", "init_args": {"source": "1"}}),
    "head evilmod": lambda c: at(c, f"{CONFIG}/head/class_path", "evilmod.Head"),
    "head nested evilmod": lambda c: at(c, f"{CONFIG}/head/class_path", "diptych_heads.composite.evilmod.Head"),
    "head through re-export": lambda c: at(c, f"{CONFIG}/head/class_path", "diptych_heads.composite.re.compile"),
    "head function of ours": lambda c: at(c, f"{CONFIG}/head/class_path", "diptych_heads.composite._answer"),
    "head is a tower": lambda c: at(c, f"{CONFIG}/head/class_path", "diptych.towers.image.TimmImage"),
    "head is abstract": lambda c: at(c, f"{CONFIG}/head/class_path", "diptych.head.AlignmentHead"),
    "head a YAML text": lambda c: at(c, f"{CONFIG}/head", json.dumps(COMMAND)),
    "head a file": lambda c: at(c, f"{CONFIG}/head", "/etc/hostname"),
    "head a number": lambda c: at(c, f"{CONFIG}/head", 7),
    "head missing": lambda c: c["diptych"]["config"].pop("head") and c,
    "head dict_kwargs": lambda c: at(c, f"{CONFIG}/head/dict_kwargs", {"command": "id"}),
    "tower os.system": lambda c: at(c, f"{CONFIG}/image", COMMAND),
    "tower evilmod": lambda c: at(c, f"{CONFIG}/image/class_path", "evilmod.Tower"),
    "tower is a head": lambda c: at(c, f"{CONFIG}/image/class_path", "diptych_heads.global_.Global"),
    "tower antigravity": lambda c: at(c, f"{CONFIG}/text/class_path", "antigravity.webbrowser"),
    "text tower is an image tower": lambda c: at(c, f"{CONFIG}/text/class_path", "diptych.towers.image.TimmImage"),
    "text tower function of ours": lambda c: at(c, f"{CONFIG}/text/class_path", "diptych.load"),
    "tower list": lambda c: at(c, f"{CONFIG}/image", [COMMAND]),
    # nested members and other places
    "member os.system": lambda c: at(c, f"{CONFIG}/head/init_args/heads/0", COMMAND),
    "member as text": lambda c: at(c, f"{CONFIG}/head/init_args/heads/0", "os.system"),
    "members a YAML text": lambda c: at(c, f"{CONFIG}/head/init_args/heads", json.dumps([COMMAND])),
    "member of a member": lambda c: at(
        c, f"{CONFIG}/head/init_args/heads/0", {"class_path": "composite", "init_args": {"heads": [COMMAND]}}
    ),
    "member evilmod": lambda c: at(c, f"{CONFIG}/head/init_args/heads/1/class_path", "evilmod.Head"),
    "argument of a member": lambda c: at(c, f"{CONFIG}/head/init_args/heads/1/init_args/width", COMMAND),
    "evaluator os.system": lambda c: at(c, f"{CONFIG}/evaluators", [COMMAND]),
    "evaluator evilmod": lambda c: at(c, f"{CONFIG}/evaluators/0/class_path", "evilmod.Evaluator"),
    "evaluator as text": lambda c: at(c, f"{CONFIG}/evaluators/0", "evilmod.Evaluator"),
    "evaluator argument": lambda c: at(c, f"{CONFIG}/evaluators/0/init_args/ks", [COMMAND]),
    "evaluators no list": lambda c: at(c, f"{CONFIG}/evaluators", COMMAND),
    "class among plain values": lambda c: at(c, f"{CONFIG}/image/init_args/model_args", {"norm_layer": COMMAND}),
    "class as a number": lambda c: at(c, f"{CONFIG}/lr", COMMAND),
    "unknown argument": lambda c: at(c, f"{CONFIG}/callback", COMMAND),
    "unknown argument of a tower": lambda c: at(c, f"{CONFIG}/text/init_args/hook", "os.system"),
    # stored architectures
    "timm pretrained": lambda c: arguments(c, pretrained=True),
    "timm checkpoint_path": lambda c: arguments(c, checkpoint_path="/etc/passwd"),
    "timm overlay": lambda c: arguments(c, pretrained_cfg_overlay={"url": "http://127.0.0.1:9/w.pth"}),
    "timm pretrained_cfg": lambda c: arguments(c, pretrained_cfg={"file": "/etc/passwd"}),
    "timm cache_dir": lambda c: arguments(c, cache_dir="/tmp/made"),
    "timm from a hub": lambda c: within(c, TIMM, name="hf-hub:somebody/evil"),
    "timm from a folder": lambda c: within(c, TIMM, name="local-dir:/tmp"),
    "timm unknown": lambda c: within(c, TIMM, name="evilnet"),
    "timm more keys": lambda c: within(c, TIMM, weights="http://127.0.0.1:9/w.pth"),
    "timm function": lambda c: arguments(c, norm_layer="os.system"),
    "timm name a number": lambda c: within(c, TIMM, name=5),
    "timm arguments a list": lambda c: within(c, TIMM, model_args=[1]),
    "timm not JSON": lambda c: at(c, f"state_dict/{TIMM[0]}", {"architecture": "{'name': __import__('os')}"}),
    "timm deep JSON": lambda c: at(c, f"state_dict/{TIMM[0]}", {"architecture": "[" * 90_000}),
    "timm long JSON": lambda c: at(c, f"state_dict/{TIMM[0]}", {"architecture": "[" + "1," * 900_000 + "1]"}),
    "timm state a list": lambda c: at(c, f"state_dict/{TIMM[0]}", ["architecture"]),
    "timm state of numbers": lambda c: at(c, f"state_dict/{TIMM[0]}", {"architecture": 1}),
    "timm state missing": lambda c: c["state_dict"].pop(TIMM[0]) and c,
    "timm state empty": lambda c: at(c, f"state_dict/{TIMM[0]}", {}),
    "bert attention from a hub": lambda c: bert(c, attn_implementation="somebody/kernel"),
    "bert attention, private": lambda c: bert(c, _attn_implementation="somebody/kernel"),
    "bert auto_map": lambda c: bert(c, auto_map={"AutoModel": "evilmod.Model"}),
    "bert trust_remote_code": lambda c: bert(c, trust_remote_code=True),
    "bert quantised": lambda c: bert(c, quantization_config={"quant_method": "evil"}),
    "bert of a million labels": lambda c: bert(c, num_labels=10**9),
    "bert of no kind": lambda c: bert(c, model_type="evilmod"),
    "bert kind a list": lambda c: bert(c, model_type=["bert"]),
    "bert is a picture model": lambda c: bert(c, model_type="vit"),
    "bert activation": lambda c: bert(c, hidden_act="os.system"),
    "bert widths of text": lambda c: bert(c, hidden_size="32"),
    "bert of two heads and a half": lambda c: bert(c, num_attention_heads=2.5),
    "bert NaN": lambda c: bert(c, hidden_size=float("nan")),
    "bert infinite": lambda c: bert(c, intermediate_size=float("inf")),
    # tokenizer
    "tokenizer not JSON": lambda c: at(c, f"state_dict/{WORDS[0]}/tokenizer", "import os"),
    "tokenizer a number": lambda c: at(c, f"state_dict/{WORDS[0]}/tokenizer", 5),
    "tokenizer deep": lambda c: at(c, f"state_dict/{WORDS[0]}/tokenizer", '{"model":' + "[" * 50_000),
    "tokenizer empty mapping": lambda c: at(c, f"state_dict/{WORDS[0]}/tokenizer", "{}"),
    "tokenizer of other pieces": lambda c: within(
        c,
        WORDS,
        model={
            "type": "WordPiece",
            "vocab": {"[UNK]": 10**6},
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
    ),
    "tokenizer of huge padding": lambda c: within(
        c,
        WORDS,
        padding={
            "strategy": {"Fixed": 10**9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 10**8,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
    ),
    # absurd shapes
    "width": lambda c: at(c, f"{CONFIG}/head/init_args/heads/1/init_args/width", 10**9),
    "width that would fit": lambda c: at(c, f"{CONFIG}/head/init_args/heads/1/init_args/width", 3 * 10**7),
    "width negative": lambda c: at(c, f"{CONFIG}/head/init_args/heads/1/init_args/width", -1),
    "width of many digits": lambda c: at(c, f"{CONFIG}/head/init_args/heads/1/init_args/width", 10**5000),
    "text width": lambda c: at(c, f"{CONFIG}/text/init_args/width", 2**30),
    "text depth": lambda c: at(c, f"{CONFIG}/text/init_args/depth", 10**9),
    "vocabulary": lambda c: at(c, f"{CONFIG}/text/init_args/vocabulary", 10**10),
    "positions": lambda c: at(c, f"{CONFIG}/text/init_args/max_tokens", 10**9),
    "timm channels": lambda c: arguments(c, channels=[10**7] * 4),
    "timm width": lambda c: arguments(c, stem_width=10**9),
    "timm layers": lambda c: arguments(c, layers=[10**6] * 4),
    "bert widths": lambda c: bert(c, hidden_size=2**24, intermediate_size=2**24),
    "bert layers": lambda c: bert(c, num_hidden_layers=2**24),
    "image size": lambda c: at(c, "diptych/image_size", 10**9),
    "image size none": lambda c: at(c, "diptych/image_size", None),
    "intensity": lambda c: at(c, "diptych/intensity", {"call": "os.system"}),
    "intensity shared": lambda c: at(c, "diptych/intensity", bomb()),
    "image size a text": lambda c: at(c, "diptych/image_size", "32"),
    "weight of another shape": lambda c: tensor(c, lambda w: w[:1]),
    "weight without storage": lambda c: tensor(c, lambda w: w.to("meta")),
    "weight expanded": lambda c: tensor(c, lambda w: torch.zeros(1).expand(10**6, 10**6)),
    "weight sparse": lambda c: tensor(c, lambda w: w.to_sparse()),
    "weight complex": lambda c: tensor(c, lambda w: w.to(torch.complex64)),
    "weight a list": lambda c: tensor(c, lambda w: w.tolist()),
    "weight a text": lambda c: tensor(c, lambda w: "os.system"),
    # deep nesting, and wrong types everywhere
    "deep list": lambda c: at(c, f"{CONFIG}/head/init_args/shares", deep(200)),
    "shared list": lambda c: at(c, f"{CONFIG}/head/init_args/shares", bomb()),
    "within itself": lambda c: at(c, f"{CONFIG}/head", loop()),
    "members without end": lambda c: at(c, f"{CONFIG}/head/init_args/heads", ["global"] * 30_000),
    "configuration a list": lambda c: at(c, CONFIG, [1]),
    "configuration a text": lambda c: at(c, CONFIG, "os.system"),
    "configuration with numbers as keys": lambda c: at(c, CONFIG, {1: COMMAND, **c["diptych"]["config"]}),
    "configuration of a tensor": lambda c: at(c, f"{CONFIG}/lr", torch.ones(3)),
    "configuration empty": lambda c: at(c, CONFIG, {}),
    "stored a list": lambda c: at(c, "diptych", [1, 2]),
    "stored a text": lambda c: at(c, "diptych", "os.system"),
    "stored a tensor": lambda c: at(c, "diptych", torch.ones(3)),
    "task of line breaks": lambda c: at(c, "diptych/task", "a\nTraceback (most recent call last)\x1b[2J"),
    "betas": lambda c: at(c, f"{CONFIG}/betas", [0.9]),
    "rates as text": lambda c: at(c, f"{CONFIG}/lr", "1e-3"),
    "switch as text": lambda c: at(c, f"{CONFIG}/mask_duplicates", "no"),
    "key half a letter": lambda c: at(c, f"{CONFIG}/\ud800", 1),
    "weights a list": lambda c: at(c, "state_dict", []),
    "weights of number keys": lambda c: at(c, "state_dict", {1: torch.ones(1)}),
    "weights none": lambda c: at(c, "state_dict", None),
    "tower in a tower": lambda c: at(
        c, f"{CONFIG}/image", {"class_path": "TrainedImage", "init_args": {"checkpoint": "/dev/zero"}}
    ),
}


def test_the_recorder_sees(evil):
    with watched() as seen:
        with pytest.raises(SystemExit):
            __import__("evilmod")
        import subprocess

        subprocess.run(["true"], check=True)
        (evil / "written").write_text("x")
    assert [event.partition(" ")[0] for event in seen if "evilmod" in event or "written" in event] == ["import", "open"]
    assert any("Popen" in event for event in seen)


def test_the_good_one_loads(good, evil, tmp_path):
    torch.save(good, tmp_path / "good.ckpt")
    with watched() as seen:
        model = diptych.load(tmp_path / "good.ckpt")
    assert not seen
    assert list(model.module.head.members) == ["local_pooling", "global"]
    torch.save(bert(copy.deepcopy(good), architectures=["BertModel"]), tmp_path / "bert.ckpt")
    assert type(diptych.load(tmp_path / "bert.ckpt").module.encoder.text).__name__ == "TransformersText"


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_hostile_checkpoint_runs_nothing(good, evil, tmp_path, name):
    path = tmp_path / "hostile.ckpt"
    torch.save(CHECKPOINTS[name](copy.deepcopy(good)), path)
    message = refused(lambda: diptych.load(path), ConfigError)
    assert str(path) in message


def test_an_archive_that_grows_is_refused(good, tmp_path):
    torch.save(good, tmp_path / "good.ckpt")
    with zipfile.ZipFile(tmp_path / "good.ckpt") as source, zipfile.ZipFile(tmp_path / "bomb.ckpt", "w") as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry), zipfile.ZIP_STORED)
        target.writestr("archive/data/999", bytes(2**26), zipfile.ZIP_DEFLATED)
    assert "more than the file" in refused(lambda: diptych.load(tmp_path / "bomb.ckpt"))


def test_checkpoints_that_name_each_other_end(good, tmp_path):
    path = tmp_path / "itself.ckpt"
    image = {"class_path": "TrainedImage", "init_args": {"checkpoint": str(path)}}
    torch.save(at(copy.deepcopy(good), f"{CONFIG}/image", image), path)
    assert "name each other" in refused(lambda: diptych.load(path))


def test_code_that_is_trusted_by_name_is_built(good, tmp_path, monkeypatch):
    (tmp_path / "my_towers.py").write_text(
        "from diptych.towers.image import TimmImage\nclass Mine(TimmImage):\n    pass\ndef make():\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    checkpoint = at(copy.deepcopy(good), f"{CONFIG}/image/class_path", "my_towers.Mine")
    torch.save(checkpoint, tmp_path / "mine.ckpt")
    assert "my_towers.Mine" in refused(lambda: diptych.load(tmp_path / "mine.ckpt"))
    assert "my_towers" not in sys.modules
    loaded = diptych.load(tmp_path / "mine.ckpt", trust=["my_towers.Mine"])
    assert type(loaded.module.encoder.image).__name__ == "Mine"
    torch.save(at(checkpoint, f"{CONFIG}/image/class_path", "my_towers.make"), tmp_path / "made.ckpt")
    with pytest.raises(ConfigError, match=r"my_towers\.make is no ImageTower"):
        diptych.load(tmp_path / "made.ckpt", trust=["my_towers.make"])


def test_classes_that_have_moved_are_found(good, tmp_path):
    checkpoint = at(copy.deepcopy(good), f"{CONFIG}/image/class_path", "diptych.towers.gone.TimmImage")
    torch.save(checkpoint, tmp_path / "moved.ckpt")
    assert type(diptych.load(tmp_path / "moved.ckpt").module.encoder.image).__name__ == "TimmImage"


def test_old_names_of_classes_mean_the_present_ones(good, tmp_path, monkeypatch):
    for old, new in names.RENAMED.items():
        assert old not in names.PUBLIC
        assert getattr(diptych, old) is getattr(diptych, new)
        if not issubclass(getattr(diptych, new), Task):
            continue
        assert getattr(diptych.tasks, old) is getattr(diptych, new)
        for spelling in (old, f"diptych.{old}", f"diptych.task.{old}"):
            assert names.public_path(spelling) == names.public_path(new)
            assert building.import_object(building._resolve_with_catalogue(Task, spelling)) is getattr(diptych, new)
    # The bases that were renamed are abstract. A class that can be built shows it for a checkpoint.
    monkeypatch.setitem(names.RENAMED, "OldImage", "TimmImage")
    torch.save(at(copy.deepcopy(good), f"{CONFIG}/image/class_path", "diptych.image.OldImage"), tmp_path / "old.ckpt")
    assert type(diptych.load(tmp_path / "old.ckpt").module.encoder.image).__name__ == "TimmImage"


def test_the_command_says_it_in_one_line_and_exits_2(good, evil, tmp_path):
    recipe = tmp_path / "probe.yaml"
    table = write_pairs(tmp_path / "data", n=6)
    for name, change in {
        "head": lambda c: at(c, f"{CONFIG}/head", COMMAND),
        "line breaks": lambda c: at(c, f"{CONFIG}/head/class_path", "a\nb\x1b[31m"),
        "weights": lambda c: tensor(c, lambda w: w.to("meta")),
    }.items():
        path = tmp_path / f"{name}.ckpt"
        torch.save(change(copy.deepcopy(good)), path)
        image = {"class_path": "TrainedImage", "init_args": {"checkpoint": str(path)}}
        described = yaml.safe_load(config(table))
        described["model"] = {"class_path": "Probe", "init_args": {"image": image}}
        described.pop("figures")
        recipe.write_text(yaml.safe_dump(described))
        done = inprocess.diptych("test", "-c", str(recipe), "--run", str(tmp_path / "run"), "--ckpt_path", "none")
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
        assert "\x1b" not in done.stderr
        assert done.stderr.startswith("diptych: error: ")
