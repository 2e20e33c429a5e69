"""Merging back what a profile found losing."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from lrd_deploy.bench.model_latency import random_factors
from lrd_deploy.bench.profile import ProfileSettings
from lrd_deploy.engines.inputs import random_batches
from lrd_deploy.engines.verify import verify
from lrd_deploy.errors import UsageError
from lrd_deploy.files import sha256_of
from lrd_deploy.pipeline.enforcing import Goal, enforce_ranks
from lrd_deploy.pipeline.merging_back import losing_chains, merge_back, profile_and_merge_back
from lrd_deploy.recipe.settings import Bench
from lrd_deploy.records import SVD, KeepDense
from lrd_deploy.rewrite.apply import rewrite_file
from lrd_deploy.rewrite.decompose_node import DecomposeNode
from tests.bench.profiles import layer, profile_of, ratio

LAYERS = ("good", "bad")


def dense_model(path, width):
    """good ─ Relu ─ bad ─ Relu, all of one width."""
    nodes, weights, source = [], [], "x"
    for name in LAYERS:
        values = np.random.default_rng(0).standard_normal((width, width), dtype=np.float32) / np.sqrt(width)
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"{name}.w"))
        nodes.append(helper.make_node("Gemm", [source, f"{name}.w"], [f"{name}.y"], name=name))
        nodes.append(helper.make_node("Relu", [f"{name}.y"], [f"{name}.z"], name=f"{name}.relu"))
        source = f"{name}.z"
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", width]) for name in ("x", source)]
    graph = helper.make_graph(nodes, "two layers", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def pair(tmp_path):
    """The dense file and the same with factors: a rank that pays, and one that cannot."""

    def make(width, good, bad):
        dense = dense_model(tmp_path / "dense.onnx", width)
        choices = {"good": SVD(rank=good), "bad": SVD(rank=bad)}
        rewrite_file(dense, [DecomposeNode(choices, random_factors)], tmp_path / "low.onnx")
        return dense, tmp_path / "low.onnx"

    return make


def measured(speedup):
    return lambda _base, _merged: ratio(speedup)


def names(path):
    return [node.name for node in onnx.load(path).graph.node if node.op_type == "Gemm"]


def test_what_loses_is_merged_exactly_and_the_others_say_why_they_stay(pair, tmp_path):
    _, low = pair(16, 2, 15)
    found = profile_of(layer("good", 1.0, 0.5, "pays"), layer("bad", 1.0, 1.9, "loses"), sha256=sha256_of(low))
    batches = random_batches(low, (1, 3))
    done = merge_back(low, found, tmp_path / "merged.onnx", batches, measured(1.2))
    assert done.report.speedup.estimate == 1.2
    assert names(tmp_path / "merged.onnx") == ["good.down", "good.up", "bad"]
    assert [entry.node for entry in done.report.applied] == ["bad"]
    assert [(entry.node, entry.reason) for entry in done.report.skipped] == [
        ("good", "its factors are 2.00× (1.96 to 2.04) as fast as dense")
    ]
    assert verify(low, tmp_path / "merged.onnx", batches).passed


def test_a_merge_that_makes_the_whole_slower_is_refused_and_writes_nothing(pair, tmp_path):
    _, low = pair(16, 2, 15)
    found = profile_of(layer("bad", 1.0, 1.9, "loses"), sha256=sha256_of(low))
    with pytest.raises(
        UsageError, match=r"0\.90× \(0\.88 to 0\.92\) as fast with 'bad' merged.*; a model that is no slower"
    ):
        merge_back(low, found, tmp_path / "merged.onnx", random_batches(low, (1,)), measured(0.9))
    assert not (tmp_path / "merged.onnx").exists()
    undecided = merge_back(low, found, tmp_path / "merged.onnx", random_batches(low, (1,)), measured(0.99))
    assert undecided.report.modified


def test_where_nothing_loses_the_model_is_written_as_it_was(pair, tmp_path):
    _, low = pair(16, 2, 15)
    found = profile_of(layer("good", 1.0, 0.5, "pays"), layer("bad", 1.0, 1.0, "undecided"), sha256=sha256_of(low))
    done = merge_back(low, found, tmp_path / "merged.onnx", random_batches(low, (1,)), measured(1.2))
    assert not done.report.modified
    assert {entry.node for entry in done.report.skipped} == {"good", "bad"}
    assert names(tmp_path / "merged.onnx") == names(low)


def test_factors_that_cannot_be_merged_are_told(pair, tmp_path):
    _, low = pair(16, 2, 15)
    found = profile_of(layer("bad", 1.0, 1.9, "loses", chains=()), sha256=sha256_of(low))
    done = merge_back(low, found, tmp_path / "merged.onnx", random_batches(low, (1,)), measured(1.2))
    assert done.report.skipped[0].reason == "its factors are slower than dense, but something stands between them"


def test_a_profile_of_another_file_or_of_one_model_is_refused(pair, tmp_path):
    _, low = pair(16, 2, 15)
    with pytest.raises(UsageError, match=r"a profile of another file, which was 'low\.onnx' then"):
        merge_back(low, profile_of(), tmp_path / "merged.onnx", random_batches(low, (1,)), measured(1.2))
    with pytest.raises(UsageError, match=r"a profile of one model, .*; a profile of a dense model and this one"):
        losing_chains(low, profile_of(candidate=None))
    assert not (tmp_path / "merged.onnx").exists()


def test_auto_changes_only_what_it_is_told(pair, tmp_path):
    _, low = pair(96, 30, 30)

    class FastDense:
        environment = None

        def latencies_ms(self, requests):
            return {
                (signature, choice): 1.0 if choice == KeepDense() else 2.0
                for signature, choices in requests.items()
                for choice in choices
            }

    goal = Goal(only=frozenset({"bad"}))
    done = enforce_ranks(low, tmp_path / "out.onnx", random_batches(low, (1,)), goal, FastDense(), Bench(batch=2))
    assert names(tmp_path / "out.onnx") == ["good.down", "good.up", "bad"]
    assert [(entry.node, entry.reason) for entry in done.report.skipped] == [
        ("good", "it is not among the layers asked for")
    ]


@pytest.mark.slow
def test_merging_back_a_hopeless_pair_makes_the_model_faster(pair, tmp_path):
    dense, low = pair(768, 48, 736)
    inputs = random_batches(low, [32])[0]
    done = profile_and_merge_back(dense, low, tmp_path / "merged.onnx", inputs, ProfileSettings(launches=4))
    assert done.profile.losing_chains == {"bad"}
    assert [entry.node for entry in done.rewritten.report.applied] == ["bad"]
    assert done.rewritten.difference.passed
    assert done.comparison.speedup.low > 1  # by half: 736 of 768 ranks are almost twice the dense work
