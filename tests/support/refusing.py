"""Files from elsewhere must run nothing: what tests of hostile files share."""

import sys

import pytest

from diptych.errors import ConfigError, DataError

LOUD = "raise SystemExit('evilmod was imported')"
COMMAND = {"class_path": "os.system", "init_args": {"command": "touch /tmp/diptych-was-here"}}


def at(checkpoint, path, value):
    """Put a value at a path of keys."""
    *before, last = path.split("/")
    place = checkpoint
    for key in before:
        place = place[int(key) if isinstance(place, list) else key]
    place[int(last) if isinstance(place, list) else last] = value
    return checkpoint


WORDS = ("encoder.text._extra_state", "tokenizer")


def tensor(checkpoint, change):
    name = next(name for name, value in checkpoint["state_dict"].items() if getattr(value, "ndim", 0) == 2)
    return at(checkpoint, f"state_dict/{name}", change(checkpoint["state_dict"][name]))


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """A folder on the path with a module that says when it is imported."""
    folder = tmp_path_factory.mktemp("evil")
    (folder / "evilmod.py").write_text(LOUD)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def refused(action, kind=(ConfigError, DataError)):
    """The one line that an action gives, which has done nothing else."""
    from watched import watched  # its audit hook stays in the process

    with watched() as seen, pytest.raises(kind) as caught:
        action()
    assert not seen
    assert "evilmod" not in sys.modules
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert len(message) < 1500
    return message
