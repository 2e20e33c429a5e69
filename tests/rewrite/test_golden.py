import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from lrd_deploy.rewrite.apply import apply_rules
from tests.rewrite.golden import CASES, GRAPHS, RULES, after_path, read, rewritten
from tests.tolerances import sum_tolerance

IDS = [f"{case.parent.name}/{case.name.removesuffix('.before.txt')}" for case in CASES]


def outputs(model):
    shape = [dim.dim_value or 2 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 7
    return ReferenceEvaluator(model).run(None, {"x": x})[0]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_rule_gives_the_golden_graph(case):
    assert onnx.printer.to_text(rewritten(case)) + "\n" == after_path(case).read_text()


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_outputs_stay(case):
    before, after = outputs(read(case)), outputs(rewritten(case))
    atol = sum_tolerance(np.float32, 16, scale=float(np.abs(before).max()))
    np.testing.assert_allclose(after, before, rtol=0, atol=atol)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_rewriting_twice_changes_nothing_more(case):
    once = rewritten(case)
    twice, applied, _ = apply_rules(once, [RULES[case.parent.name]])
    assert applied == ()
    assert twice == once


def test_every_rule_has_golden_graphs():
    assert (
        {case.parent.name for case in CASES} == set(RULES) == {path.name for path in GRAPHS.iterdir() if path.is_dir()}
    )
