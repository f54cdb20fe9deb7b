"""The page in a real browser: what a reader does, what is seen, and that nothing leaves this machine."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from chromium import Chromium
from PIL import Image

import diptych
from diptych.app.answers import Warm, answer
from diptych.app.server import MOST_BYTES, Page, Server

TEXT = "document.getElementById('{}').textContent"


@pytest.fixture(scope="module")
def address(world):
    reports = (world / "reports.txt").read_text().splitlines()
    models = [Warm(name, diptych.load(world / name), reports=reports) for name in ("local", "whole")]
    about = {"models": [model.about for model in models], "most_bytes": MOST_BYTES}
    with Server(Page(about, lambda *question: answer(models, *question))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.address
        server.shutdown()
        thread.join()


def answered(browser, seconds=60):
    browser.wait("!document.querySelector('.busy') && document.querySelector('#models section')", seconds)


@pytest.mark.slow
def test_a_reader_asks_and_sees(world, address, tmp_path):
    with Chromium(1200, 900) as browser:
        browser.open(address)
        answered(browser)
        assert "with maps, findings of the prompt set rsna, 3 reports" in browser.run(TEXT.format("models"))
        browser.run("document.getElementById('phrase').value = 'There is an effusion and a nodule.'")
        browser.choose("#file", world / "scan")
        browser.wait("document.querySelector('.drawn')")
        answered(browser)
        seen = browser.run(TEXT.format("models"))
        assert "“effusion”" in seen
        assert "The head Global has no maps." in seen
        assert "Pneumonia" in seen
        assert "uncalibrated" in seen
        assert "<b>Both</b> & more." in seen, "a report must stay a text"
        assert browser.run("document.querySelectorAll('.picture .right').length") == 2
        assert browser.run("[...document.querySelectorAll('#chips button')].map(b => b.textContent)") == [
            "effusion",
            "nodule",
        ]
        browser.run("document.querySelectorAll('#chips button')[1].click()")
        browser.wait(f"{TEXT.format('models')}.includes('“nodule”')")
        browser.run("document.getElementById('map').click()")
        assert browser.run("getComputedStyle(document.querySelector('.drawn')).visibility") == "hidden"
        browser.run("document.getElementById('sides').click()")
        assert browser.run("document.querySelectorAll('.picture b').length") == 0

        (tmp_path / "bad.png").write_text("no picture, but a text that is long enough")
        browser.choose("#file", tmp_path / "bad.png")
        browser.wait("!document.getElementById('error').hidden")
        assert browser.run(TEXT.format("error")).startswith("bad.png: picture: ")
        answered(browser)
        assert browser.run("document.querySelectorAll('.picture').length") == 0

        refused = [text for text in browser.complaints if "422" not in text]  # the bad picture's answer
        assert refused == []
        hosts = {url.split("/")[2] for url in browser.asked if not url.startswith(("data:", "about:"))}
        assert hosts == {address.split("/")[2]}


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (380, False)])
def test_the_page_fits_its_window_and_follows_the_reader(world, address, tmp_path, width, dark):
    with Chromium(width, 800, dark) as browser:
        browser.open(address)
        answered(browser)
        browser.run("document.getElementById('phrase').value = 'There is an effusion.'")
        browser.choose("#file", world / "pairs" / "000.png")
        browser.wait("document.querySelector('.drawn')")
        answered(browser)
        assert browser.run("document.documentElement.scrollWidth") <= width
        browser.run("window.scrollTo(0, document.body.scrollHeight)")
        place = browser.run("document.getElementById('never').getBoundingClientRect().top")
        assert 0 <= place < 100, "'Not for clinical use' must always be in view"
        widths = browser.run("[...document.querySelectorAll('.picture img')].map(i => i.getBoundingClientRect().width)")
        assert min(widths) > 150
        browser.screenshot(tmp_path / "page.png")
        pixels = np.asarray(Image.open(tmp_path / "page.png").convert("L"))
        assert pixels.shape[1] == width
        assert (np.median(pixels) < 60) == dark
