"""Every shipped YAML fits the signatures, and every command of the README runs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import hostile
import inprocess
import pytest
import torch
import yaml
from mini import ROOT, SHIPPED, TEXT, config, diptych, write_pairs
from releases import r2gen_list

RECIPES = sorted(
    p for folder in ("pretrain", "real", "compare", "phantom") for p in (ROOT / "experiments" / folder).glob("*.yaml")
)
RECIPES = [p for p in RECIPES if "model" in yaml.safe_load(p.read_text())]
EVALUATIONS = sorted((ROOT / "experiments" / "evaluate").glob("*.yaml"))
EVALUATIONS = [
    p for p in EVALUATIONS if not p.stem.endswith("_grounding")
]  # with a head that grounds: test_grounding.py
MACHINES = sorted((ROOT / "experiments" / "machine").glob("*.yaml"))


def meets(recipe):
    """The options of a recipe that a machine's file may change, and whether the recipe is of a task."""
    described = yaml.safe_load(recipe.read_text())
    options = [f"{part}.{key}" for part in ("trainer", "recovery") for key in described.get(part, {})]
    return sorted(options), "class_path" in described["model"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_recipes_fit_the_signatures(recipe, monkeypatch, capsys):
    """Parsed in this process by the very parser of the command; nothing is built.

    The first recipe with the same options of the trainer meets every machine, and the others one each.
    """
    from diptych.cli.main import main

    number = RECIPES.index(recipe)
    alike = [other for other in RECIPES[:number] if meets(other) == meets(recipe)]
    for machine in [MACHINES[number % len(MACHINES)]] if alike else MACHINES:
        words = ["-c", str(recipe), "-c", str(machine), "--data.images", "a", "--data.reports", "b"]
        words = words if "label_matched" in recipe.read_text() else words[:4]
        monkeypatch.setattr(sys, "argv", ["diptych", "fit", *words, "--print_config"])
        with pytest.raises(SystemExit) as done:
            main()
        printed = capsys.readouterr()
        assert done.value.code in (0, None), printed.err
        parsed = yaml.safe_load(printed.out)
        model = parsed["model"]
        named = model["class_path"] if "class_path" in model else model["head"]["class_path"]
        assert named.startswith(("diptych_heads.", "diptych."))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_trained_model_is_evaluated_on_every_release(tmp_path):
    """As each file's own command says, on miniatures of the releases."""
    import json

    from diptych_datamodules.phantoms.layouts.write import write_layout

    (tmp_path / "tiny.yaml").write_text(config(write_pairs(tmp_path / "pairs"), epochs=1))
    done = inprocess.diptych("fit", "-c", str(tmp_path / "tiny.yaml"), "--run", str(tmp_path / "mine"))
    assert done.returncode == 0, done.stderr
    best = tmp_path / "mine" / "checkpoints" / "best.ckpt"
    roots: dict = {}
    for file in EVALUATIONS:
        layout = yaml.safe_load(file.read_text())["data"]["class_path"]
        # A validation set of a few images would lack a class.
        number = 200 if file.stem == "chexpert_finetune" else 80 if "5x200" in file.stem else 40
        if (layout, number) not in roots:
            roots[layout, number] = write_layout(layout, number, tmp_path / f"{layout}{number}", seed=4, size=48)
        root = roots[layout, number]
        listed = r2gen_list(root, tmp_path / "annotation.json")[0] if "ANNOTATION" in file.read_text() else ""
        root = root / "kaggle" if layout == "openi" else root
        run = tmp_path / "out" / file.stem
        known = {
            "runs/mine/config.yaml": tmp_path / "mine" / "config.yaml",
            "DIR": root,
            "FILE": best,
            "ANNOTATION": listed,
        }
        known |= {f"experiments/evaluate/{file.name}": file, f"runs/mine-{file.stem}": run}
        known |= {f"runs/mine-{file.stem}/config.yaml": run / "config.yaml"}
        task = "class_path" in yaml.safe_load(file.read_text())["model"]
        size = "64" if "Detect" in file.read_text() else "32"  # which is one place of the coarsest level
        small = ["--data.loading.image_size", size, "--data.loading.batch_size", "8"] if task else []
        for command in re.findall(r"#   diptych (.*)", file.read_text()):
            more = [*small, "--trainer.max_epochs", "1"] if command.startswith("fit") else small
            done = inprocess.diptych(*[str(known.get(word, word)) for word in shlex.split(command)], *more)
            assert done.returncode == 0, (file.name, done.stderr)
        result = json.loads((run / "results.json").read_text())
        assert result["protocol"]["data"].startswith(f"{layout}/")
        if task:
            assert any(re.search("/(auroc|dice|challenge|clinical/f1)(/|$)", name) for name in result["metrics"])
            assert result["protocol"]["tower"]["head"] == "diptych_heads.global_.Global"
            continue
        assert ("NIH" in str(result["protocol"].get("overlaps"))) == (
            layout in {"rsna", "siim", "chestx_det10", "covidx"}
        )
        zero_shot = {"zero_shot"} if "zero_shot" in file.stem else set()
        assert any(name.startswith("test/zero_shot/auroc/") for name in result["metrics"]) == bool(zero_shot)
        measured = {name.split("/")[1] for name in result["metrics"]} & {"zero_shot", "retrieval", "class_retrieval"}
        retrieval = {"class_" * ("5x200" in file.stem) + "retrieval"} if "retrieval" in file.stem else set()
        assert measured == retrieval | zero_shot


def test_machine_files_say_nothing_but_the_machine():
    for machine in MACHINES:
        assert set(yaml.safe_load(machine.read_text())) <= {"trainer", "recovery"}, machine


SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do echo "srun $1"; shift; done
exec "$@"
"""
"""What it was given, and the command itself: a job of one task."""


def sbatch(folder, *arguments, **env):
    """The script as SLURM runs it: a copy in a folder of its own, with commands that stand for SLURM's."""
    for name, text in {"srun": SRUN, "diptych": '#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n'}.items():
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    spool = folder / "spool"
    spool.mkdir(exist_ok=True)
    script = shutil.copy(ROOT / "experiments/machine/slurm.sbatch", spool / "slurm_script")
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_NNODES": "3", **env}
    return subprocess.run(
        ["bash", str(script), *arguments], capture_output=True, text=True, env=environment, cwd=folder, check=False
    )


def scontrol(folder, file):
    """What tells where a job's script was."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "scontrol").write_text(f"#!/usr/bin/env bash\necho '   Command={file} a.yaml runs/a'\n")
    (folder / "bin" / "scontrol").chmod(0o755)


@pytest.mark.parametrize("source", ["scontrol", "submit", "root"])
def test_sbatch_finds_its_machine_and_takes_what_the_job_has(source, tmp_path):
    where = {"submit": {"SLURM_SUBMIT_DIR": str(ROOT)}, "root": {"DIPTYCH_ROOT": str(ROOT)}}.get(source, {})
    if source == "scontrol":
        scontrol(tmp_path, ROOT / "experiments/machine/slurm.sbatch")
    job = {"SLURM_NTASKS_PER_NODE": "2", "SLURM_CPUS_PER_TASK": "5", "SLURM_GPUS_ON_NODE": "2"}
    done = sbatch(tmp_path, "a.yaml", "runs/a", "--trainer.max_epochs", "2", **job, **where)
    assert done.returncode == 0, done.stderr
    asked, words = [], []
    for line in done.stdout.splitlines():
        (asked if line.startswith("srun ") else words).append(line)
    assert asked == ["srun --kill-on-bad-exit=1", "srun --cpus-per-task=5"]
    options = ["--trainer.num_nodes", "3", "--trainer.devices", "2", "--trainer.max_epochs", "2"]
    assert words == ["fit", "-c", "a.yaml", "-c", str(SHIPPED / "machine/slurm.yaml"), "--run", "runs/a", *options]


def test_sbatch_goes_on_and_says_what_is_missing(tmp_path):
    done = sbatch(tmp_path, "a.yaml", "runs/a")
    assert (done.returncode, done.stdout) == (2, "")
    assert "set DIPTYCH_ROOT" in done.stderr
    assert "usage: sbatch slurm.sbatch RECIPE RUN" in sbatch(tmp_path, DIPTYCH_ROOT=str(ROOT)).stderr
    scontrol(tmp_path, ROOT / "experiments/machine/slurm.sbatch")
    (tmp_path / "a/checkpoints").mkdir(parents=True)
    for file in ("a/hpc_ckpt_1.ckpt", "a/checkpoints/last.ckpt"):
        (tmp_path / file).touch()
        words = sbatch(tmp_path, "a.yaml", "a").stdout.splitlines()
        assert words[-2:] == ["--ckpt_path", "last"]
        assert words[-4:-2] == ["--trainer.accelerator", "cpu"]  # the job has no GPU
        (tmp_path / file).unlink()
    recipe = re.search(r"slurm.sbatch (\S+\.yaml)", (SHIPPED / "machine/slurm.sbatch").read_text())
    assert (ROOT / recipe[1]).is_file()


def commands(text):
    """The diptych commands in a Markdown file's sh blocks, continued lines joined."""
    for block in re.findall(r"```sh\n(.*?)```", text, flags=re.S):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.split("  #")[0].strip()
            if line.startswith(("diptych ", "make ")):
                yield shlex.split(line)


def test_make_knows_every_target_the_readme_names():
    makefile = (ROOT / "Makefile").read_text()
    for command in commands((ROOT / "README.md").read_text()):
        if command[0] == "make":
            assert re.search(rf"^{command[1]}:", makefile, flags=re.M), command


@pytest.mark.slow
def test_readme_commands_run(tmp_path):
    """On a small table with the README's column names, smaller towers and one epoch; all else as it stands there."""
    import csv

    table = write_pairs(tmp_path / "my")
    rows = list(csv.reader(table.open()))
    rows[0][:3] = ["path", "findings", "patient_id"]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([[*row, "impression" if i == 0 else ""] for i, row in enumerate(rows)])
    small = {
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False},
        "model": {
            "image": {
                "init_args": {"name": "resnet10t", "pretrained": False, "model_args": {"channels": [8, 8, 16, 16]}}
            },
            "text": {"class_path": "ScratchText", "init_args": TEXT},
        },
        "data": {"init_args": {"loading": {"image_size": 32, "batch_size": 4, "workers": 0}}},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    run = [c[1:] for c in commands((ROOT / "README.md").read_text()) if c[0] == "diptych"]
    assert [c[0] for c in run][:2] == ["fit", "test"]
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    for command in run:
        if command[0] == "fit":
            command[3:3] = ["-c", "small.yaml"]
        done = diptych(*command, cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
    assert (tmp_path / "runs/mine/results.json").is_file()


@pytest.mark.slow
def test_readme_python_runs(tmp_path, monkeypatch):
    """Both blocks, on a few phantoms for one epoch, and on a run of the smallest model; all else as it stands there."""
    training, using = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    smaller = {
        "train=2400": "train=16, val=4, test=4",
        "size=112, l": "size=32, l",
        "image_size=112, batch_size=24": "image_size=32, batch_size=8, workers=0",
        "max_epochs=12": "max_epochs=1, accelerator='cpu', enable_progress_bar=False",
    }
    for number, tiny in smaller.items():
        assert training.count(number) == 1, number
        training = training.replace(number, tiny)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(training, names)
    assert names["trainer"].global_step == 2
    assert "test/retrieval/r@5" in names["trainer"].callback_metrics

    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(config(write_pairs(tmp_path / "pairs"), head="local_pooling", epochs=1))
    (run,) = re.findall(r'diptych.load\("(.*?)"\)', using)
    done = inprocess.diptych("fit", "-c", str(recipe), "--run", run)
    assert done.returncode == 0, done.stderr
    shutil.copy(tmp_path / "pairs" / "000.png", "a.png")
    Path("b.dcm").write_bytes(hostile.dicom("ExplicitVRLittleEndian"))
    exec(using, names)
    assert names["scores"].shape == (2, 2)
    assert names["maps"].shape == (len(names["words"]), 32, 32)
    assert names["words"][3:] == ["left", "pleural", "effusion"]
    torch.testing.assert_close(names["vectors"].norm(dim=1), torch.ones(2))


def anchors(page):
    """The places in a page that a link may name, as GitHub calls them."""
    titles = re.findall(r"^#+ (.*)", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_between_pages_lead_somewhere():
    pages = [
        *ROOT.glob("*.md"),
        *(page for folder in ("docs", "experiments") for page in (ROOT / folder).rglob("*.md")),
    ]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    assert len(links) > 40
    for page, link in links:
        name, _, place = link.partition("#")
        if not name.startswith("https:"):
            target = page.parent / name if name else page
            assert target.exists(), (page.name, link)
            assert not place or place in anchors(target), (page.name, link)


def test_nothing_speaks_of_where_it_was_made():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not listed:
        pytest.skip("not a git checkout")
    for name in listed:
        path = Path(ROOT / name)
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".cfg", ""} and path.is_file():
            assert "/" + "work/" not in path.read_text(), name
