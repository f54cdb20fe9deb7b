"""Every block of the documentation runs, or says why not; what does not run has options that there are."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import hostile
import inprocess
import pytest
import yaml
from mini import ROOT
from PIL import Image
from snippets import ALL, PAGES, PHANTOM, Snippet, snippets, write_tiny

from diptych.plugins import COMMANDS, plugins

RUNS = [page for page in PAGES if any(part.language in {"sh", "python"} and not part.reason for part in snippets(page))]
LIGHTNING = ("fit", "test", "validate")
ONLY_CHECKED = {"pip", "make", "git", "python3", "python", "wget", "for", "torchrun", "srun", "sbatch"}
"""First words of commands that are not run from a page."""


def of(*languages: str) -> list[Snippet]:
    return [snippet for snippet in ALL if snippet.language in languages]


def test_a_block_has_a_known_language_and_a_reason_names_what_there_is():
    assert {snippet.language for snippet in ALL} <= {"", "sh", "python", "yaml", "toctree"}
    for snippet in ALL:
        assert not snippet.note or snippet.reason or snippet.exit_code, snippet
        for name in re.findall(r"tests/[\w/]+(?:\.py)?", snippet.reason):
            assert (ROOT / name).exists(), (str(snippet), name)
    left = [snippet for snippet in of("sh", "python") if snippet.reason]
    elsewhere = [snippet for snippet in left if "tests/" in snippet.reason]
    print(f"{len(of('sh', 'python'))} blocks of code. {len(elsewhere)} are run by another test. Not run:")
    print(*(f"  {snippet}: {snippet.reason}" for snippet in left if snippet not in elsewhere), sep="\n")
    assert len(left) - len(elsewhere) < 15, "so few blocks are not run by any test; a new one needs a very good reason"


def test_a_block_of_sh_begins_with_commands_that_there_are():
    makefile = (ROOT / "Makefile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    known = {*LIGHTNING, "heads", "datamodules", "tasks", "evaluators", *(plugin.name for plugin in plugins(COMMANDS))}
    for snippet in of("sh"):
        for words in snippet.commands():
            if words[0] == "diptych":
                assert words[1] in known, (str(snippet), words)
                continue
            assert words[0] in ONLY_CHECKED or words[0].startswith("--"), (str(snippet), words)
            assert snippet.reason or words[0].startswith("--"), f"{snippet}: say why it is not run"
            if words[0] == "make":
                assert re.search(rf"^{words[1]}:", makefile, re.M), (str(snippet), words)
            if words[0] == "pip":
                assert set(re.findall(r"\[(\w+)\]", words[-1])) <= set(extras), (str(snippet), words)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the pages take for granted: trained runs, pictures, reports, recipes."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    write_tiny(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for arguments in (
            ["fit", "-c", "my.yaml", "--model.head", "local_pooling", "--run", "runs/mine"],
            ["test", "-c", "runs/mine/config.yaml", "--run", "runs/mine", "--ckpt_path", "best"],
            ["phantoms", "--layout", "png", "--n", "4", "--size", "64", "--out", "my/pictures"],
        ):
            done = inprocess.diptych(*arguments)
            assert done.returncode == 0, done.stderr
    for name in ("demo-local_pooling", "first", "a", "b", "c"):
        shutil.copytree(folder / "runs/mine", folder / "runs" / name)
    Image.open(next((folder / "my/pictures").rglob("*.png"))).save(folder / "a.png")
    (folder / "b.dcm").write_bytes(hostile.dicom("ExplicitVRLittleEndian"))
    (folder / "reports.txt").write_text("No pleural effusion.\n" + "".join(f"Opacity, case {i}.\n" for i in range(6)))
    shutil.copy(folder / "runs/mine/predictions.csv", folder / "peer.csv")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", RUNS, ids=lambda page: str(page.relative_to(ROOT).with_suffix("")))
def test_a_page_runs_from_top_to_bottom(page, place, tmp_path, monkeypatch):
    shutil.copytree(place, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__page__"}
    for snippet in snippets(page):
        if snippet.file:
            Path(snippet.file).write_text(snippet.text)
        elif snippet.reason:
            continue
        elif snippet.language == "python":
            exec(compile(snippet.text, str(snippet), "exec"), names)
        elif snippet.language == "sh":
            codes = [run(words, snippet) for words in snippet.commands() if words[0] == "diptych"]
            assert codes[:-1] == [0] * len(codes[:-1])
            assert not codes or codes[-1] == snippet.exit_code


def run(words: list[str], snippet: Snippet) -> int:
    """The exit code of a command. The demo's recipe is made small."""
    small = ["-c", "tiny.yaml"] if PHANTOM in words else []
    if words[1] == "fit" and Path(words[words.index("--run") + 1]).exists() and "--ckpt_path" not in words:
        shutil.rmtree(words[words.index("--run") + 1])  # of the place's own, which the page makes anew
    done = inprocess.diptych(*words[1:4], *small, *words[4:])
    assert done.returncode in (0, snippet.exit_code), f"{snippet}: {' '.join(words)}\n{done.stderr[-2000:]}"
    return done.returncode


def parsed(monkeypatch, place, *words: str) -> str:
    """The whole configuration that a command of Lightning would have."""
    monkeypatch.chdir(place)
    done = inprocess.diptych(*words, "--print_config")
    assert done.returncode == 0, (words, done.stderr[-2000:])
    return done.stdout


def with_files(words: list[str], place: Path) -> list[str]:
    """The words, with recipes that are there in place of the reader's own."""
    known = {
        "RECIPE": PHANTOM,
        **dict.fromkeys(["my_data.yaml", "peers/gloria.yaml", "word_margin/word_margin.yaml"], "my.yaml"),
    }
    out = []
    for before, word in zip(["", *words], words, strict=False):
        if before == "-c" and not (place / word).exists():
            word = known.get(word, "my.yaml" if word.endswith("/config.yaml") else word)
        out.append(word)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("snippet", [part for part in of("sh") if part.reason or part.text[:6] == "--data"], ids=str)
def test_the_options_of_a_block_that_is_not_run_are_there(snippet, place, monkeypatch):
    for words in snippet.commands():
        if words[0].startswith("--"):  # options alone, of a data set that the page is about
            words = ["diptych", "fit", "-c", "my.yaml", "--data", snippet.page.stem, "--data.root", "DIR", *words]
        if words[0] != "diptych":
            continue
        if words[1] in LIGHTNING:
            parsed(monkeypatch, place, *with_files(words[1:], place))
            continue
        own = words[2 : words.index("--")] if "--" in words else words[2:]
        helped = [words[1], words[2], "--help"] if words[1] == "check-data" else [words[1], "--help"]
        text = inprocess.diptych(*helped).stdout
        for option in (word for word in own if word.startswith("--")):
            assert option in text or f"--data.{option[2:]}" in text, (str(snippet), option)


@pytest.mark.slow
@pytest.mark.parametrize("snippet", of("yaml"), ids=str)
def test_a_block_of_yaml_is_a_recipe_or_a_part_of_one(snippet, place, monkeypatch, tmp_path):
    described = yaml.safe_load(snippet.text)
    if snippet.page.stem == "compare":
        from diptych.cli.variants import read_variants

        (tmp_path / "variants.yaml").write_text(snippet.text)
        assert len(read_variants(tmp_path / "variants.yaml", place / "my.yaml")) == len(described)
        return
    if snippet.page.stem == "suite":
        assert set(described) <= {"models", "tests", "columns", "against"}
        for test in described["tests"].values():
            assert (ROOT / test["config"]).is_file()
        assert {column["test"] for column in described["columns"]} <= set(described["tests"])
        return
    described = {"model": described} if "head" in described else described
    assert set(described) <= {"model", "data", "trainer"}, snippet
    part = tmp_path / "part.yaml"
    part.write_text(yaml.safe_dump(described))
    base = place / "my.yaml"
    task = "class_path" in described.get("model", {})
    if task:  # which has no towers of the base
        base = tmp_path / "data.yaml"
        base.write_text(yaml.safe_dump({"data": yaml.safe_load((place / "my.yaml").read_text())["data"]}))
    base = [] if task and "class_path" in described.get("data", {}) else ["-c", str(base)]
    parsed(monkeypatch, place, "fit", *base, "-c", str(part))
