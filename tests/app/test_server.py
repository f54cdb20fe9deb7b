"""The page's server: it answers its own page alone, keeps nothing, and ends when it is told to."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import warm
from mini import own_environment

from diptych.app.server import MOST_BYTES, Page, Server
from diptych.cli.app import main
from diptych.errors import ConfigError, DataError


class Client:
    """Requests to a server, with headers as a browser on its page would send them."""

    def __init__(self, address):
        parts = urlsplit(address)
        self.port, self.path = parts.port, parts.path
        self.own = {"Origin": f"http://127.0.0.1:{self.port}"}

    def get(self, place="", path=None, **headers):
        return self._request("GET", (self.path if path is None else path) + place, None, headers)

    def ask(self, phrase="", raw=b"", word=None, path=None, **headers):
        line = json.dumps({"phrase": phrase, "word": word}).encode()
        return self.post(line + b"\n" + raw, path, **headers)

    def post(self, body, path=None, **headers):
        return self._request("POST", self.path + "ask" if path is None else path, body, self.own | headers)

    def _request(self, method, path, body, headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, {k: v for k, v in headers.items() if v is not None})
        reply = connection.getresponse()
        content = reply.read()
        connection.close()
        return reply.status, reply.headers, content


def replying(raw, phrase, word):
    """An answer without a model."""
    if raw == b"bad":
        raise DataError("picture: it is\nbad; leave it out")
    if raw == b"broken":
        raise ZeroDivisionError("deep inside")
    if raw == b"nan":
        return {"score": float("nan")}
    return {"bytes": len(raw), "phrase": phrase, "word": word}


@pytest.fixture(scope="module")
def server():
    with Server(Page({"models": [], "most_bytes": MOST_BYTES}, replying)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client(server):
    return Client(server.address)


def test_the_page_its_style_and_its_script_come_from_here_alone(client):
    for place, kind in (("", "text/html"), ("page.css", "text/css"), ("page.js", "text/javascript")):
        status, headers, content = client.get(place)
        assert (status, headers.get_content_type()) == (200, kind)
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["Cache-Control"] == "no-store"
        assert b"://" not in content, "the page names an address of a network"
    page = client.get()[2].decode()
    assert "Not for clinical use" in page
    assert "<script>" not in page
    assert "innerHTML" not in client.get("page.js")[2].decode()
    assert json.loads(client.get("about")[2])["most_bytes"] == MOST_BYTES


def test_a_question_is_a_line_and_a_file(client):
    raw = b"\n\0{}" * 1000
    status, headers, content = client.ask("Übel “left”", raw, 3)
    said = json.loads(content)
    assert said.pop("seconds") >= 0
    assert (status, headers.get_content_type()) == (200, "application/json")
    assert said == {"bytes": 4000, "phrase": "Übel “left”", "word": 3}


@pytest.mark.parametrize("path", ["/ask", "/wrong/ask", "/%2e/ask", "//ask", "/"])
def test_a_question_without_the_secret_is_refused(client, path):
    status, _, content = client.ask(path=path)
    assert status == 404
    assert set(json.loads(content)) == {"error"}
    assert client.path.strip("/").encode() not in content


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:80", "Origin": "http://evil.example:80"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "[bad"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ],
)
def test_another_host_and_another_page_are_refused(client, headers):
    assert client.ask(**headers)[0] == 403
    assert client.get(**headers)[0] == 403


def test_a_question_that_names_no_page_is_refused(client):
    assert client.ask(Origin=None)[0] == 403


def test_every_place_needs_the_secret(client):
    for place in ("", "about", "page.js"):
        assert client.get(place, path="/")[0] == 404
        assert client.get(place, path=f"{client.path[:-2]}/")[0] == 404
    assert client.get("../page.html")[0] == 404
    assert client.get("nothing")[0] == 404
    assert client.get(Host=f"localhost:{client.port}")[0] == 200


def test_another_method_is_refused(client):
    for method in ("PUT", "OPTIONS", "DELETE"):
        assert client._request(method, client.path, None, client.own)[0] == 501


def test_what_is_too_large_is_refused_before_it_is_read(client):
    status, _, content = client.post(None, **{"Content-Length": str(MOST_BYTES + 1)})
    assert status == 413
    assert "64 MiB" in json.loads(content)["error"]
    for length in ("-1", "many", "1e3", "²"):
        with socket.create_connection(("127.0.0.1", client.port), timeout=60) as sender:
            head = f"POST {client.path}ask HTTP/1.0\r\nHost: 127.0.0.1\r\nOrigin: http://127.0.0.1\r\n"
            sender.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode("latin-1", "replace"))
            assert b" 411 " in sender.recv(64)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]\n", b"{\n", b'{"phrase": 1}\n', b'{"phrase": "a", "word": true}\n'])
def test_a_question_of_another_form_is_refused(client, body):
    status, _, content = client.post(body)
    assert status == 400
    assert "question" in json.loads(content)["error"]
    assert client.post(b"[" * 60000 + b"\n")[0] == 400
    assert client.post(b" " * (1 << 17) + b'{"phrase": ""}\n')[0] == 400


def test_errors_are_told_and_stop_nothing(client, capfd):
    status, _, content = client.ask(raw=b"bad")
    assert (status, json.loads(content)) == (422, {"error": "picture: it is bad; leave it out"})
    status, _, content = client.ask(raw=b"broken")
    assert status == 500
    assert json.loads(content)["error"].startswith("ZeroDivisionError: deep inside")
    out, err = capfd.readouterr()
    assert "deep inside" in err
    assert client.path.strip("/") not in out + err
    assert client.ask(raw=b"good")[0] == 200


@pytest.mark.parametrize("request_line", ["GET http://[ HTTP/1.0", "GET //[/ HTTP/1.0"])
def test_an_address_that_is_none_is_refused(client, capfd, request_line):
    with socket.create_connection(("127.0.0.1", client.port)) as sender:
        sender.sendall(f"{request_line}\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert b" 404 " in sender.recv(64)
    assert capfd.readouterr() == ("", "")


def test_a_length_of_any_digits_is_refused(client):
    assert client.post(b"x", **{"Content-Length": "9" * 5000})[0] == 413


def test_what_is_no_number_is_null(client):
    status, _, content = client.ask(raw=b"nan")
    assert (status, json.loads(content)["score"]) == (200, None)


def test_a_sender_that_goes_is_no_error(client, capfd):
    with socket.create_connection(("127.0.0.1", client.port)) as sender:
        head = f"POST {client.path}ask HTTP/1.0\r\nHost: 127.0.0.1\r\nOrigin: http://127.0.0.1\r\nContent-Length: 99\r\n\r\n"
        sender.sendall(head.encode() + b"part")
    assert client.ask(raw=b"good")[0] == 200
    for thread in [thread for thread in threading.enumerate() if "process_request_thread" in thread.name]:
        thread.join(60)
        assert not thread.is_alive()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["local", "whole", "local"], "3 runs are given"),
        (["local", "local"], "both runs are called 'local'; write NAME=RUN"),
        (["local", "--port", "70000"], "--port is 70000"),
        (["none"], "none"),
        (["local", "--prompts", "mine"], "no prompt set is called 'mine'"),
        (["local", "--reports", "none.txt"], "--reports none.txt: cannot be read"),
        (["local", "--colour", "red"], "app: unrecognized arguments"),
    ],
)
def test_wrong_options_are_named(world, monkeypatch, words, reason):
    monkeypatch.chdir(world)
    with pytest.raises(ConfigError, match=reason):
        main(words)


def test_a_port_that_is_taken_is_named(server):
    port = server.server_address[1]
    with pytest.raises(ConfigError, match=f"--port is {port}: .*; give another port"):
        Server(Page({}, replying), port)


# -- the whole command


class Running:
    """``diptych app`` in a process whose own and temporary folders are empty."""

    def __init__(self, folder, *words):
        self.folders = [folder / "work", folder / "temporary"]
        for place in self.folders:
            place.mkdir(parents=True)
        temporary = {name: str(self.folders[1]) for name in ("TMPDIR", "TEMP", "TMP")}
        self.command = warm.Command(["app", *map(str, words)], self.folders[0], own_environment() | temporary)
        self.out = self.command._files[0]
        end = time.monotonic() + 120
        while not self.out.exists() or "http://" not in self.out.read_text():
            assert self.command.poll() is None, self.command._files[1].read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        self.address = next(word for word in self.out.read_text().split() if word.startswith("http://"))

    def files(self):
        """What has been left in these folders."""
        return [file for place in self.folders for file in place.rglob("*")]

    def open_files(self):
        """Files outside of Python and its packages that the process holds open for writing."""
        found = []
        for link in Path(f"/proc/{self.command.pid}/fd").iterdir():
            flags = next(
                line for line in (link.parents[1] / "fdinfo" / link.name).read_text().splitlines() if "flags" in line
            )
            path = os.readlink(link)
            if path.startswith("/") and not path.startswith("/dev/") and int(flags.split()[1], 8) & os.O_ACCMODE:
                found.append(Path(path))
        return [path for path in found if path not in self.command._files]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_uploads_leave_nothing_whatever_ends_the_command(world, tmp_path, number):
    running = Running(tmp_path, world / "local", f"second={world / 'whole'}", "--reports", world / "reports.txt")
    client = Client(running.address)
    assert [one["name"] for one in json.loads(client.get("about")[2])["models"]] == ["local", "second"]
    for file in ("pairs/000.png", "scan"):
        status, _, content = client.ask("There is an effusion.", (world / file).read_bytes())
        assert status == 200, content
        one, other = json.loads(content)["models"]
        assert one["map"].startswith("data:image/jpeg;base64,")
        assert other["map"] is None
        assert len(other["zero_shot"]) == 1
        assert len(other["nearest"]) == 3
        assert running.files() == []
        assert running.open_files() == []
    status, _, content = client.ask("", (world / "scan").read_bytes()[:500])
    assert status == 422
    assert "picture: " in json.loads(content)["error"]
    with socket.create_connection(("127.0.0.1", client.port)) as sender:  # it ends in the midst of an upload
        head = f"POST {client.path}ask HTTP/1.0\r\nHost: 127.0.0.1\r\nOrigin: http://127.0.0.1\r\n"
        sender.sendall(f"{head}Content-Length: 9999\r\n\r\n".encode() + b"x" * 5000)
        os.kill(running.command.pid, number)
        done = running.command.finish(30)
    assert running.files() == []
    assert done.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 0), done.stderr
    if number != signal.SIGKILL:
        assert done.stdout.splitlines()[-1] == "closed"
        assert "Traceback" not in done.stderr
    with pytest.raises(OSError, match="refused"):
        client.get()


SLOW = """
import signal
import types
import torch
import diptych.app.answers as answers
import diptych.model.inference as inference
from diptych.cli.app import main

def answer(models, raw, phrase, word):
    print("begun", flush=True)
    ones = torch.ones(500, 500)
    for _ in range(300):
        ones = (ones @ ones).clamp(max=1)
    return {}

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
answers.answer = answer
answers.Warm = lambda *of, **options: types.SimpleNamespace(about={})
inference.load = lambda *of, **options: None
main(["a run"])
"""


@pytest.mark.slow
def test_an_answer_that_is_being_made_is_waited_for(tmp_path):
    """If Python ended under a thread within torch, the process would abort, and its core would hold the picture."""
    command = subprocess.Popen([sys.executable, "-c", SLOW], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    address = command.stdout.readline().strip()
    threading.Thread(target=lambda: Client(address).ask(raw=b"good"), daemon=True).start()
    while command.stdout.readline() != "begun\n":
        assert command.poll() is None
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=100)
    assert (command.returncode, out, err) == (0, "closed\n", "")
