"""How fast `diptych app` answers with a map: of another picture, and of another word of the same.

python benchmarks/app.py RUN [RUN2] [--reports FILE] [--size 1024] [--rounds 10]

The pictures are phantoms. Questions go over HTTP, as the browser sends them. The first of each kind is left out. Processor
time is that of the whole process, which asks and answers.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import statistics
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from diptych.app.answers import Warm, answer
from diptych.app.server import Page, Server
from diptych.cli.predict import read_reports
from diptych.model.inference import load
from diptych_datamodules.phantom import Phantom


def phantoms(number: int, size: int) -> list[bytes]:
    data = Phantom(train=1, val=1, test=number, size=size)
    data.setup("test")
    files = []
    for i in range(number):
        file = io.BytesIO()
        Image.fromarray(data.datasets["test"].read(i, np.random.default_rng(0)).image).save(file, format="PNG")
        files.append(file.getvalue())
    return files


def ask(address: str, phrase: str, raw: bytes, word: int | None) -> float:
    parts = urlsplit(address)
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", parts.port)
    body = json.dumps({"phrase": phrase, "word": word}).encode() + b"\n" + raw
    connection.request("POST", f"{parts.path}ask", body, {"Origin": f"http://127.0.0.1:{parts.port}"})
    reply = connection.getresponse()
    reply.read()
    assert reply.status == 200
    return time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--reports", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    reports = arguments.reports and read_reports(arguments.reports, "text")
    models = [Warm(run, load(run), reports=reports) for run in arguments.runs]
    pictures = phantoms(arguments.rounds + 1, arguments.size)
    phrase = "There is a large left pleural effusion. No pneumothorax."
    words = [phrase.index(word) for word in phrase.split()]
    with Server(Page({}, lambda *question: answer(models, *question))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in ("another picture", "another word"):
            clock, processor = [], []
            for i in range(arguments.rounds + 1):
                picture = pictures[i if name == "another picture" else 0]
                before = time.process_time()
                clock.append(ask(server.address, phrase, picture, words[i % len(words)]))
                processor.append(time.process_time() - before)
            print(
                f"{name}: clock median {statistics.median(clock[1:]):.3f} s, slowest {max(clock[1:]):.3f} s;", end=" "
            )
            print(f"processor median {statistics.median(processor[1:]):.3f} s")
        server.shutdown()
