import re
import subprocess
import sys
import tomllib
from pathlib import Path

import floors
import pytest
import yaml

import diptych

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
TOOLS = ("dev", "docs")
"""Extras for work on the package itself."""


def test_one_file_has_the_version():
    assert "version" in PROJECT["dynamic"]
    again = "import runpy; print(runpy.run_path('src/diptych/version.py')['__version__'])"
    there = subprocess.run([sys.executable, "-c", again], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert there.strip() == diptych.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", diptych.__version__)


def test_the_citation_is_complete_and_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "type", "license", "version", "authors", "abstract"} <= set(cited)
    assert cited["cff-version"] == "1.2.0"
    assert cited["type"] == "software"
    assert cited["version"] == diptych.__version__
    assert cited["license"] == PROJECT["license"]
    assert cited["repository-code"] == PROJECT["urls"]["Documentation"]
    assert [author["name"] for author in cited["authors"]] == [author["name"] for author in PROJECT["authors"]]


def test_the_changelog_has_a_section_for_each_release_newest_first():
    text = (ROOT / "CHANGELOG.md").read_text()
    heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
    releases = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (unreleased|\d{4}-\d{2}-\d{2})", head) for head in heads]
    assert all(releases), heads
    assert releases[0][1] == diptych.__version__
    assert "unreleased" not in [one[2] for one in releases[1:]]


def test_all_is_every_extra_that_users_name():
    union = {need for name, needs in EXTRAS.items() if name not in ("all", *TOOLS) for need in needs}
    assert sorted(EXTRAS["all"]) == sorted(union)


def extras_named(folder):
    files = [file for file in sorted((ROOT / folder).rglob("*")) if file.suffix in (".py", ".md", ".yaml")]
    found = [re.findall(r"diptych\[([\w,]+)\]", file.read_text()) for file in files]
    return {extra for names in found for name in names for extra in name.split(",")}


def test_each_extra_that_documents_name_exists():
    assert set.union(*map(extras_named, ("docs", "examples", "experiments", "heads", "datamodules"))) <= set(EXTRAS)


def test_errors_name_each_extra_and_no_other():
    assert extras_named("src") == set(EXTRAS) - {"all", *TOOLS}


def test_the_oldest_dependencies_are_the_floors():
    assert floors.FILE.read_text() == floors.text(), "run: python tests/support/floors.py"


def test_floors_are_exact_and_one_a_package():
    project = {"dependencies": ["torch>=2.6,<3", "b[c]==1.0"], "optional-dependencies": {"x": ["d>=4.1"], "dev": ["e"]}}
    assert floors.floors(project) == "b==1.0\nd==4.1\ntorch==2.6\n"
    with pytest.raises(ValueError, match="no oldest version of 'torch<3'"):
        floors.floors({"dependencies": ["torch<3"]})
    with pytest.raises(ValueError, match="two floors of d"):
        floors.floors({"dependencies": ["d>=1", "d>=2"]})
