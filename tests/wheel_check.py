"""Build the wheel, install it alone in an empty environment, and count what its catalogue offers.

Three ways of writing the packaging files build with exit code 0 and lose every head; this is how we would know.
Run by ``make wheel``.
"""

import configparser
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


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


def main() -> None:
    """Build, install without dependencies, compare."""
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"check": True, "stdout": subprocess.DEVNULL}
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--disable-pip-version-check"]
        subprocess.run([*build, "--wheel-dir", folder, str(ROOT)], **quiet)
        (wheel,) = Path(folder).glob("diptych-*.whl")
        venv.create(f"{folder}/env", with_pip=True)
        python = f"{folder}/env/bin/python"
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check", wheel], **quiet
        )
        for section in (
            "diptych.heads",
            "diptych.datamodules",
            "diptych.tasks",
            "diptych.evaluators",
            "diptych.peers",
            "diptych.commands",
        ):
            found = subprocess.run(
                [python, "-c", COUNT, section], check=True, capture_output=True, text=True
            ).stdout.split()
            expected = lines(section)
            if found != expected:
                sys.exit(f"the wheel's {section} are {found}, setup.cfg lists {expected}")
            print(f"{section}: {len(found)} in the wheel ({', '.join(found)})")
        version = subprocess.run([f"{folder}/env/bin/diptych", "--version"], check=True, capture_output=True, text=True)
        print(version.stdout.strip())


if __name__ == "__main__":
    main()
