"""The contract suite of evaluators: the core's own keep to it, and each one of a gallery breaks its rule."""

import evaluating
import pytest
from broken_evaluators import BROKEN, Right

from diptych import Retrieval, RetrievedReports, ZeroShot
from diptych.testing import BrokenContract, check_evaluator
from diptych.testing.evaluators import RULES

pytestmark = pytest.mark.usefixtures("one_thread", "processes")


@pytest.mark.parametrize("kind", [Retrieval, RetrievedReports])
def test_evaluators_of_reports_keep_the_contract(kind):
    check_evaluator(kind(resamples=5))


@pytest.mark.parametrize("threshold", ["zero", "best_f1"])
def test_zero_shot_keeps_the_contract(tmp_path, threshold):
    check_evaluator(ZeroShot(evaluating.write_prompts(tmp_path), threshold=threshold, resamples=5))


def test_the_gallery_is_built_on_a_right_evaluator():
    check_evaluator(Right())
    assert set(BROKEN.values()) == set(RULES)


@pytest.mark.parametrize(("kind", "rule"), BROKEN.items(), ids=lambda x: getattr(x, "__name__", x))
def test_a_broken_evaluator_is_caught_by_the_rule_that_it_breaks(kind, rule):
    with pytest.raises(BrokenContract, match=f"evaluator {kind.__name__} breaks the rule '{rule}'.*Remedy: ") as caught:
        check_evaluator(kind())
    assert caught.value.rule == rule
