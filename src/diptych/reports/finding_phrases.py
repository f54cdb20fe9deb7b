"""Phrases that name a finding, say that all is well with it, or leave it open. The labeller looks for them in a clause."""

from __future__ import annotations

__all__ = ["DOUBTFUL", "NAMES", "NAMES_OF_NEGBIO", "NORMAL"]

_WORD = r"[^\s,;]+"


def _few(most: int, without: str = "") -> str:
    """A pattern of up to ``most`` words in between, where none is one of ``without``."""
    guard = rf"(?!(?:{without})\b)" if without else ""
    return rf"(?: {guard}{_WORD}){{0,{most}}}?"


_HEART = r"(?:heart|cardiac (?:silhouette|size|shadow|contours?)|cardiopericardial silhouette)"
_MEDIASTINUM = (
    r"(?:cardiomediastinal (?:silhouette|contours?)|cardiomediastinum|"
    r"mediastin(?:um|al(?: (?:silhouette|contours?|width|structures))?))"
)
_VESSELS = r"(?:(?:central|pulmonary|lung) )*(?:vascularity|vasculature|vessels)"
_LARGE = r"(?:enlarged|enlargement|increased)"
_WELL = r"(?:normal|unremarkable|within normal limits)"
_NOT = "not?|normal|without|unremarkable|borderline"

NAMES: dict[str, tuple[str, ...]] = {
    "Enlarged Cardiomediastinum": (
        rf"(?:widened|enlarged|wide|prominent|widening of the|enlargement of the)(?: (?:superior|upper))? {_MEDIASTINUM}",
        rf"{_MEDIASTINUM}{_few(4, _NOT)} (?:widened|widening|enlarged|enlargement|wide|prominent|prominence)",
    ),
    "Cardiomegaly": (
        r"cardiomegaly",
        rf"{_LARGE}(?: (?:of|in|the|size)){{0,3}} {_HEART}",
        rf"{_HEART}(?: size)?{_few(5, _NOT)} (?:{_LARGE}|large|prominent)",
        r"cardiac enlargement",
    ),
    "Lung Opacity": (
        r"(?<!nodular )(?:opacit(?:y|ies)|opacification|opacified)",
        r"infiltrates?|infiltration",
        r"air ?space (?:disease|process)",
        r"haziness|ground ?glass",
        rf"(?:increased|prominent|coarse(?:ned)?) (?:{_WORD} )?(?:interstitial|lung|pulmonary) markings",
        r"reticul(?:ar|onodular) (?:pattern|markings)|reticulation",
        r"interstitial (?:disease|thickening|prominence|pattern)",
        r"(?:increased|hazy) density",
    ),
    "Lung Lesion": (
        rf"nodules?|nodular{_few(4, 'calcified')} (?:opacit(?:y|ies)|densit(?:y|ies)|lesions?|focus|foci)|nodularity",
        r"(?:fibro|reticulo)nodular|nodular irregularities",
        r"mass(?:es)?(?! effect)|mass ?like",
        r"(?:lung|pulmonary|cavitary|cavitating|parenchymal) lesions?|cavitation",
        r"neoplasms?|malignan(?:cy|t)|tumou?rs?|carcinoma|lung cancer",
    ),
    "Edema": (
        r"(?<!subcutaneous )(?<!tissue )o?edema",
        r"(?:vascular|venous|pulmonary|vessel) (?:congestion|engorgement|prominence|indistinctness)",
        rf"(?:prominence|engorgement|indistinctness) of (?:the )?{_VESSELS}",
        rf"(?:increased|engorged|indistinct|prominent) {_VESSELS}",
        rf"{_VESSELS}{_few(3, _NOT)} (?:prominent|engorged|congested|increased)",
        r"(?:congestive )?(?:heart|cardiac) failure|chf",
        r"(?:fluid|volume) overload",
    ),
    "Consolidation": (r"consolidat\w+",),
    "Pneumonia": (r"(?:broncho)?pneumonias?", r"(?<!granulomatous )infectio(?:n|us)"),
    "Atelectasis": (r"atelecta\w+", r"(?<!vertebral )(?<!body )collapse\b"),
    "Pneumothorax": (r"(?:hydro|haemo|hemo)?pneumothora(?:x|ces)|pleural air",),
    "Pleural Effusion": (
        r"(?<!pericardial )(?<!joint )effusions?(?! of the pericard)",
        r"pleural fluid",
        r"(?:hydro|h(?:a)?emo)(?:pneumo)?thorax",
    ),
    "Pleural Other": (
        r"pleural(?: (?:and|or|apical|based|parenchymal|opacity)){0,2} (?:thickening|scar\w*|plaques?|calcifications?)",
        r"pleuro ?parenchymal(?: \w+){0,2} (?:thickening|scar\w*)|fibrothorax",
        r"(?:thickening|scarring) of the (?:\w+ )?(?:pleura|fissures?)|fissural thickening|"
        r"(?:bi)?apical (?:\w+ ){0,2}(?:cap(?:ping)?|thickening)",
    ),
    "Fracture": (r"(?<!wire )(?<!lead )fractur(?:e|es|ed)(?! (?:(?:sternal|sternotomy) )?(?:wire|lead))",),
    "Support Devices": (
        r"(?:endotracheal|tracheostomy|nasogastric|orogastric|enteric|feeding|gastric|chest|pleural|ng|et|dobbhoff) tubes?",
        r"(?:(?:central|venous|picc|jugular|subclavian|arterial|dialysis|lines and|support) )+(?:lines?|catheters?|tubes?)",
        r"catheters?|picc|port ?a ?cath|mediport|swan ganz|iabp|balloon pump",
        r"pacemakers?|pacers?|pacing|icd|aicd|defibrillator|(?:pacer|pacemaker|icd) leads?",
        r"(?:chest (?:wall )?)?ports?(?! (?:able|film))",
        r"(?:sternotomy|sternal|cerclage) wires?|sternotomy|surgical clips?|clips",
        r"stents?|hardware|prosthe(?:sis|ses|tic)|valve (?:replacement|prosthesis)|drains?|devices?|tracheostomy",
        r"(?<!kerley )(?<!kerley b )(?<!septal )(?<!fissural )(?<!pleural )(?<!reticular )lines|tubes",
    ),
}
"""Phrases that name a finding, as CheXpert's labeller defines the findings."""

NAMES_OF_NEGBIO = NAMES | {
    "Edema": NAMES["Edema"][:1],
    "Lung Lesion": (
        r"(?<!reticular )nodules?|nodularity|(?:fibro|reticulo)nodular",
        r"mass(?:es)?(?! effect)|mass ?like",
    ),
    "Pleural Other": (
        r"pleural(?: (?:and|or|apical|based|parenchymal|opacity|scar\w*)){0,3} thickening|fissural thickening",
        r"thickening of the (?:\w+ )?(?:pleura|fissures?)|(?:bi)?apical (?:\w+ ){0,2}(?:cap(?:ping)?|thickening)",
    ),
}
"""The same for the terms of Open-i's indexers. Congestion is no edema there, a round density no nodule,
and a scar of the pleura is not its thickening."""

NORMAL: dict[str, tuple[str, ...]] = {
    "Enlarged Cardiomediastinum": (
        rf"{_MEDIASTINUM}{_few(9, 'not|abnormal|enlarged|widened')} (?:{_WELL}|not (?:widened|enlarged))",
        rf"(?:normal|unremarkable)(?: (?:appearance of the|heart size and|heart and))? {_MEDIASTINUM}",
    ),
    "Cardiomegaly": (
        rf"{_HEART}(?: size)?{_few(9, 'not|abnormal|enlarged')} (?:{_WELL}|not (?:\w+ )?enlarged)",
        rf"(?:normal|unremarkable)(?: (?:size of the|sized|appearance of the|cardiac))? {_HEART}",
        rf"cardiomediastinal (?:silhouette|contours?)(?: (?:is|are|remains?|appears?|stable|and)){{0,3}} {_WELL}",
        r"(?:normal|unremarkable)(?: appearance of the)? cardiomediastinal silhouette",
    ),
    "Lung Opacity": (
        rf"(?:lungs?|lung (?:fields|volumes|bases)){_few(6, 'not|opacity')} clear(?! of (?:pneumo|eff))",
        r"clear (?:bilateral )?lungs?",
    ),
    "Pleural Effusion": (
        rf"(?:(?:costophrenic|cp) (?:angles?|sulci|sulcus|recess\w*)|pleural spaces?){_few(4, 'not|blunted|obscured')} "
        r"(?:sharp|clear|preserved|normal|maintained)",
    ),
}
"""Phrases that say that all is well."""

DOUBTFUL: dict[str, tuple[str, ...]] = {
    "Pleural Effusion": (
        rf"blunt(?:ing|ed){_few(5)} (?:costophrenic|cp)",
        rf"(?:costophrenic|cp){_few(5, _NOT)} (?:blunt(?:ing|ed)|obscured)",
    ),
    "Cardiomegaly": (
        rf"(?:borderline|upper limits? of normal|top normal){_few(4)} (?:{_HEART}|cardiomegaly|enlarge\w+)",
        rf"{_HEART}{_few(5)} (?:borderline|upper limits? of normal|top normal)",
    ),
}
"""Phrases that leave the finding open."""
