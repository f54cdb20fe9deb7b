"""What Python does while a file from elsewhere is read: every import, process, connection and write, by an audit hook."""

import contextlib
import os
import sys

_STARTS = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.startfile",
    "pty.spawn", "ctypes.dlopen", "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname",
    "socket.sendto", "urllib.Request", "ftplib.connect", "webbrowser.open", "os.mkdir", "os.remove", "os.rename",
    "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.truncate", "os.putenv", "os.kill",
    "shutil.copyfile", "shutil.move", "shutil.rmtree", "tempfile.mkstemp", "tempfile.mkdtemp", "sqlite3.connect",
)  # fmt: skip
_OURS = (
    "diptych", "diptych_heads", "diptych_datamodules", "torch", "timm", "transformers", "tokenizers", "numpy",
    "lightning", "safetensors", "cv2", "PIL", "pydicom", "huggingface_hub", "torchvision", "yaml", "rich", "encodings",
)  # fmt: skip
"""Packages that diptych needs: their own late imports are not a file's doing."""

_seen: list[str] | None = None


def _hook(event, args):
    if _seen is None:
        return
    if event == "import":
        name = str(args[0])
        if name.partition(".")[0] not in _OURS and name not in sys.modules:
            _seen.append(f"import {name}")
    elif event == "open":
        path, mode, flags = args
        writes = (mode and set(mode) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and path != os.devnull:
            _seen.append(f"open {path!r} {mode} {flags}")
    elif event in _STARTS:
        _seen.append(f"{event} {args!r}"[:200])


sys.addaudithook(_hook)  # it cannot be removed: once a process, and idle outside of watched()


@contextlib.contextmanager
def watched():
    """The list of all that happens within."""
    global _seen
    _seen = seen = []
    try:
        yield seen
    finally:
        _seen = None
