"""``python -m diptych``: the command, where its script is not on the path."""

from diptych.cli.main import main

if __name__ == "__main__":  # worker processes import this file too
    main()
