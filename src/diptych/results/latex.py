"""A table in LaTeX, with booktabs: names that a reader knows, and the best figures in bold."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from diptych.escaping import for_latex

__all__ = ["readable", "tabular"]

_KNOWN = {
    "auroc": "AUROC", "auprc": "AUPRC", "f1": "F1", "mcc": "MCC", "ece": "ECE", "iou": "IoU", "miou": "mIoU", "dice": "Dice",
    "cnr": "CNR", "map": "mAP", "map50": "mAP50", "bleu": "BLEU", "rouge": "ROUGE", "meteor": "METEOR", "brier": "Brier score",
}  # fmt: skip
"""Names of measures as papers write them."""


def readable(metric: str) -> str:
    """The name of a metric, for the head of a column.

    >>> readable("auroc/macro"), readable("image_to_text/r@5"), readable("10%/auroc/Pleural Effusion")
    ('AUROC (macro)', 'image to text R@5', '10% AUROC (Pleural Effusion)')
    """
    words: list[str] = []
    for part in metric.split("/"):
        words.append(_KNOWN.get(part, re.sub(r"^r@(?=\d)", "R@", part).replace("_", " ")))
        if len(words) > 1 and words[-2] in _KNOWN.values():
            words[-1] = f"({words[-1]})"
    return " ".join(words)


def tabular(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: int = 1,
    bold: Collection[tuple[int, int]] = (),
) -> str:
    """A table as LaTeX.

    Args:
        caption: stands above it.
        header: names of the columns.
        rows: each has as many cells as the header.
        left: so many columns are on the left, the others on the right.
        bold: row and column, from 0, of the cells in bold. Their interval in brackets stays as it is.
    """
    lines = [[for_latex(cell) for cell in row] for row in rows]
    for i, j in bold:
        figure, bracket, interval = lines[i][j].partition(" (")
        lines[i][j] = f"\\textbf{{{figure}}}{bracket}{interval}"
    body = "\n".join(" & ".join(line) + r" \\" for line in lines)
    return (
        f"\\begin{{table}}\n\\caption{{{for_latex(caption)}}}\n"
        f"\\begin{{tabular}}{{{'l' * left}{'r' * (len(header) - left)}}}\n\\toprule\n"
        f"{' & '.join(map(for_latex, header))} \\\\\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )
