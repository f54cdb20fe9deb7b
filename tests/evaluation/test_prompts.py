"""Prompt sets: the shipped ones, and what is said about a bad one."""

import evaluating
import pytest
from evaluating import CLASSES, PROMPTS

from diptych.errors import ConfigError
from diptych.evaluation.prompts import load_prompts, shipped_prompts


@pytest.fixture
def prompts(tmp_path):
    return lambda content=PROMPTS, **changed: evaluating.write_prompts(tmp_path, content, **changed)


def test_shipped_prompt_sets_load():
    assert shipped_prompts() == [
        "biovil", "biovil_four", "chestx_det10", "chexpert", "chexpert5x200", "chexzero", "covidx", "gloria", "grounding",
        "nih", "padchest", "phantom", "rsna", "siim", "tbx11k", "vindr_cxr",
    ]  # fmt: skip
    sets = {name: load_prompts(name) for name in shipped_prompts()}
    assert all(name == prompt_set.name and prompt_set.source for name, prompt_set in sets.items())
    assert len({prompt_set.hash for prompt_set in sets.values()}) == len(sets)
    (abnormal,) = [entry for entry in sets["nih"].entries if entry.name == "Abnormal"]
    assert set(abnormal.any_of) == {entry.name for entry in sets["nih"].entries} - {"Abnormal"}
    assert len(abnormal.any_of) == 14
    classes = {entry.name: entry.positive for entry in sets["chexpert5x200"].entries}
    assert list(classes) == ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"]
    assert "small layering pleural effusion on the right" in classes["Pleural Effusion"]
    assert "pleural effusion" in classes["Pleural Effusion"]
    for prompt_set in sets.values():
        texts = [text for entry in prompt_set.entries for text in (*entry.positive, *entry.negative)]
        assert all(text == " ".join(text.split()) for text in texts)


def test_hash_changes_with_the_prompts_only(prompts):
    first = load_prompts(prompts()).hash
    assert load_prompts(prompts(source="elsewhere")).hash == first
    findings = PROMPTS["findings"] | {"Edema": {"positive": ["edema"], "negative": ["no edema"]}}
    assert load_prompts(prompts(findings=findings)).hash != first


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"author": "me"}, "unknown key 'author'; known are name, version, source, findings, classes"),
        ({"source": None}, "has no 'source'"),
        ({"findings": {}}, "'findings' must map names to prompts"),
        ({"classes": CLASSES["classes"]}, "either 'findings' .* or 'classes'"),
        ({"findings": {"Edema": {"positive": ["a"]}}}, r"findings.Edema.negative' must be a list .* missing or empty"),
        ({"findings": {"Edema": {"positive": [], "negative": ["a"]}}}, r"findings.Edema.positive' must be a list"),
        ({"findings": {"Edema": {"positive": ["a", " "], "negative": ["a"]}}}, "holds ' ' where a text is expected"),
        ({"findings": {"Edema": {"positive": [False], "negative": ["a"]}}}, "holds False where a text is expected"),
        ({"findings": {"Edema": {"positive": ["a", "a"], "negative": ["b"]}}}, "holds 'a' twice"),
        (
            {"findings": {"Edema": {"positive": "a", "negative": ["b"]}}},
            "must be a list of at least one text and is 'a'",
        ),
        ({"findings": {"Edema": {"positiv": ["a"]}}}, "unknown key 'positiv'; known are positive, negative, any_of"),
        ({"findings": {False: {"positive": ["a"], "negative": ["b"]}}}, "the name False in 'findings' is no text"),
        ({"findings": ["Edema"]}, "'findings' must map names to prompts"),
    ],
)
def test_bad_prompt_sets_are_refused(prompts, changed, message):
    with pytest.raises(ConfigError, match=message):
        load_prompts(prompts(**changed))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"A": {"prompts": ["a"]}}, "at least two classes"),
        ({"A": {"prompts": ["a"], "combine": [["a"]]}, "B": {"prompts": ["b"]}}, "either 'prompts' or 'combine'"),
        ({"A": {"combine": []}, "B": {"prompts": ["b"]}}, "must be a list of lists"),
        ({"A": {"combine": [["a"], []]}, "B": {"prompts": ["b"]}}, "at least one text"),
        ({"A": {"combine": [[""], [""]]}, "B": {"prompts": ["b"]}}, "holds '' where a text is expected"),
    ],
)
def test_bad_classes_are_refused(prompts, classes, message):
    with pytest.raises(ConfigError, match=message):
        load_prompts(prompts(CLASSES, classes=classes))


def test_unknown_prompt_set_lists_the_nearest_first(tmp_path):
    with pytest.raises(ConfigError, match="no prompt set is called 'RSN'; shipped are rsna, "):
        load_prompts("RSN")
    with pytest.raises(ConfigError, match=r"there is no file 'a/b\.yaml'; shipped sets are biovil, biovil_four, chest"):
        load_prompts("a/b.yaml")
    (tmp_path / "a.yaml").write_text("name: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_prompts(str(tmp_path / "a.yaml"))
    (tmp_path / "a.yaml").write_text("- a")
    with pytest.raises(ConfigError, match="must have the keys"):
        load_prompts(str(tmp_path / "a.yaml"))
