"""The contract suite of heads: every installed head keeps to it, and each head of a gallery breaks its rule."""

from __future__ import annotations

from functools import partial

import broken_heads
import pytest
from broken_heads import BROKEN, Right

from diptych.errors import ConfigError
from diptych.plugins import HEADS, plugins
from diptych.testing import BrokenContract, check_head
from diptych.testing.heads import RULES, HeadCase, equal_on_processes
from diptych_heads.local_pooling import LocalPooling
from diptych_heads.pcma import Pcma

pytestmark = pytest.mark.usefixtures("one_thread", "processes")
PCMA = {"width": 16, "queries": 5, "heads": 2}
SMALL = {
    "global": {"width": 16},
    "local_pooling": {"width": 16},
    "reclf": {"width": 16},
    "mgca": {"width": 16, "hidden": 24, "prototypes": 12, "frozen_epochs": 0},
    "pcma": {**PCMA, "cce": 0.0},
    "cce": {"width": 16, "heads": 2},
    "composite": {"heads": [partial(LocalPooling, width=16), partial(Pcma, **PCMA, cce=0.0)]},
}


def test_every_head_of_this_package_is_here():
    assert {plugin.name for plugin in plugins(HEADS) if plugin.path.startswith("diptych_heads.")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_every_installed_head_keeps_the_contract(name):
    check_head(name, **SMALL[name])


def test_a_term_that_hides_patches_by_the_row_is_told_so():
    """The one rule that a head of this package does not keep: ``cce`` draws by ``here.targets``, as its docstring says."""
    rows = HeadCase(partial(Pcma, **PCMA), "Pcma")
    with pytest.raises(BrokenContract, match="the loss of pairs in another order"):
        RULES["permutation"](rows)


@pytest.mark.parametrize(("head", "rule"), BROKEN.items(), ids=lambda x: getattr(x, "__name__", x))
def test_a_broken_head_is_caught_by_the_rule_that_it_breaks(head, rule):
    with pytest.raises(BrokenContract) as caught:
        check_head(head)
    assert caught.value.rule == rule, caught.value
    for part in (f"head {head.__name__}", f"'{rule}'", "Likely cause: ", "Remedy: "):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, AssertionError)


def test_every_rule_is_broken_by_a_head_of_the_gallery():
    assert set(BROKEN.values()) == set(RULES)


def test_the_gallery_is_built_on_a_right_head():
    check_head(Right, width=8)
    for rule in RULES.values():
        assert rule.promise.endswith("."), rule.name


def test_four_processes():
    equal_on_processes(HeadCase(Right, "Right"), 4)


def test_a_head_that_cannot_be_sent_says_where_to_put_it():
    class Local(Right):
        pass

    with pytest.raises(BrokenContract, match=r"cannot be sent.*Remedy: move the class to a module of its package"):
        RULES["processes"](HeadCase(Local, "Local"))


def test_a_rule_can_be_left_out_by_name():
    check_head(broken_heads.KnowsTheRow, without=["permutation", "processes"])
    with pytest.raises(ConfigError, match="without names 'permutations'; the rules are, nearest first: permutation,"):
        check_head(Right, without=["permutations"])


def test_a_head_without_negatives_says_so():
    class Alone(broken_heads.EqualReportsAreWrong):
        contrasts = False

    RULES["equal reports"](HeadCase(Alone, "Alone"))
