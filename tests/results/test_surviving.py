"""The figures of a test are printed before anything is written, whatever cannot be written."""

import errno

import inprocess
import pytest
from mini import config, write_pairs

from diptych.cli.main import main
from diptych.errors import DataError
from diptych.results import table as results_table


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("surviving")
    (folder / "recipe.yaml").write_text(config(write_pairs(folder / "pairs"), epochs=1))
    done = inprocess.diptych("fit", "-c", str(folder / "recipe.yaml"), "--run", str(folder / "run"))
    assert done.returncode == 0, done.stderr
    return folder


def of_test(fitted, run, *options):
    checkpoint = str(fitted / "run" / "checkpoints" / "last.ckpt")
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt.0.part").write_text("half, of a killed process")
    words = ["-c", str(fitted / "recipe.yaml"), "--run", str(run), "--ckpt_path", checkpoint]
    done = inprocess.diptych("test", *words, *options)
    assert not list(run.rglob("*.part")), done.stderr
    return done


def last_line(done):
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("taken", ["results.json", "figures"])
def test_figures_are_printed_before_something_cannot_be_written(fitted, tmp_path, taken):
    if taken == "figures":
        (tmp_path / taken).write_text("a file where a folder should be")
    else:
        (tmp_path / taken).mkdir()
    done = of_test(fitted, tmp_path, "--figures.pairs", "1")
    assert done.returncode == 2
    assert last_line(done).startswith("diptych: error: ")
    assert "cannot be written" in last_line(done)
    assert taken in last_line(done)
    assert "Traceback" not in done.stderr
    assert done.stdout.count("test/retrieval/r@5") == 1
    assert (tmp_path / "results.json").is_file() == (taken == "figures")  # and pictures cost no figures either


def test_figures_are_printed_when_a_logger_fails_before_they_are_written(fitted, tmp_path):
    logger = ["--trainer.logger.class_path", "full_logger.FullLogger"]
    done = of_test(fitted, tmp_path, *logger, "--trainer.logger.init_args.save_dir", str(tmp_path))
    assert done.returncode == 2
    assert last_line(done).startswith("diptych: error: events: cannot be read or written (No space left on device)")
    assert done.stdout.count("test/retrieval/r@5") == 1


def test_results_are_written_though_nobody_reads_the_table(fitted, tmp_path, monkeypatch):
    import diptych.training.callbacks as callbacks

    def gone(*_):
        raise BlockingIOError("nobody reads")

    monkeypatch.setattr(callbacks, "print_table", gone)
    with pytest.raises(BlockingIOError, match="nobody reads"):
        of_test(fitted, tmp_path)
    assert inprocess.results_of(tmp_path)["metrics"]


def test_table_prints_first_and_writes_what_can_be_written(fitted, tmp_path, capsys):
    run = tmp_path / "run"
    assert of_test(fitted, run).returncode == 0
    (tmp_path / "t.tex").mkdir()
    forms = ["--latex", str(tmp_path / "t.tex"), "--csv", str(tmp_path / "t.csv"), "--plot", str(tmp_path / "t.png")]
    with pytest.raises(DataError, match=r"^--latex .*t.tex: cannot be written \(Is a directory\)"):
        results_table.main([str(run), *forms])
    assert "## test/retrieval" in capsys.readouterr().out
    assert {"t.csv", "t.png"} <= {path.name for path in tmp_path.iterdir()}


def test_other_errors_of_the_system_are_not_hidden(monkeypatch):
    def fail(_):
        raise OSError(errno.ENOMEM, "odd")

    monkeypatch.setattr("diptych.cli.main._dispatch", fail)
    with pytest.raises(OSError, match="odd"):
        main()
