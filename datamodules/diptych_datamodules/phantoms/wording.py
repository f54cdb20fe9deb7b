"""The words of the reports. All were written for the phantoms. None is from a corpus."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = [
    "COMPARISONS", "DENIALS", "DOUBTS", "FILLER_SENTENCES", "NAMES", "NORMAL_SUMMARIES", "PLAIN_DOUBTS", "SEVERITIES",
    "STATEMENTS", "SUMMARY_DENIALS", "SUMMARY_DOUBTS", "SUMMARY_STATEMENTS", "ZONES", "Denial",
]  # fmt: skip

ZONES = {
    "upper": ("upper lobe", "upper zone", "upper lung"),
    "mid": ("mid zone", "mid lung", "middle lung zone"),
    "lower": ("lower lobe", "lower zone", "lung base"),
}
SEVERITIES = {
    "small": ("small",),
    "mild": ("mild",),
    "moderate": ("moderate",),
    "large": ("large",),
    "severe": ("severe", "marked", "extensive"),
}
NAMES = {
    "Lung Opacity": ("opacity", "hazy opacity", "patchy opacity"),
    "Consolidation": ("consolidation", "airspace consolidation"),
    "Nodule": ("nodule", "pulmonary nodule"),
    "Pleural Effusion": ("pleural effusion", "effusion"),
    "Pneumothorax": ("pneumothorax",),
    "Cardiomegaly": ("cardiomegaly",),
    "Atelectasis": ("atelectasis",),
    "Support Devices": ("device",),
}

STATEMENTS = {
    "Lung Opacity": (
        "There is {severity} {name} in the {side} {zone}.",
        "{severity} {name} is seen in the {side} {zone}.",
        "A {severity} area of ill-defined <opacity> projects over the {side} {zone}.",
        "The {side} {zone} shows {severity} patchy <opacification>, which may be infectious.",
        "Ill-defined <haziness> of {severity} extent is noted at the {side} {zone}.",
    ),
    "Consolidation": (
        "There is {severity} <consolidation> in the {side} {zone}.",
        "{severity} {name} with air bronchograms occupies the {side} {zone}.",
        "The {side} {zone} is <consolidated> to a {severity} degree.",
        "Dense <airspace consolidation> of {severity} extent is present in the {side} {zone}.",
        "{severity} <consolidation> of the {side} {zone}, suggestive of pneumonia.",
    ),
    "Nodule": (
        "There is a {severity} round <nodule> in the {side} {zone}.",
        "A {severity} {name} projects over the {side} {zone}.",
        "{severity} well-circumscribed <nodule> at the {side} {zone}, further characterisation with CT is advised.",
        "A {severity} <nodular density> is seen in the {side} {zone}.",
        "In the {side} {zone} lies a {severity} solitary {name}.",
    ),
    "Pleural Effusion": (
        "There is a {severity} {side}-sided <pleural effusion>.",
        "{severity} {side} {name} with a meniscus along the chest wall.",
        "<Blunting> of the {side} <costophrenic angle>, consistent with a {severity} <effusion>.",
        "A {severity} amount of <pleural fluid> layers at the {side} <zone|base>.",
        "The {side} costophrenic sulcus is obscured by a {severity} <pleural effusion>.",
    ),
    "Pneumothorax": (
        "There is a {severity} {side} <pneumothorax>.",
        "A {severity} {side} <zone|apical> <pneumothorax> is present, with a visible pleural line.",
        "A thin <pleural line> without peripheral lung markings indicates a {severity} {side}-sided <pneumothorax>.",
        "{severity} <pneumothorax> on the {side}, most evident at the <zone|apex>.",
    ),
    "Cardiomegaly": (
        "There is {severity} <cardiomegaly>.",
        "The <cardiac silhouette is enlarged>, {severity} in degree.",
        "{severity} <enlargement of the heart>.",
        "The <heart is enlarged> to a {severity} degree.",
        "{severity} <cardiomegaly> is noted.",
    ),
    "Atelectasis": (
        "There is {severity} linear <atelectasis> in the {side} {zone}.",
        "{severity} plate-like <atelectasis> at the {side} {zone}.",
        "Band-like densities in the {side} {zone} represent {severity} <atelectasis>.",
        "{severity} <atelectatic change> is seen in the {side} {zone}, with slight loss of volume.",
        "Streaky {severity} <subsegmental collapse> of the {side} {zone}.",
    ),
    "pacemaker": (
        "A {side}-sided <pacemaker> is in place with leads over the right heart.",
        "{side} chest wall <pacemaker> with leads in expected position.",
        "<Cardiac pacing device> on the {side} with intact leads.",
    ),
    "central line": (
        "A {side} internal jugular <central line> ends in the superior vena cava.",
        "{side} <central venous catheter> with its tip over the superior vena cava.",
        "The tip of the {side}-sided <central venous line> projects over the cavoatrial junction.",
    ),
    "port": (
        "A {side} chest wall <port> is present with its catheter in the superior vena cava.",
        "{side}-sided <port catheter> in standard position.",
        "A {side} subclavian <port> is noted, the tip in the superior vena cava.",
    ),
    "endotracheal tube": (
        "The <endotracheal tube> ends above the carina.",
        "An <endotracheal tube> is in standard position.",
        "Tip of the <endotracheal tube> projects over the mid trachea.",
    ),
    "sternal wires": (
        "Median <sternotomy wires> are intact.",
        "<Sternal wires> are aligned, in keeping with previous surgery.",
        "The patient has had a sternotomy, with intact <sternal wires>.",
    ),
}
"""How a finding is stated in the findings section, by finding or device."""

SUMMARY_STATEMENTS = {
    "Lung Opacity": ("{severity} {side} {zone} <opacity>.", "{side} {zone} {name}, {severity}, possibly infectious."),
    "Consolidation": (
        "{severity} {side} {zone} <consolidation>.",
        "{side} {zone} <consolidation>, {severity}, likely pneumonia.",
    ),
    "Nodule": ("{severity} {side} {zone} <nodule>.", "{severity} <nodule> in the {side} {zone}; CT is recommended."),
    "Pleural Effusion": (
        "{severity} {side} <pleural effusion>.",
        "{side}-sided <pleural effusion>, {severity} in size.",
    ),
    "Pneumothorax": ("{severity} {side} <pneumothorax>.", "{side}-sided <pneumothorax>, {severity} in size."),
    "Cardiomegaly": ("{severity} <cardiomegaly>.", "<Enlarged heart>, {severity}."),
    "Atelectasis": ("{severity} {side} {zone} <atelectasis>.", "<Atelectasis> in the {side} {zone}, {severity}."),
    "pacemaker": ("{side} <pacemaker> in place.", "<Pacemaker> on the {side} without complication."),
    "central line": (
        "{side} <central line> in satisfactory position.",
        "<Central venous catheter> from the {side}, well placed.",
    ),
    "port": ("{side} chest <port> in satisfactory position.", "<Port> on the {side} without complication."),
    "endotracheal tube": ("<Endotracheal tube> in satisfactory position.", "Well placed <endotracheal tube>."),
    "sternal wires": ("Intact <sternal wires>.", "Status after sternotomy with intact <wires>."),
}
"""How a finding is stated in the impression."""

DOUBTS = (
    "<hedge|Possible> {severity} {side} {name}.",
    "A {severity} {side} {name} <hedge|cannot be excluded>.",
    "Subtle change on the {side} is <hedge|questionable> for {severity} {name}.",
)
PLAIN_DOUBTS = ("<hedge|Possible> {severity} {name}.", "{severity} {name} <hedge|cannot be excluded>.")
SUMMARY_DOUBTS = (
    "<hedge|Possible> {severity} {side} {name}.",
    "<hedge|Questionable> {side} {name}, {severity} if real.",
)

COMPARISONS = (
    "Compared with the prior study,",
    "In comparison with the previous radiograph,",
    "As compared to the earlier examination,",
    "Since the prior exam,",
)


@dataclass(frozen=True)
class Denial:
    """A sentence that says that findings are absent."""

    text: str
    words: tuple[tuple[str, str], ...]
    """Each finding that it names, with the words for it, in the order of the text."""

    also: tuple[str, ...] = ()
    """Findings that it does not name, and that must be absent too."""
    absent: frozenset[str] = field(init=False)
    """All findings that must be absent for the sentence to be true."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "absent", frozenset((*(name for name, _ in self.words), *self.also)))


_PTX, _EFF = ("Pneumothorax", "pneumothorax"), ("Pleural Effusion", "pleural effusion")
DENIALS = (
    Denial("No pneumothorax or pleural effusion.", (_PTX, _EFF)),
    Denial("There is no pleural effusion or pneumothorax.", (_EFF, _PTX)),
    Denial("Neither pleural effusion nor pneumothorax is seen.", (_EFF, _PTX)),
    Denial("No pneumothorax.", (_PTX,)),
    Denial("There is no evidence of pneumothorax.", (_PTX,)),
    Denial("No pleural effusion is identified.", (_EFF,)),
    Denial("The costophrenic angles are sharp.", (("Pleural Effusion", "costophrenic angles are sharp"),)),
    Denial("The lungs are clear.", (("Lung Opacity", "lungs are clear"),), ("Consolidation", "Atelectasis", "Nodule")),
    Denial("Both lungs are clear.", (("Lung Opacity", "lungs are clear"),), ("Consolidation", "Atelectasis", "Nodule")),
    Denial("No focal consolidation.", (("Consolidation", "consolidation"),)),
    Denial(
        "There is no focal opacity or consolidation.", (("Lung Opacity", "opacity"), ("Consolidation", "consolidation"))
    ),
    Denial("No suspicious pulmonary nodule.", (("Nodule", "pulmonary nodule"),)),
    Denial("No atelectasis.", (("Atelectasis", "atelectasis"),)),
    Denial("The heart is normal in size.", (("Cardiomegaly", "heart is normal in size"),)),
    Denial(
        "The cardiac silhouette is within normal limits.",
        (("Cardiomegaly", "cardiac silhouette is within normal limits"),),
    ),
    Denial("There is no cardiomegaly.", (("Cardiomegaly", "cardiomegaly"),)),
    Denial("No lines, tubes or implanted devices.", (("Support Devices", "devices"),)),
)
SUMMARY_DENIALS = (
    Denial("No pneumothorax.", (_PTX,)),
    Denial("No pleural effusion.", (_EFF,)),
    Denial("No focal consolidation.", (("Consolidation", "consolidation"),)),
    Denial("Heart size is normal.", (("Cardiomegaly", "Heart size is normal"),)),
)

NORMAL_SUMMARIES = (
    "No acute cardiopulmonary process.",
    "Normal chest radiograph.",
    "No acute abnormality.",
    "No evidence of acute cardiopulmonary disease.",
    "Unremarkable examination of the chest.",
)

FILLER_SENTENCES = (
    "Frontal view of the chest was obtained.",
    "A single view is submitted for interpretation.",
    "The examination was performed in the radiology department.",
    "The study is of diagnostic quality.",
    "The patient is slightly rotated.",
    "Positioning is adequate.",
    "Inspiration is satisfactory.",
    "The exposure is appropriate.",
    "The visualized bony structures are unremarkable.",
    "Mild degenerative changes of the thoracic spine.",
    "No acute osseous injury.",
    "The ribs are intact.",
    "The clavicles appear symmetric.",
    "The soft tissues are unremarkable.",
    "The upper abdomen is unremarkable.",
    "No free air beneath the diaphragm.",
    "The trachea is midline.",
    "The hilar contours are normal.",
    "The aorta is mildly tortuous.",
    "Aortic arch calcification is noted.",
    "Clinical correlation is recommended.",
    "Attention on follow-up is suggested.",
    "The results were made available to the referring service.",
    "Please refer to the clinical record for further details.",
    "Technique and positioning limit the assessment of fine detail.",
    "The image was reviewed on a diagnostic workstation.",
    "External material projects over the neck.",
    "The shoulders are included in the field of view.",
    "The thoracic cage is symmetric.",
    "Bone density is normal for age.",
    "The history was reviewed before reporting.",
    "Overlying clothing causes minor artefact.",
    "The diaphragmatic contours are smooth.",
    "The visualized neck is unremarkable.",
    "The report was dictated shortly after the examination.",
)
"""Sentences that say nothing about any finding."""
