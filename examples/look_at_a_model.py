"""A look at a trained model: scores, the nearest report, and where it sees a word.

``make demo HEAD=local_pooling`` trains one, in ``runs/demo-local_pooling``. Then run
``python examples/look_at_a_model.py runs/demo-local_pooling``. Radiographs of your own may be named after the run.
"""

import argparse
from pathlib import Path

import diptych
from diptych_datamodules.phantom import Phantom

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("run", help="folder of a run, or a checkpoint")
parser.add_argument("pictures", nargs="*", help="radiographs; test phantoms if none is named")
parser.add_argument("--text", default="There is a left pleural effusion.", help="the sentence to look for")
parser.add_argument("--out", type=Path, default=Path("looked_at.png"), help="the picture to write: .png, .svg or .pdf")
arguments = parser.parse_args()

model = diptych.load(arguments.run)
pictures, reports = arguments.pictures, [arguments.text, "No pleural effusion.", "The heart is enlarged."]
if not pictures:
    data = Phantom(train=1, val=1, test=6, size=128, seed=1, section="impression")
    data.setup("test")
    samples = [data.native("test", index) for index in range(6)]
    pictures, reports = [sample.image for sample in samples], reports + [sample.text for sample in samples]

# Scores: what training optimised, and what testing ranks by.
scores = model.similarity(pictures, reports)  # [pictures,reports]
for index, row in enumerate(scores):
    print(f"picture {index}: score of '{arguments.text}' {row[0]:.3f}; nearest report: {reports[int(row.argmax())]}")

# Vectors: the cosine of two pictures, in the space that both panels share.
vectors = model.embed_image(pictures).pooled  # [pictures,E], of length 1
print("cosines of the first picture with all:", *(f"{value:.2f}" for value in (vectors @ vectors[0]).tolist()))

# Maps: where the picture that scores highest shows each word. Heads without matchings of words have none.
first = pictures[int(scores[:, 0].argmax())]
try:
    seen = model.look(first, arguments.text)  # maps [words,h,v], at the picture's own size
except diptych.ConfigError as error:
    raise SystemExit(f"no picture is written: {error}") from error
for word, entropy, regions in zip(seen.words, seen.entropy, seen.regions, strict=True):
    print(f"{word:12} entropy {entropy:.2f} (1 is flat), peak {regions.max():.1f} times the mean region")
model.show(first, arguments.text, arguments.out)
print(f"{arguments.out}: the words of findings first, all on one scale")
