"""The rule-based labeller: sentences written by hand, phantoms, and real reports that indexers labelled."""

import numpy as np
import pytest
import torch
from mini import installed
from transformers import BertConfig, BertModel

from diptych.errors import ConfigError
from diptych.reports.chexbert import Chexbert
from diptych.reports.labeller import FINDINGS, Labeller, Rules, mentions
from diptych_datamodules.phantoms import FINDINGS as DRAWN
from diptych_datamodules.phantoms import plan_phantom

SHORT = {
    "EC": "Enlarged Cardiomediastinum", "C": "Cardiomegaly", "O": "Lung Opacity", "L": "Lung Lesion", "E": "Edema",
    "CON": "Consolidation", "P": "Pneumonia", "A": "Atelectasis", "PX": "Pneumothorax", "EFF": "Pleural Effusion",
    "PO": "Pleural Other", "F": "Fracture", "D": "Support Devices", "N": "No Finding",
}  # fmt: skip
SENTENCES = [  # + present, - absent, ? uncertain, and others not mentioned. "No Finding" is left to another test
    # plain statements
    ("Kerley B lines are seen.", ""),
    ("There are septal lines.", ""),
    ("Lines and tubes are unchanged.", "+D"),
    ("Rule out pneumonia.", "?P"),
    ("Evaluate for pneumothorax.", "?PX"),
    ("There is a small left pleural effusion.", "+EFF"),
    ("Moderate cardiomegaly with pulmonary vascular congestion.", "+C +E"),
    ("The heart is mildly enlarged.", "+C"),
    ("Enlargement of the cardiac silhouette.", "+C"),
    ("Heart size is increased.", "+C"),
    ("Patchy opacities in both lower lobes.", "+O"),
    ("Bibasilar airspace disease.", "+O"),
    ("Ill-defined infiltrate in the right upper lobe.", "+O"),
    ("A 5 mm nodule in the left apex.", "+L"),
    ("Multiple pulmonary masses, metastatic disease.", "+L"),
    ("Large right hydropneumothorax.", "+PX +EFF"),
    ("Mild interstitial edema.", "+E"),
    ("Left lower lobe consolidation consistent with pneumonia.", "+CON +P"),
    ("Plate-like atelectasis at the bases.", "+A"),
    ("Biapical pleural thickening.", "+PO"),
    ("Old healed fractures of the left fifth and sixth ribs.", "+F"),
    ("Widened superior mediastinum.", "+EC"),
    ("The cardiomediastinal silhouette is enlarged.", "+EC"),
    ("Right-sided PICC with its tip in the SVC.", "+D"),
    ("Median sternotomy wires are intact.", "+D"),
    ("Endotracheal tube 4 cm above the carina. Nasogastric tube in the stomach.", "+D"),
    ("Dual lead pacemaker, leads in the right atrium and ventricle.", "+D"),
    # negation before
    ("No pleural effusion.", "-EFF"),
    ("No effusion or pneumothorax.", "-EFF -PX"),
    ("No focal consolidation, pleural effusion, or pneumothorax.", "-CON -EFF -PX"),
    ("There is no evidence of pneumonia, edema or effusion.", "-P -E -EFF"),
    ("Neither pleural effusion nor pneumothorax is seen.", "-EFF -PX"),
    ("Negative for pneumothorax.", "-PX"),
    ("The lungs are free of consolidation and nodules.", "-CON -L"),
    ("The lungs are clear without effusion.", "-O -EFF"),
    ("No definite pneumothorax.", "-PX"),
    ("No displaced rib fracture.", "-F"),
    ("Without focal airspace disease.", "-O"),
    ("Interval resolution of the right effusion.", "-EFF"),
    ("Interval removal of the endotracheal tube.", "-D"),
    ("No new consolidation.", "-CON"),
    ("No radiographic evidence of acute infection.", "-P"),
    # negation after
    ("Pneumothorax is not seen.", "-PX"),
    ("Effusion and pneumothorax are absent.", "-EFF -PX"),
    ("The previously seen effusion has resolved.", "-EFF"),
    ("The edema is no longer identified.", "-E"),
    ("Pneumonia has been ruled out.", "-P"),
    ("The chest tube has been removed.", "-D"),
    ("A pneumothorax is not clearly identified.", "-PX"),
    # scope
    ("No pneumothorax, but there is a large effusion.", "-PX +EFF"),
    ("No effusion is seen; stable cardiomegaly.", "-EFF +C"),
    ("No pleural effusion and mild cardiomegaly.", "-EFF +C"),
    ("Small effusion without pneumothorax.", "+EFF -PX"),
    ("The heart is enlarged, no effusion.", "+C -EFF"),
    ("There is cardiomegaly. No edema.", "+C -E"),
    ("No consolidation, however there is atelectasis at the left base.", "-CON +A"),
    ("No acute process other than a small left effusion.", "+EFF"),
    ("No pneumothorax with a small right pleural effusion.", "-PX +EFF"),
    ("No pneumothorax and the heart is enlarged.", "-PX +C"),
    ("Consolidation has cleared, although a small effusion persists.", "-CON +EFF"),
    # no change is no negation
    ("No change in the left effusion.", "+EFF"),
    ("No significant interval change in bibasilar atelectasis.", "+A"),
    ("The effusion has not changed.", "+EFF"),
    ("Without interval change of the right pneumothorax.", "+PX"),
    ("No improvement in pulmonary edema.", "+E"),
    # doubt
    ("Possible small pneumothorax.", "?PX"),
    ("Pneumonia cannot be excluded.", "?P"),
    ("Opacity at the base, which may represent pneumonia.", "+O ?P"),
    ("Opacity suspicious for pneumonia.", "+O ?P"),
    ("Findings suggestive of mild edema.", "?E"),
    ("Atelectasis versus consolidation at the left base.", "?A ?CON"),
    ("Left basilar atelectasis or consolidation.", "?A ?CON"),
    ("Probable left effusion.", "?EFF"),
    ("A small effusion is possible.", "?EFF"),
    ("Cannot rule out a rib fracture.", "?F"),
    ("Questionable nodule in the right lung.", "?L"),
    ("Borderline heart size.", "?C"),
    ("The heart is at the upper limits of normal.", "?C"),
    ("Blunting of the left costophrenic angle.", "?EFF"),
    ("Concern for early pneumonia.", "?P"),
    # double cues
    ("No definite evidence of possible effusion.", "?EFF"),
    ("No pneumothorax, possible trace effusion.", "-PX ?EFF"),
    ("Possible effusion, no pneumothorax.", "?EFF -PX"),
    ("Subtle opacity is not excluded and there is no effusion.", "?O -EFF"),
    ("There is no doubt that a pneumothorax is present.", "+PX"),
    ("Consolidation in keeping with pneumonia, no effusion.", "+CON +P -EFF"),
    ("No focal opacity to suggest pneumonia.", "-O -P"),
    ("Please correlate clinically for pneumonia.", "?P"),
    ("Calcified granulomas of a previous granulomatous infection.", ""),
    # of both kinds of doubt, and of the past
    ("Opacity which may be compatible with pneumonia.", "+O ?P"),
    ("In the appropriate clinical setting, this is compatible with pneumonia.", "?P"),
    ("Atypical infection is another consideration.", "?P"),
    ("Cavity consistent with prior tuberculous infection.", ""),
    ("Given the history of malignancy, CT is recommended.", ""),
    ("No change in right pneumothorax or pleural fluid.", "+PX +EFF"),
    # synonyms
    ("Small pleural air collection.", "+PX"),
    ("Biapical fibronodular thickening.", "+L +PO"),
    ("Biapical scarring.", ""),
    ("Fissural thickening.", "+PO"),
    ("Thickening of the minor fissure.", "+PO"),
    ("Pleural-parenchymal scarring.", "+PO"),
    ("Large masslike opacity.", "+L +O"),
    ("Nodular right lower lobe opacity.", "+L +O"),
    ("Prominent central pulmonary vasculature.", "+E"),
    ("The pulmonary vasculature is not engorged.", ""),
    # normal
    ("Pulmonary vascular engorgement is within normal limits.", "-E"),
    ("The heart is normal in size.", "-C"),
    ("Heart size and mediastinal contours are within normal limits.", "-C -EC"),
    ("The cardiomediastinal silhouette is unremarkable.", "-EC -C"),
    ("The heart is not enlarged.", "-C"),
    ("Costophrenic angles are sharp.", "-EFF"),
    ("Lungs are clear.", "-O"),
    # words that only look like findings
    ("Pericardial effusion.", ""),
    ("Soft tissue edema of the neck.", ""),
    ("Vertebral body collapse at T8.", ""),
    ("Fractured sternal wire.", "+D"),
    ("No mass effect.", ""),
    ("Portable view of the chest.", ""),
    ("A thin pleural line is seen.", ""),
]  # fmt: skip


def marks_of(labels):
    marks = {1.0: "+", 0.0: "-", -1.0: "?"}
    names = list(SHORT)[:13]
    return {marks[float(value)] + name for name, value in zip(names, labels, strict=False) if not np.isnan(value)}


def test_the_order_is_chexberts():
    assert list(SHORT.values()) == list(FINDINGS)


@pytest.mark.parametrize(("sentence", "expected"), SENTENCES)
def test_sentences(sentence, expected):
    for text in (sentence, sentence.upper(), f"The chest was examined. {sentence} Thank you."):
        assert marks_of(Rules()([text])[0]) == set(expected.split()), text


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("No acute cardiopulmonary process.", True),
        ("Lungs are clear. No effusion. Pacemaker in place.", True),
        ("Small effusion.", False),
        ("Possible effusion.", False),
        ("No effusion. Possible fracture of a rib.", False),
        ("", False),
        (" . ", False),
    ],
)
def test_no_finding_is_what_it_is_in_chexbert(report, expected):
    last = Rules()([report])[0, -1]
    assert (last == 1) if expected else np.isnan(last)


def test_the_indexers_definition_is_narrower():
    text = "Vascular congestion. Nodular opacity at the base. Calcified nodule."
    assert marks_of(Rules()([text])[0]) == {"+E", "+L"}
    assert marks_of(Rules("negbio")(["Vascular congestion. Nodular opacity at the base."])[0]) == set()
    assert marks_of(Rules("negbio")([text + " Edema."])[0]) == {"+E", "+L"}
    assert Rules("negbio").origin == {**Rules().origin, "definition": "negbio"}
    with pytest.raises(ConfigError, match="Rules: definition is 'mesh'; choose among: chexpert, negbio"):
        Rules("mesh")


def test_of_what_is_said_twice_the_stronger_counts():
    labels = Rules()(
        ["No effusion. Possible effusion.", "Possible effusion. Small effusion.", "Effusion. No effusion."]
    )
    assert labels[:, FINDINGS.index("Pleural Effusion")].tolist() == [-1, 1, 1]


@pytest.mark.parametrize("section", ["text", "findings", "impression"])
def test_phantoms_reports_say_what_is_drawn(section, capsys):
    """The plan of a phantom holds the truth, so no picture is drawn. A nodule is a lung lesion. Other names are the same."""
    plans = [plan_phantom(i, seed=11) for i in range(400)]
    labels = Rules()([getattr(plan.report, section) for plan in plans])
    columns = [FINDINGS.index("Lung Lesion" if name == "Nodule" else name) for name in DRAWN]
    truth = np.stack([plan.truth for plan in plans])
    agreement = ((labels[:, columns] == 1) == (truth == 1)).mean(axis=0)
    with capsys.disabled():
        print(f"\n{section}: " + ", ".join(f"{n} {a:.4f}" for n, a in zip(DRAWN, agreement, strict=True)))
    assert (agreement == 1).all()
    others = [i for i in range(13) if i not in columns]
    assert not (labels[:, others] == 1).any()
    normal = (truth[:, :-1] == 0).all(axis=1)  # devices are no finding
    assert ((labels[:, -1] == 1) == normal).all()


def test_phantoms_doubt_is_uncertain_and_denial_is_absent():
    plans = [plan_phantom(i, seed=3, uncertain=1.0) for i in range(400)]
    labels = Rules()([plan.report.text for plan in plans])
    counted = 0
    for plan, row in zip(plans, labels, strict=True):
        for name, value in plan.report.mentions.items():
            label = row[FINDINGS.index("Lung Lesion" if name == "Nodule" else name)]
            assert label == value, (name, plan.report.text)
            counted += value != 1
    assert counted > 500


INDEXED = {  # the least precision and recall, by CheXpert's definitions and by the indexers'
    "Cardiomegaly": (["Cardiomegaly"], (0.95, 0.85), (0.95, 0.85)),
    "Atelectasis": (["Atelectasis"], (0.95, 0.85), (0.95, 0.85)),
    "Pleural Effusion": (["Effusion"], (0.95, 0.85), (0.95, 0.85)),
    "Consolidation": (["Consolidation"], (0.85, 0.85), (0.85, 0.85)),
    "Lung Opacity": (["Infiltration"], (0.8, 0.9), (0.8, 0.9)),
    "Pneumothorax": (["Pneumothorax"], (0.95, 0.85), (0.95, 0.85)),
    "Lung Lesion": (["Mass", "Nodule"], (0.6, 0.95), (0.8, 0.85)),
    "Pleural Other": (["Pleural_Thickening"], (0.7, 0.75), (0.7, 0.7)),
    "Pneumonia": (["Pneumonia"], (0.7, 0.7), (0.7, 0.7)),
    "Edema": (["Edema"], (0.4, 0.8), (0.8, 0.8)),
}


@pytest.mark.real
def test_real_reports_against_their_indexers(capsys):
    """Precision and recall of "present" on Open-i's reports of odd numbers. Rules were mended on those of even ones.

    The labels are MeSH terms of two indexers, NegBio's gold (docs/downstream.md).
    """
    from diptych_datamodules.nih import FINDINGS as NIH
    from diptych_datamodules.openi import read_reports

    path = installed("torchxrayvision", "data/NLMCXR_reports.tgz")
    reports = [report for report in read_reports(path) if report.terms and report.text("both")]
    reports = [report for report in reports if int(report.id.removeprefix("CXR")) % 2]
    texts = [report.text("both") for report in reports]
    truth = np.stack([report.labels() for report in reports]) == 1
    for place, definition in enumerate(("chexpert", "negbio")):
        present = Rules(definition)(texts) == 1
        for name, (theirs, *least) in INDEXED.items():
            real, ours = truth[:, [NIH.index(other) for other in theirs]].any(axis=1), present[:, FINDINGS.index(name)]
            both = (real & ours).sum()
            precision, recall = both / ours.sum(), both / real.sum()
            with capsys.disabled():
                print(f"{definition} {name}: n {real.sum()}, P {precision:.3f}, R {recall:.3f}")
            assert precision >= least[place][0], name
            assert recall >= least[place][1], name


@pytest.fixture(scope="module")
def chexbert(tmp_path_factory):
    """A file as chexbert.pth is laid out, of random weights in a tiny BERT, and the folder of its BERT."""
    folder = tmp_path_factory.mktemp("chexbert")
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "small", "effusion", "heart", "is", "enlarged", "."]
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(words), initializer_range=1.0, **sizes)
    bert = BertModel(config)
    config.save_pretrained(folder / "bert")
    (folder / "bert" / "vocab.txt").write_text("\n".join(words))
    heads = torch.nn.ModuleList(torch.nn.Linear(16, 4 if i < 13 else 2) for i in range(14))
    state = {f"module.bert.{name}": value for name, value in bert.state_dict().items()}
    state["module.bert.embeddings.position_ids"] = torch.arange(512)[None]  # which older libraries stored
    state |= {f"module.linear_heads.{name}": value for name, value in heads.state_dict().items()}
    torch.save({"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {}}, folder / "chexbert.pth")
    return folder, bert.eval(), heads, words


def test_chexbert_is_read_as_published(chexbert):
    folder, bert, heads, words = chexbert
    labeller = Chexbert(str(folder / "chexbert.pth"), bert=str(folder / "bert"), batch_size=2)
    reports = ["No effusion.", "Small effusion.\n\nHeart is enlarged.", "", "heart " * 600, "The heart is enlarged no."]
    labels = labeller(reports)
    values = {0: np.nan, 1: 1, 2: 0, 3: -1}
    for report, row in zip(reports, labels, strict=True):
        pieces = report.lower().replace(".", " . ").split()
        ids = [words.index(piece) if piece in words else 1 for piece in pieces][:510]
        with torch.no_grad():
            first = bert(torch.tensor([[2, *ids, 3]])).last_hidden_state[0, 0]
            expected = [values[int(head(first).argmax())] for head in heads]
        np.testing.assert_array_equal(row, expected)
    assert len({tuple(np.nan_to_num(row, nan=9)) for row in labels}) > 2
    assert labeller([]).shape == (0, 14)
    assert labeller.origin["name"] == "CheXbert"
    assert len(labeller.origin["sha256"]) == 64


def test_what_is_no_chexbert_is_named(chexbert, tmp_path):
    folder = chexbert[0]
    bert = str(folder / "bert")
    with pytest.raises(ConfigError, match=r"none.pth cannot be read as chexbert.pth .*; give the file of its authors"):
        Chexbert(str(tmp_path / "none.pth"), bert=bert)
    torch.save({"state_dict": {}}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"other.pth cannot be read as chexbert.pth .KeyError: 'model_state_dict'"):
        Chexbert(str(tmp_path / "other.pth"), bert=bert)
    torch.save({"model_state_dict": {"module.bert.x": torch.zeros(1)}}, tmp_path / "odd.pth")
    with pytest.raises(ConfigError, match=r"odd.pth holds other weights than CheXbert's"):
        Chexbert(str(tmp_path / "odd.pth"), bert=bert)
    with pytest.raises(ConfigError, match=r"bert '.*nowhere' cannot be loaded"):
        Chexbert(str(folder / "chexbert.pth"), bert=str(tmp_path / "nowhere"))


def test_a_configuration_names_a_labeller(chexbert):
    import jsonargparse

    from diptych.model.building import register_names

    register_names()
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--labeller", type=Labeller)
    options = {"checkpoint": str(chexbert[0] / "chexbert.pth"), "bert": str(chexbert[0] / "bert")}
    for value, kind in (("Rules", Rules), ({"class_path": "Chexbert", "init_args": options}, Chexbert)):
        parsed = parser.instantiate_classes(parser.parse_object({"labeller": value}))
        assert isinstance(parsed.labeller, kind)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Heart  size is\nnormal.", [("Heart  size is\nnormal", "Cardiomegaly", 0.0)]),
        ("İ edema, plate-like\n atelectasis", [("edema", "Edema", 1.0), ("atelectasis", "Atelectasis", 1.0)]),
        ("No air-\nspace  disease.", [("air-\nspace  disease", "Lung Opacity", 0.0)]),
        ("Blunting of the left costophrenic angle.", [("Blunting of the left costophrenic", "Pleural Effusion", -1.0)]),
        ("Effusion or edema.", [("Effusion", "Pleural Effusion", -1.0), ("edema", "Edema", -1.0)]),
        ("", []),
    ],
)
def test_mentions_lie_where_the_text_has_them(text, expected):
    assert [(text[m.start : m.end], m.finding, m.value) for m in mentions(text)] == expected


def test_mentions_say_what_the_labels_say():
    """The strongest of a finding's mentions is its label."""
    reports = [plan_phantom(i, seed=5, filler=0.4).report.text for i in range(60)]
    for report, row in zip(reports, Rules()(reports), strict=True):
        strongest: dict[str, float] = {}
        for mention in mentions(report):
            order = [0.0, -1.0, 1.0]
            strongest[mention.finding] = max(strongest.get(mention.finding, 0.0), mention.value, key=order.index)
        labels = {name: float(v) for name, v in zip(FINDINGS, row, strict=True) if v == v and name != "No Finding"}
        assert strongest == labels
