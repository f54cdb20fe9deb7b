"""Fixtures of wrong inputs: a good table and recipe, and what changes them."""

import csv
import shutil

import inprocess
import pytest
import yaml
from mini import config, write_pairs


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("good"))


@pytest.fixture
def write(table, tmp_path):
    """Writes the recipe with one dotted key changed (or removed, for None); returns its path."""

    def recipe(changes=None, name="run.yaml"):
        described = yaml.safe_load(config(table, epochs=1))
        for key, value in (changes or {}).items():
            *parents, last = key.split(".")
            inner = described
            for parent in parents:
                inner = inner.setdefault(parent, {})
            if value is None:
                del inner[last]
            else:
                inner[last] = value
        (tmp_path / name).write_text(yaml.safe_dump(described))
        return str(tmp_path / name)

    return recipe


@pytest.fixture
def spoil(table, tmp_path):
    """Copies the data with changed rows (``change`` gets them, and the folder); returns a recipe for them."""

    def recipe(change, **loading):
        folder = tmp_path / "data"
        shutil.copytree(table.parent, folder)
        with table.open() as file:
            rows = list(csv.DictReader(file))
        rows = change(rows, folder) or rows
        with (folder / "table.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        (tmp_path / "run.yaml").write_text(config(folder / "table.csv", epochs=1, **loading))
        return ["-c", str(tmp_path / "run.yaml"), "--run", str(tmp_path / "run")]

    return recipe


@pytest.fixture(scope="module")
def trained(table, tmp_path_factory):
    """A run with each head."""
    folder = tmp_path_factory.mktemp("trained")
    for head in ("global", "local_pooling"):
        (folder / f"{head}.yaml").write_text(config(table, head=head, epochs=1))
        run = str(folder / head)
        assert inprocess.diptych("fit", "-c", str(folder / f"{head}.yaml"), "--run", run).returncode == 0
    return folder
