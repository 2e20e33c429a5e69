"""A profile from scripted kernels, and from real processes."""

from itertools import count, repeat
from pathlib import Path

import numpy as np
import onnx
import pytest

from lrd_deploy.bench.environment import environment
from lrd_deploy.bench.layer_graph import layer_graph, layer_input
from lrd_deploy.bench.profile import ProfileSettings, profile
from lrd_deploy.bench.profile_launch import ProfilePlan, profile_launch, summed
from lrd_deploy.bench.profile_summary import Deployment, ProfiledFile, conclude_profile
from lrd_deploy.bench.timing_overhead import IDLE
from lrd_deploy.bench.weighted_layers import WeightedLayer
from lrd_deploy.engines.fake import FakeBackend
from lrd_deploy.engines.profiler import Kernel
from lrd_deploy.errors import BackendError, InputError, UsageError
from lrd_deploy.records import SVD, KeepDense, LayerSignature, ModelProfile

DEPLOYMENT = Deployment("fake", 4, 1, environment())
OVERHEAD_MS, IDLE_KERNELS = 0.25, 4
FILES = {
    "base": ProfiledFile(Path("dense.onnx"), "d" * 64, (WeightedLayer("a", ("a",)), WeightedLayer("b", ("b",)))),
    "candidate": ProfiledFile(
        Path("low.onnx"),
        "e" * 64,
        (WeightedLayer("a", ("a.down", "a.up"), True), WeightedLayer("b", ("b.down", "b.up"), True)),
    ),
}
# Without the profiler: dense a 4, b 2, rest 2; low-rank a 1 + 1, b 2 + 2, rest 2.
KERNELS = {
    "dense.onnx": {"a": 4.0, "b": 2.0, "rest": 2.0},
    "low.onnx": {"a.down": 1.0, "a.up": 1.0, "b.down": 2.0, "b.up": 2.0, "rest": 2.0},
}


def backend(kernels=KERNELS):
    """Every kernel of a profiled session seems longer by the overhead; so do those that do nothing."""
    longer = {
        name: [
            (Kernel(name=f"k_{node}", operator="Conv", nodes=(node,)), repeat(ms + OVERHEAD_MS))
            for node, ms in script.items()
        ]
        for name, script in kernels.items()
    }
    idle = [
        (Kernel(name=f"i{n}", operator="Add", nodes=(f"i{n}",)), repeat(0.5 + OVERHEAD_MS)) for n in range(IDLE_KERNELS)
    ]
    whole = {name: repeat(sum(script.values())) for name, script in kernels.items()}
    return FakeBackend(whole | {IDLE: repeat(0.5 * IDLE_KERNELS)}, profiles=longer | {IDLE: idle})


def launch(fake, folder, number=0):
    own = folder / f"launch{number}"
    own.mkdir()
    plan = ProfilePlan(
        arms={arm: file.path for arm, file in FILES.items()},
        load_order=("base", "candidate") if number % 2 == 0 else ("candidate", "base"),
        reverse_first=False,
        inputs=Path("unused.npz"),
        backend="fake",
        threads=1,
        rounds=8,
        arm_seconds=100.0,
    )
    return profile_launch(plan, {}, fake, fake, fake.clock, own)


@pytest.fixture
def concluded(tmp_path):
    def run(fake=None, launches=3):
        samples = [launch(fake or backend(), tmp_path, number) for number in range(launches)]
        return conclude_profile(samples, FILES, DEPLOYMENT)

    return run


def by_name(found):
    return {layer.name: layer for layer in found.layers}


def test_known_times_are_found_and_what_timing_them_adds_is_taken_off(concluded):
    found = concluded()
    a, b = by_name(found)["a"], by_name(found)["b"]
    assert found.timing_overhead_us == pytest.approx(1e3 * OVERHEAD_MS)
    assert (a.base.ms, a.candidate.ms, b.base.ms, b.candidate.ms) == pytest.approx((4.0, 2.0, 2.0, 4.0))
    assert a.speedup.estimate == pytest.approx(2.0)
    assert (a.verdict, b.verdict) == ("pays", "loses")
    assert found.losing_chains == {"b"}
    assert [kernel.ms for kernel in b.candidate.kernels] == pytest.approx([2.0, 2.0])


def test_all_kernels_explain_the_whole_call(concluded):
    found = concluded()
    for arm, ms in ((found.base, 8.0), (found.candidate, 8.0)):
        assert (arm.whole_ms, arm.kernels_ms) == pytest.approx((ms, ms))
        assert arm.explained.estimate == pytest.approx(1.0)
        assert arm.outside_layers["other"].ms == pytest.approx(2.0)
    assert found.speedup.estimate == pytest.approx(1.0)
    assert not found.speedup.demonstrated


def test_a_record_survives_json(concluded):
    found = concluded()
    assert ModelProfile.model_validate_json(found.to_json()) == found


def test_swapping_the_models_inverts_every_speedup_and_leaves_nothing_to_merge(tmp_path):
    files = {"base": FILES["candidate"], "candidate": FILES["base"]}
    samples = [launch(backend(), tmp_path, number) for number in range(2)]
    here = conclude_profile(samples, FILES, DEPLOYMENT)
    swapped = [
        one.model_copy(
            update={
                field: {"base": getattr(one, field)["candidate"], "candidate": getattr(one, field)["base"]}
                for field in ("whole_ns", "profiled_ns", "kernels", "kernel_ns")
            }
        )
        for one in samples
    ]
    there = conclude_profile(swapped, files, DEPLOYMENT)
    for name, layer in by_name(here).items():
        assert by_name(there)[name].speedup.estimate == pytest.approx(1 / layer.speedup.estimate)
    assert there.losing == ()


def test_a_layer_whose_launches_disagree_is_undecided(tmp_path):
    factors = (1.6, 2.4, 2.0, 1.7, 2.3)
    samples = [
        launch(backend({**KERNELS, "low.onnx": {**KERNELS["low.onnx"], "a.up": 2 * factor - 1}}), tmp_path, number)
        for number, factor in enumerate(factors)
    ]
    layer = by_name(conclude_profile(samples, FILES, DEPLOYMENT))["a"]
    assert layer.verdict == "undecided"
    assert (layer.candidate.ms, layer.candidate.least_ms, layer.candidate.most_ms) == pytest.approx((4.0, 3.2, 4.8))


def test_a_layer_that_is_dense_in_both_has_a_speedup_and_no_verdict(tmp_path):
    files = {**FILES, "candidate": ProfiledFile(Path("dense.onnx"), "d" * 64, FILES["base"].layers)}
    plan_arms = {"base": Path("dense.onnx"), "candidate": Path("dense.onnx")}
    fake, samples = backend(), []
    for number in range(2):
        own = tmp_path / f"same{number}"
        own.mkdir()
        plan = ProfilePlan(arms=plan_arms, load_order=("base", "candidate"), reverse_first=False, inputs=Path("x"),
                           backend="fake", threads=1, rounds=8, arm_seconds=10.0)  # fmt: skip
        samples.append(profile_launch(plan, {}, fake, fake, fake.clock, own))
    layers = conclude_profile(samples, files, DEPLOYMENT).layers
    assert [(layer.speedup.estimate, layer.verdict) for layer in layers] == [(pytest.approx(1.0), None)] * 2


def test_overhead_that_matters_is_warned_of(concluded):
    assert concluded().warnings == (
        "with the profiler on, calls of the candidate took 16% longer: its kernels are short, and what timing them "
        "adds is known, and taken off, only on average",
    )


def test_no_kernel_counts_for_nothing():
    assert summed((((700, 900), (5, 5)),), (0, 1), 600.0) == ((400, 200),)
    assert summed((((700, 900),),), (), 600.0) == ((0,),)


def test_launches_whose_kernels_run_other_layers_are_refused(tmp_path):
    samples = [launch(backend(), tmp_path, number) for number in range(2)]
    together = tuple(
        kernel.model_copy(update={"nodes": ("a", "b")}) if kernel.nodes == ("a",) else kernel
        for kernel in samples[0].kernels["base"]
    )
    other = samples[1].model_copy(update={"kernels": {**samples[1].kernels, "base": together}})
    with pytest.raises(BackendError, match="in one kernel in some launches and in several in others"):
        conclude_profile([samples[0], other], FILES, DEPLOYMENT)


def test_kernel_times_are_those_of_the_very_calls_that_were_timed(tmp_path):
    fake = backend()
    rising = [(kernel, (4.0 + 0.01 * n for n in count())) for kernel, _ in fake.profiles["dense.onnx"]]
    samples = launch(FakeBackend(fake.scripts, profiles={**fake.profiles, "dense.onnx": rising}), tmp_path)
    kernels = [[sum(call) for call in block] for block in samples.kernel_ns["base"]]
    assert kernels == [list(block) for block in samples.profiled_ns["base"]]
    assert len({total for block in kernels for total in block}) == 8 * samples.calls_per_block


def test_a_profiler_that_lost_calls_is_told(tmp_path):
    class Forgetful(FakeBackend):
        def load_profiled(self, model, settings, folder):
            session = super().load_profiled(model, settings, folder)
            kept = session.kernel_times
            session.kernel_times = lambda: kept().model_copy(update={"calls_ns": kept().calls_ns[-3:]})
            return session

    plain = backend()
    fake = Forgetful(plain.scripts, profiles=plain.profiles)
    with pytest.raises(BackendError, match="timing the kernels of a model: times of 3 calls"):
        launch(fake, tmp_path)


LINEAR = LayerSignature(kind="linear", in_channels=256, out_channels=256)


@pytest.fixture
def files(tmp_path):
    for name, choice in (("dense", KeepDense()), ("low", SVD(rank=16))):
        graph = layer_graph(LINEAR, choice)
        names = ["fc"] if name == "dense" else ["fc.down", "fc.up"]
        for node, given in zip(graph.graph.node, names, strict=True):
            node.name = given
        onnx.save(graph, tmp_path / f"{name}.onnx")
    return tmp_path / "dense.onnx", tmp_path / "low.onnx"


X = {"x": layer_input(LINEAR, 8)}
QUICK = ProfileSettings(launches=2, rounds=4, arm_seconds=0.1)


def test_fresh_processes_profile_two_real_models(files):
    heard = []

    class Listener:
        def progress(self, _what, done, total):
            heard.append((done, total))

    found, launches = profile(*files, X, QUICK, Listener())
    (layer,) = found.layers
    assert heard == [(1, 2), (2, 2)]
    assert {one.load_order for one in launches} == {("base", "candidate"), ("candidate", "base")}
    assert (layer.name, layer.base.nodes, layer.candidate.nodes) == ("fc", ("fc",), ("fc.down", "fc.up"))
    assert layer.chains == ("fc",)
    assert layer.verdict is not None
    assert found.base.path == Path("dense.onnx")


def test_one_model_alone_has_times_and_no_speedups(files):
    found, _ = profile(files[1], None, X, QUICK)
    assert (found.candidate, found.speedup, found.losing) == (None, None, ())
    assert [(layer.name, len(layer.base.kernels)) for layer in found.layers] == [("fc", 2)]


def test_nodes_without_names_get_some(tmp_path):
    onnx.save(layer_graph(LINEAR, SVD(rank=16)), tmp_path / "unnamed.onnx")
    found, _ = profile(tmp_path / "unnamed.onnx", None, X, QUICK)
    assert [(layer.name, len(layer.base.kernels)) for layer in found.layers] == [("Gemm_0 + Gemm_1", 2)]


def test_two_models_with_different_inputs_are_refused(files, tmp_path):
    other = LayerSignature(kind="linear", in_channels=8, out_channels=8)
    onnx.save(layer_graph(other, KeepDense()), tmp_path / "other.onnx")
    with pytest.raises(
        InputError, match=r"comparing two models: inputs x float32\[batch, 256\] and x float32\[batch, 8"
    ):
        profile(files[0], tmp_path / "other.onnx", X, QUICK)


def test_inputs_without_a_batch_and_more_threads_than_cores_are_refused(files):
    with pytest.raises(InputError, match="an input 'x' without dimensions; a first input whose"):
        profile(files[0], None, {"x": np.float32(1).reshape(())}, QUICK)
    with pytest.raises(InputError, match="no input"):
        profile(files[0], None, {}, QUICK)
    with pytest.raises(UsageError, match=r"1000 threads; at most \d+, the cores"):
        profile(files[0], None, X, ProfileSettings(threads=1000))


def test_a_worker_that_dies_is_told_with_its_last_words(files):
    with pytest.raises(BackendError, match=r"fresh process \(profile_worker\).*Got: 9 Expected: 256"):
        profile(*files, {"x": np.zeros((4, 9), np.float32)}, QUICK)
