"""Names that are markup, formulas or commands elsewhere are shown as they are."""

import csv
import io

import pytest

from diptych.escaping import csv_rows, for_latex, for_markdown, one_line
from diptych.metrics.bootstrap import Metric
from diptych.results import record as results
from diptych.results import table as results_table
from diptych.results.seeds import markdown


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a|b", r"a\|b"),
        ("<script>x</script>", "&lt;script&gt;x&lt;/script&gt;"),
        ("one\ntwo\r\x1b[2J", r"one two \[2J"),
        ("`code` *b* _i_ image_to_text", r"\`code\` \*b\* \_i\_ image_to_text"),
        ("[left](http://x)", r"\[left\](http://x)"),
        ("\\|", r"\\\|"),
        ("1. item", r"1\. item"),
        ("0.800", "0.800"),
        ("- item", r"\- item"),
        ("-0.5", "-0.5"),
        ("# a ~b~ &amp; !", r"\# a \~b\~ &amp;amp; \!"),
        ("\u202eevil", "evil"),
    ],
)
def test_markdown(name, shown):
    assert for_markdown(name) == shown


def test_a_row_of_markdown_has_as_many_cells_as_its_header():
    text = markdown(["run", "x"], [["a|b\n|", "1"]], ["chance", "0.5"])
    assert len(text.splitlines()) == 4
    assert [line.replace(r"\|", "").count("|") for line in text.splitlines()] == [3] * 4
    assert text.splitlines()[3].startswith("| *chance*")


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "＝1", "-"])  # wide
def test_text_that_is_a_formula_gets_an_apostrophe(cell):
    assert list(csv.reader(io.StringIO(csv_rows([[cell, "plain"]]), newline=""))) == [
        ["'" + cell.replace("\r", "\n"), "plain"]
    ]


def test_numbers_stay_numbers():
    assert csv_rows([[-0.25, -3, float("nan"), None, True, 0.1 + 0.2]]) == "-0.25,-3,,,True,0.30000000000000004\n"
    assert csv_rows([['a",=1', "b\n=c"]]) == '"a"",=1","b\n=c"\n'


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (r"50 % & #1_{x} $y$", r"50 \% \& \#1\_\{x\} \$y\$"),
        (r"\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        ("~^<>|", r"\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}\textbar{}"),
        ("[left]*", "{[}left{]}{*}"),
        ("a---b", "a-{}-{}-b"),
        ("0.5 ± 0.1", r"0.5 $\pm$ 0.1"),
        ("a\nb", "a b"),
    ],
)
def test_latex(name, shown):
    assert for_latex(name) == shown


def test_the_terminal_shows_names_as_they_are(capsys):
    names = ["test/[left]/r@1", "test/[/b]/r@1", "test/:smile:/r@1", "test/a\x1b[31m/r@1", "test/x\\/r@1"]
    results.print_table({name: Metric(0.5, 0.4, 0.6, 3) for name in names}, title="[bold]title[/]")
    out = capsys.readouterr().out
    assert all(one_line(name) in out for name in names)
    assert "[bold]title[/]" in out
    assert "\x1b" not in out


def run_named(folder, name):
    results.write_results(
        folder / "results.json",
        metrics={f"test/{name}/r@1": Metric(-0.5, float("nan"), float("nan"), 3)},
        protocol={"data": name, name: {"interval": name}},
        split_hash="ab", seed=0, checkpoint=None, checkpoint_sha256=None, head=name, data="x",
    )  # fmt: skip
    return f"{name.replace('=', ' ')}={folder}"


@pytest.mark.parametrize("name", ["=[left]|<script>x", "@a_b\n| c |", "+`x` \\ [/b]"])
def test_a_hostile_name_of_a_run_or_an_evaluator_is_harmless_in_every_table(tmp_path, capsys, name):
    given = run_named(tmp_path / "a", name.replace("/", ""))
    forms = [("--csv", "t.csv"), ("--latex", "t.tex"), ("--plot", "t.png"), ("--markdown", "t.md")]
    results_table.main([given, "--metrics", "*", *(str(word) for o, f in forms for word in (o, tmp_path / f))])
    text = capsys.readouterr().out
    assert (tmp_path / "t.md").read_text() == text
    assert "<script>" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 3
    assert {line.replace(r"\|", "").count("|") for line in rows} == {3}
    (row,) = csv.DictReader((tmp_path / "t.csv").open(newline=""))
    assert (row["value"], row["low"], row["n"]) == ("-0.5", "", "3")
    assert row["head"].startswith("'")
    assert not any(line.startswith("[") for line in (tmp_path / "t.tex").read_text().splitlines())
