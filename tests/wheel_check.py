"""Build wheel and sdist, and look what is in them.

The wheel is installed alone in an empty environment, and its catalogue is counted: three ways of writing the packaging files
build with exit code 0 and lose every head. The sdist holds the files of git and no others. A wheel that is built from it equals
the one of the tree. Run by ``make wheel``.
"""

import configparser
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOR_GIT = {".ci/run", ".gitattributes", ".gitignore", ".pre-commit-config.yaml"}
"""Files of git that nobody needs who has no clone."""
LARGEST = 500_000
"""Bytes of a file in the sdist."""
SECTIONS = ("heads", "datamodules", "tasks", "evaluators", "peers", "commands")


def lines(section: str) -> list[str]:
    """Names a section of the catalogue in setup.cfg lists."""
    catalogue = configparser.ConfigParser()
    catalogue.read(ROOT / "setup.cfg")
    return sorted(
        line.split("=")[0].strip() for line in catalogue["options.entry_points"][section].split("\n") if "=" in line
    )


COUNT = """
import importlib.metadata, importlib.util, sys
points = importlib.metadata.entry_points(group=sys.argv[1])
for point in points:
    module, _, attribute = point.value.partition(":")
    path = importlib.util.find_spec(module.split(".")[0]).submodule_search_locations[0]
    inner = "/".join(module.split(".")[1:])
    source = next(p for p in (f"{path}/{inner}.py", f"{path}/{inner}/__init__.py") if __import__("os").path.exists(p))
    assert attribute in open(source).read(), f"{attribute} is not in {source}"
print(" ".join(sorted(point.name for point in points)))
"""


def run(*words: str) -> str:
    """What a command prints. It ends this one if it fails."""
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def build(source: Path, folder: Path, kind: str) -> Path:
    """Build a ``wheel`` or an ``sdist`` into a new folder, in an environment of its own."""
    run(sys.executable, "-m", "build", f"--{kind}", "--outdir", str(folder), str(source))
    (made,) = folder.iterdir()
    return made


def check_catalogue(wheel: Path, folder: Path) -> None:
    """Install the wheel without dependencies, and compare its catalogue with setup.cfg."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin/python")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check", str(wheel))
    for section in (f"diptych.{name}" for name in SECTIONS):
        found, expected = run(python, "-c", COUNT, section).split(), lines(section)
        if found != expected:
            sys.exit(f"the wheel's {section} are {found}, setup.cfg lists {expected}")
        print(f"{section}: {len(found)} in the wheel ({', '.join(found)})")
    version = run(str(folder / "bin/diptych"), "--version").split()[1]
    if version != wheel.name.split("-")[1]:
        sys.exit(f"diptych --version says {version}, and the wheel is {wheel.name}")
    print(f"diptych {version}")


def tracked() -> set[str]:
    """The files of git."""
    return set(run("git", "-C", str(ROOT), "ls-files").split("\n")) - {""}


def check_packages(wheel: Path) -> None:
    """The wheel holds every file of the packages, those without code too."""
    folders = ("src/", "heads/", "datamodules/")
    own = {name.partition("/")[2] for name in tracked() if name.startswith(folders)}
    if missing := sorted(own - set(contents(wheel))):
        sys.exit(f"the wheel lacks {', '.join(missing)}; name their kind in pyproject.toml under package-data")
    print(f"wheel: {len(own)} files of the packages")


def check_files(sdist: Path) -> None:
    """The sdist holds the files of git, those for git itself left out, and no large one."""
    with tarfile.open(sdist) as archive:
        sizes = {member.name.partition("/")[2]: member.size for member in archive if member.isfile()}
    sizes = {name: size for name, size in sizes.items() if name != "PKG-INFO" and ".egg-info/" not in name}
    if large := {name: size for name, size in sizes.items() if size > LARGEST}:
        sys.exit(f"the sdist has files above {LARGEST:,} bytes: {large}")
    expected = tracked() - FOR_GIT
    if missing := sorted(expected - set(sizes)):
        sys.exit(f"the sdist lacks {', '.join(missing)}; name their kind in MANIFEST.in")
    if others := sorted(set(sizes) - expected):
        sys.exit(f"the sdist holds files that are not in git: {', '.join(others)}; add them, or remove them")
    print(f"sdist: {len(sizes)} files, those of git, {sdist.stat().st_size / 1e6:.1f} MB")


def contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def copied(folder: Path) -> Path:
    """The files of git in a folder of their own.

    A build in the tree leaves an ``egg-info`` there. Python run from the tree then reads the catalogue in it, even an old one.
    """
    for name in tracked():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, place)
    return folder


def main() -> None:
    """Build both, and check them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree = copied(folder / "source")
        wheel = build(tree, folder / "tree", "wheel")
        check_packages(wheel)
        check_catalogue(wheel, folder / "environment")
        sdist = build(tree, folder / "sdist", "sdist")
        check_files(sdist)
        with tarfile.open(sdist) as archive:
            archive.extractall(folder / "unpacked", filter="data")
        (source,) = (folder / "unpacked").iterdir()
        again, first = contents(build(source, folder / "again", "wheel")), contents(wheel)
        if changed := sorted(name for name in again | first if again.get(name) != first.get(name)):
            sys.exit(f"the wheel of the sdist differs from the tree's: {', '.join(changed)}")
        print(f"the wheel of the sdist equals the tree's: {len(first)} files")


if __name__ == "__main__":
    main()
