"""R2Gen's protocol in a run: what is trained on, compared and stored, and the same rules for retrieved reports."""

import csv
import json
import re

import pytest
import torch
import yaml
from generating import recipe
from inprocess import diptych, fit_and_test, results_of
from mini import write_pairs

from diptych.metrics import generated_text as nlg
from diptych.reports.r2gen import R2GenText

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("r2gen")
    table = write_pairs(folder / "pairs", n=60)
    table.write_text(re.sub(r" Case (\d+)\.", r" 2. Case c\1 T4/T5.", table.read_text()))
    run = folder / "run"
    fit_and_test(
        recipe(folder, table, "r2gen", options={"protocol": "r2gen/openi", "max_tokens": 40}, max_epochs=1), run
    )
    return table, run


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_texts_are_trained_on_and_compared_under_its_rules(written):
    table, run = written
    rows = rows_of(table)
    rules = R2GenText("r2gen/openi", [(row["patient"], row["text"]) for row in rows if row["split"] == "train"])
    tested = rows_of(run / "predictions.csv")
    references = [row["generate/reference"] for row in tested]
    assert references == [rules.reference(row["text"]) for row in rows if row["split"] == "test"]
    assert all("case <unk> t4t5 ." in text for text in references)  # the number of the case is in one report alone
    reports = [row["generate/hypothesis"] for row in tested]
    assert {word for text in reports for word in text.split()} <= rules.known | {"<unk>"}
    results = results_of(run)
    metrics = results["metrics"]
    for name, value in nlg.scores(reports, references, blanks=True).items():
        assert metrics[f"test/generate/{name}"]["value"] == pytest.approx(float(value[0]), abs=1e-12), name
    protocol = results["protocol"]["generate"]
    assert protocol["rules"] == {**rules.facts}
    assert protocol["text"]["words"] == nlg.BLANKS
    assert results["predictions"]["of"]["generate"]["words"] == "blanks"
    assert not [name for name in metrics if "radeval" in name]


def test_a_checkpoint_holds_no_rare_word(written):
    _, run = written
    state = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    vocabulary = json.loads(state["state_dict"]["_extra_state"]["tokenizer"])["model"]["vocab"]
    assert "t4t5" in vocabulary
    assert not {f"c{i}" for i in range(90)} & set(vocabulary)


def test_its_rules_need_training_reports(written, tmp_path):
    table, run = written
    config = yaml.safe_load((run / "config.yaml").read_text())
    rows = [row for row in rows_of(table) if row["split"] == "test"]
    other = table.parent / "only_test.csv"
    with other.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    config["data"]["init_args"]["table"] = str(other)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    best = str(run / "checkpoints" / "best.ckpt")
    done = diptych("test", "-c", str(tmp_path / "c.yaml"), "--run", str(tmp_path / "run"), "--ckpt_path", best)
    assert done.returncode == 2
    assert "gives no reports" in done.stderr
