"""Files from elsewhere run nothing: hostile checkpoints, stores, results, prompt sets and tables, watched by an audit hook."""

import copy
import hashlib
import json
import sys
import zipfile
import zlib
from collections import OrderedDict
from dataclasses import asdict

import inprocess
import pytest
import torch
import yaml
from mini import IMAGE, TEXT, config, write_pairs
from watched import watched

import diptych
from diptych import names
from diptych.errors import ConfigError, DataError
from diptych.evaluation.prompts import load_prompts
from diptych.model import building
from diptych.model.stored import build_module
from diptych.radiographs.intensity import Intensity
from diptych.radiographs.manifest import FORMAT, PICTURES
from diptych.radiographs.packed import open_images
from diptych.tasks.base import Task

LOUD = "raise SystemExit('evilmod was imported')"
COMMAND = {"class_path": "os.system", "init_args": {"command": "touch /tmp/diptych-was-here"}}
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


def at(checkpoint, path, value):
    """Put a value at a path of keys."""
    *before, last = path.split("/")
    place = checkpoint
    for key in before:
        place = place[int(key) if isinstance(place, list) else key]
    place[int(last) if isinstance(place, list) else last] = value
    return checkpoint


def within(checkpoint, path, **changes):
    """Change keys of the JSON at ``state_dict/path``; None removes one."""
    extra = checkpoint["state_dict"][path[0]] = dict(checkpoint["state_dict"][path[0]])
    held = {**json.loads(extra[path[1]]), **changes}
    extra[path[1]] = json.dumps(held)
    return checkpoint


TIMM, BERT = ("encoder.image._extra_state", "architecture"), ("encoder.text._extra_state", "architecture")
WORDS = ("encoder.text._extra_state", "tokenizer")
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


def tensor(checkpoint, change):
    name = next(name for name, value in checkpoint["state_dict"].items() if getattr(value, "ndim", 0) == 2)
    return at(checkpoint, f"state_dict/{name}", change(checkpoint["state_dict"][name]))


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


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """A folder on the path with a module that says when it is imported."""
    folder = tmp_path_factory.mktemp("evil")
    (folder / "evilmod.py").write_text(LOUD)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def refused(action, kind=(ConfigError, DataError)):
    """The one line that an action gives, which has done nothing else."""
    with watched() as seen, pytest.raises(kind) as caught:
        action()
    assert not seen
    assert "evilmod" not in sys.modules
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert len(message) < 1500
    return message


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


# -- recipes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("head", COMMAND),
        ("head", "os.system"),
        ("head", {"class_path": "made.make"}),
        ("head", "made.make"),
        ("head", "made.typed"),
        ("head", {"class_path": "composite", "init_args": {"heads": ["global", "made.typed"]}}),
        ("head", {"class_path": "composite", "init_args": {"heads": ["global", COMMAND]}}),
        ("image", COMMAND),
        ("image", {"class_path": "made.tower"}),
        ("image", "made.tower"),
        ("text", {"class_path": "subprocess.getoutput", "init_args": {"cmd": "id"}}),
        ("evaluators", [COMMAND]),
        ("evaluators", ["made.evaluator"]),
    ],
)
def test_a_recipe_builds_classes_of_their_base_and_calls_no_function(tmp_path, monkeypatch, where, value):
    (tmp_path / "made.py").write_text(
        "from diptych.head import AlignmentHead\nfrom diptych.towers.image import ImageTower\n"
        "from diptych.evaluation.base import Evaluator\n"
        "def make(dims):\n    raise SystemExit('called')\n"
        "def typed(dims) -> AlignmentHead:\n    raise SystemExit('called')\n"
        "def tower() -> ImageTower:\n    raise SystemExit('called')\n"
        "def evaluator() -> Evaluator:\n    raise SystemExit('called')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("made", None)
    described = yaml.safe_load(config(write_pairs(tmp_path / "data", n=6)))
    described["model"][where] = value
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(described))
    started = []
    with watched() as seen:
        done = inprocess.diptych("fit", "-c", str(tmp_path / "recipe.yaml"), "--run", str(tmp_path / "run"))
        started += [event for event in seen if event.startswith(("os.system", "subprocess", "os.exec"))]
    # jsonargparse looks for the stubs of a function's module, which asks Python for its path
    started = [event for event in started if "json.dumps(sys.path)" not in event]
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "called" not in done.stderr
    assert not started


# -- packed stores -----------------------------------------------------------------------------------------------------

PIXELS = bytes(range(12))
ROWS = [["a/1.png", 0, 2, 3, 4, 6, zlib.crc32(PIXELS[:6])], ["a/2.png", 6, 3, 2, 6, 4, zlib.crc32(PIXELS[6:])]]


def write_store(root, manifest=None, rows=None, unusable=None, notes=None, header=None, **raw):
    """A store of two pictures in one shard, as ``prepare`` writes it, but for what is given."""
    known = {
        "data_set": "tabular", "root": "/data", "size": 32, "per_shard": 2, "files": 2, "key": "0123abcd",
        "intensity": asdict(Intensity()), "format": FORMAT, "pictures": PICTURES, **(manifest or {}),
    }  # fmt: skip
    folder = root / "packed" / "0123abcd"
    folder.mkdir(parents=True)
    (root / "packed.json").write_text(raw.get("manifest_text") or json.dumps(known))
    (folder / "00000.bin").write_bytes(PIXELS)
    held = {"rows": ROWS if rows is None else rows, "unusable": unusable or {}, "notes": {} if notes is None else notes}
    body = raw.get("body") or json.dumps(held).encode()
    head = {
        "crc32": zlib.crc32(body), "key": "0123abcd", "shard": 0, "files": 2, "bytes": len(PIXELS),
        "sha256": hashlib.sha256(PIXELS).hexdigest(), **(header or {}),
    }  # fmt: skip
    (folder / "00000.index").write_bytes(raw.get("head", json.dumps(head).encode()) + b"\n" + body)
    return root


def row(at=1, **changes):
    """The rows with one value of the second changed."""
    names = ["name", "offset", "height", "width", "native_height", "native_width", "crc"]
    changed = [changes.get(name, value) for name, value in zip(names, ROWS[at], strict=True)]
    return {"rows": [ROWS[0], changed]}


STORES = {
    "per_shard 0": {"manifest": {"per_shard": 0}},
    "per_shard negative": {"manifest": {"per_shard": -1}},
    "per_shard a text": {"manifest": {"per_shard": "2"}},
    "per_shard a fraction": {"manifest": {"per_shard": 0.5}},
    "per_shard true": {"manifest": {"per_shard": True}},
    "1e13 files": {"manifest": {"files": 10**13}},
    "1e13 as a fraction": {"manifest": {"files": 1e13}},
    "2e9 files, one a shard": {"manifest": {"files": 2 * 10**9, "per_shard": 1}},
    "files negative": {"manifest": {"files": -5}},
    "files null": {"manifest": {"files": None}},
    "size a list": {"manifest": {"size": [32]}},
    "size 0": {"manifest": {"size": 0}},
    "key of a path": {"manifest": {"key": "../../etc"}},
    "key a number": {"manifest": {"key": 7}},
    "key absolute": {"manifest": {"key": "/etc"}},
    "root a list": {"manifest": {"root": ["/"]}},
    "data set a number": {"manifest": {"data_set": 3}},
    "of another version": {"manifest": {"format": "\n" * 99}},
    "unknown key": {"manifest": {"run": "os.system"}},
    "manifest a list": {"manifest_text": "[1, 2]"},
    "manifest deep": {"manifest_text": "[" * 100_000},
    "manifest a long number": {"manifest_text": '{"format": ' + "9" * 9000 + "}"},
    "manifest long": {"manifest_text": json.dumps({"data_set": "x" * 2**21})},
    "rows without fields": {"rows": [["a/1.png"], ["a/2.png"]]},
    "rows empty": {"rows": []},
    "rows of numbers": {"rows": [1, 2]},
    "rows a mapping": {"rows": {"0": ROWS[0], "1": ROWS[1]}},
    "row of text numbers": row(offset="6"),
    "row of fractions": row(height=1.5),
    "row of NaN": row(width=float("nan")),
    "row of true": row(height=True),
    "row null": row(crc=None),
    "offset negative": row(offset=-1),
    "offset outside": row(offset=10**12),
    "offset just outside": row(offset=7),
    "height negative": row(height=-3, width=-2),
    "height absurd": row(height=10**9, width=10**9),
    "numbers of 100 bits": row(native_height=2**100),
    "name upwards": row(name="../../etc/passwd"),
    "name upwards inside": row(name="a/../../b.png"),
    "name absolute": row(name="/etc/passwd"),
    "name with a dot": row(name="a/./2.png"),
    "name empty": row(name=""),
    "name a number": row(name=2),
    "unusable a list": {"unusable": [1]},
    "unusable far": {"unusable": {"9": ["rule", "why"]}},
    "unusable no number": {"unusable": {"x": ["rule", "why"]}},
    "unusable of no rule": {"unusable": {"0": "rule"}},
    "unusable of numbers": {"unusable": {"0": [1, 2]}},
    "notes a list": {"notes": [1]},
    "notes far": {"notes": {"9": ["told"]}},
    "notes of numbers": {"notes": {"0": [1]}},
    "notes a text": {"notes": {"0": "told"}},
    "intensity a list": {"manifest": {"intensity": [1]}},
    "intensity of other names": {"manifest": {"intensity": {"call": "os.system"}}},
    "intensity of other types": {"manifest": {"intensity": {**asdict(Intensity()), "percentiles": "os.system"}}},
    "index a list": {"body": b"[1, 2]"},
    "index deep": {"body": b"[" * 100_000},
    "index no UTF-8": {"body": b'{"rows": "\xff"}'},
    "header a list": {"head": b"[1]"},
    "header a number": {"head": b"7"},
    "header deep": {"head": b"[" * 100_000},
    "header of bytes as text": {"header": {"bytes": "12"}},
    "header hash a number": {"header": {"sha256": 5}},
}  # fmt: skip


@pytest.mark.parametrize("name", STORES)
def test_a_hostile_store_is_refused_in_one_line(tmp_path, name):
    root = write_store(tmp_path, **STORES[name])
    message = refused(lambda: open_images(root, 16))
    assert str(root) in message
    assert "diptych prepare" in message or name.startswith("intensity")


def test_the_good_store_is_read(tmp_path):
    store = open_images(write_store(tmp_path, unusable={"0": ["rule", "why"]}, notes={"1": ["turned"]}), 16)
    assert store.read(1)[0].tolist() == [[6, 7], [8, 9], [10, 11]]
    assert store.unusable == {0: ("rule", "why")}


# -- results -----------------------------------------------------------------------------------------------------------

FIGURE = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
RESULTS = {
    "empty": "",
    "a list": "[1]",
    "deep": "[" * 200_000,
    "deep in its protocol": '{"metrics": {}, "protocol": ' + '{"a":' * 5000 + "1" + "}" * 5001,
    "metrics a list": json.dumps({"metrics": [FIGURE], "protocol": {}}),
    "figure a text": json.dumps({"metrics": {"test/a/b": {**FIGURE, "value": "0.5"}}, "protocol": {}}),
    "figure a list": json.dumps({"metrics": {"test/a/b": {**FIGURE, "low": [1]}}, "protocol": {}}),
    "figure true": json.dumps({"metrics": {"test/a/b": {**FIGURE, "high": True}}, "protocol": {}}),
    "figure of many digits": '{"metrics": {"test/a/b": {"value": 1' + "0" * 400 + ', "low": 0, "high": 0, "n": 1}}}',
    "n infinite": '{"metrics": {"test/a/b": {"value": 1, "low": 0, "high": 0, "n": 1e999}}, "protocol": {}}',
    "n null": json.dumps({"metrics": {"test/a/b": {**FIGURE, "n": None}}, "protocol": {}}),
    "n a fraction": json.dumps({"metrics": {"test/a/b": {**FIGURE, "n": 1.5}}, "protocol": {}}),
    "no protocol": json.dumps({"metrics": {"test/a/b": FIGURE}, "protocol": "os.system"}),
    "names of one part": json.dumps({"metrics": {"loss": FIGURE}, "protocol": {}}),
    "half a letter": '{"metrics": {"test/a/\\ud800": {"value": 1, "low": 0, "high": 0, "n": 1}}, "protocol": {}}',
    "half a letter in the head": json.dumps({"metrics": {"test/a/b": FIGURE}, "protocol": {}, "head": "\ud800"}),
    "no UTF-8": b"\xff\xfe{",
    "seed a list": json.dumps({"metrics": {"test/a/b": FIGURE}, "protocol": {}, "seed": [[1]]}),
}


@pytest.mark.parametrize("name", RESULTS)
def test_hostile_results_are_refused_in_one_line(tmp_path, name):
    content = RESULTS[name]
    (tmp_path / "results.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with watched() as seen:
        done = inprocess.diptych("table", str(tmp_path))
    assert done.returncode == 2, done.stdout
    assert done.stderr.count("\n") == 1
    assert "results.json" in done.stderr
    assert not seen


# -- prompt sets -------------------------------------------------------------------------------------------------------

HEAD = "name: a\nversion: 1\nsource: b\n"
LAUGHS = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]\n" for i in range(1, 10))
PROMPTS = {
    "object": HEAD + "findings: !!python/object/apply:os.system [id]\n",
    "name": "!!python/name:os.system\n",
    "laughs": "l0: &l0 [x]\n" + LAUGHS + HEAD + "findings: *l9\n",
    "laughs as prompts": HEAD + "findings:\n  A:\n    positive: &a [[x, x], [x, x]]\n    negative: [*a, *a]\n",
    "merges": "l0: &l0 {a: 1}\n"
    + "".join(f"l{i}: &l{i} {{<<: [{', '.join([f'*l{i - 1}'] * 10)}]}}\n" for i in range(1, 10)),
    "within itself": HEAD + "findings: &a\n  A: *a\n",
    "deep": "[" * 20_000,
    "deep mapping": HEAD + "findings: " + "{a: " * 5000,
    "product": HEAD
    + f"classes:\n  A:\n    combine: [{', '.join(['[a, b, c, d, e, f, g]'] * 12)}]\n  B: {{prompts: [b]}}\n",
    "long": HEAD + "findings: {A: {positive: [" + "x" * 2_000_000 + "]}}\n",
    "long number": "name: a\nversion: 0x" + "f" * 9000 + "\nsource: b\n",
    "no UTF-8": b"\xff\xfe\x00name",
    "control characters": "name: a\x00\n",
    "date of no day": "name: 2024-99-99\nversion: 1\n",
    "base 60": "name: " + "9:" * 3000 + "9\nversion: 1\n",
    "binary": "name: !!binary '%%%'\n",
    "findings a list": HEAD + "findings: [A]\n",
    "entry a number": HEAD + "findings: {A: 5}\n",
    "name of no text": HEAD + "findings: {1: {positive: [a], negative: [b]}}\n",
    "unknown key": HEAD + "findings: {A: {positive: [a], negative: [b], call: os.system}}\n",
    "key of a list": "? [1, 2]\n: 3\n",
    "key of a mapping": "? {a: b}\n: 3\n",
    "empty": "",
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_hostile_prompt_set_is_refused_in_one_line(tmp_path, name):
    path, content = tmp_path / "set.yaml", PROMPTS[name]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert "set.yaml" in refused(lambda: load_prompts(str(path)), ConfigError)


# -- checkpoints that a run goes on from -------------------------------------------------------------------------------

STATES = {
    "version": lambda c: at(c, "pytorch-lightning_version", "evil"),
    "version a list": lambda c: at(c, "pytorch-lightning_version", [1]),
    "loops a text": lambda c: at(c, "loops", "os.system"),
    "optimisers a number": lambda c: at(c, "optimizer_states", 5),
    "callbacks a list": lambda c: at(c, "callbacks", [COMMAND]),
    "vocabulary": lambda c: at(c, f"state_dict/{WORDS[0]}/tokenizer", "{"),
    "weight": lambda c: tensor(c, lambda w: w.to("meta")),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A recipe, and the contents of a checkpoint of it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "run.yaml").write_text(config(write_pairs(folder / "data", n=12), epochs=1))
    done = inprocess.diptych("fit", "-c", str(folder / "run.yaml"), "--run", str(folder / "run"))
    assert done.returncode == 0, done.stderr
    checkpoint = torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    return folder / "run.yaml", checkpoint


@pytest.mark.parametrize("name", STATES)
def test_a_run_does_not_go_on_from_a_hostile_checkpoint(trained, evil, tmp_path, name):
    recipe, checkpoint = trained
    path = tmp_path / "state.ckpt"
    torch.save(STATES[name](copy.deepcopy(checkpoint)), path)
    options = ["--run", str(tmp_path / "run"), "--ckpt_path", str(path), "--trainer.max_epochs", "2"]
    done = inprocess.diptych("fit", "-c", str(recipe), *options, *inprocess.QUIET)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().split("\n")[-1].startswith("diptych: error: ")
    assert "Traceback" not in done.stderr


# -- tables ------------------------------------------------------------------------------------------------------------

TABLES = {
    "deep.jsonl": b"[" * 100_000,
    "long.jsonl": b'{"image": ' + b"9" * 9000 + b"}",
    "list.jsonl": b"[1, 2]\n",
    "text.jsonl": b'"os.system"\n',
    "bytes.jsonl": b'{"image": "\xff"}\n',
    "nul.csv": b"image,text\n\x00,\x00\x00\n",
    "bytes.csv": b"image,text\n\xff\xfe,x\n",
    "field.csv": b"image,text\n" + b"x" * 200_000 + b",y\n",
    "quote.csv": b'image,text\n"open,x\n' * 3,
    "empty.csv": b"",
    "more.csv": b"image,text\na,b,c,d\n",
    "cut.csv.gz": b"\x1f\x8b\x08\x00\x00\x00",
    "pickle.parquet": b"\x80\x04cos\nsystem\n",
    "magic.parquet": b"PAR1" + b"\xff" * 64 + b"PAR1",
}


@pytest.mark.parametrize("name", TABLES)
def test_a_hostile_table_is_refused_in_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(TABLES[name])
    described = yaml.safe_load(config(tmp_path / name))
    described["data"]["init_args"]["columns"] = {"image": "image", "text": "text"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(described))
    done = inprocess.diptych("fit", "-c", str(tmp_path / "run.yaml"), "--run", str(tmp_path / "run"))
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().split("\n")[-1].startswith("diptych: error: ")
    assert "Traceback" not in done.stderr
