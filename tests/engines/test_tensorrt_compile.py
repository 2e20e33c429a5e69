import pytest

from lrd_deploy.engines.tensorrt_compile import CompilePlan, configured, describe_layers, fix_sizes_
from lrd_deploy.engines.timing_cache import OpenedCache, TimingCacheKey
from lrd_deploy.errors import BackendError
from lrd_deploy.records import InputProfile
from tests.engines.stand_in import StandIn

X = InputProfile(name="x", min=(1, 3), opt=(8, 3), max=(64, 3))
KEY = TimingCacheKey(backend="tensorrt", version="11", gpu="L4", compute_capability="8.9", driver="580")


def plan(**changes):
    fields = {
        "package": "tensorrt", "model": "m.onnx", "engine": "e", "layers": None, "inputs": (X,),
        "compute_capabilities": (), "tf32": True, "version_compatible": False, "refittable": False,
        "timing_cache": None,
    }  # fmt: skip
    return CompilePlan(**fields | changes)


def configure(trt, **changes):
    builder, network = trt.builder(), trt.network(trt.tensor("x", trt.shape))
    return configured(trt, builder, network, plan(**changes)), builder.profile


def test_sizes_that_are_one_are_built_in_and_others_stay_dynamic():
    trt = StandIn()
    network = trt.network(trt.tensor("x", (-1, 3)), trt.tensor("z", (-1, -1)))
    fix_sizes_(network, (X, InputProfile(name="z", min=(5, 1), opt=(5, 2), max=(5, 2))))
    assert [network.get_input(index).shape for index in (0, 1)] == [(-1, 3), (5, -1)]


def test_an_input_whose_values_are_a_shape_is_refused():
    trt = StandIn()
    with pytest.raises(BackendError, match="the input 'x' holds a shape"):
        fix_sizes_(trt.network(trt.tensor("x", (2,), is_shape_tensor=True)), (X,))
    with pytest.raises(BackendError, match="the input 'other' is none of the graph's"):
        fix_sizes_(trt.network(trt.tensor("other", (2,))), (X,))


def test_a_dynamic_network_gets_one_profile_and_detailed_layers():
    config, profile = configure(StandIn())
    assert profile.shapes == {"x": (X.min, X.opt, X.max)}
    assert config.profiling_verbosity == StandIn.ProfilingVerbosity.DETAILED


def test_a_static_network_gets_no_profile():
    trt = StandIn(shape=(8, 3))
    _, profile = configure(trt)
    assert profile.shapes == {}


@pytest.mark.parametrize("step", ["profile", "add_optimization_profile"])
def test_a_profile_that_is_refused_is_told_with_its_shapes(step):
    with pytest.raises(BackendError, match=r"TensorRT refuses x \(1, 3\) \(8, 3\) \(64, 3\)"):
        configure(StandIn(step))


def test_flags_are_set_or_cleared_so_that_no_default_decides():
    config, _ = configure(StandIn())
    assert (config.on, config.off) == ({"TF32"}, {"VERSION_COMPATIBLE", "REFIT"})
    config, _ = configure(StandIn(), tf32=False, version_compatible=True, refittable=True)
    assert (config.on, config.off) == ({"VERSION_COMPATIBLE", "REFIT"}, {"TF32"})


@pytest.mark.parametrize("miss_is_error", [True, False])
def test_a_miss_of_the_timing_cache_is_an_error_where_that_was_asked(miss_is_error):
    cache = OpenedCache(path="c.cache", key=KEY, sha256=None, miss_is_error=miss_is_error)
    config, _ = configure(StandIn(), timing_cache=cache)
    assert ("ERROR_ON_TIMING_CACHE_MISS" in config.on) is miss_is_error
    assert ("ERROR_ON_TIMING_CACHE_MISS" in config.off) is not miss_is_error


def test_targets_are_set_in_order_and_a_refused_one_is_told():
    config, _ = configure(StandIn(), compute_capabilities=("8.6", "12.0"))
    assert (config.num_compute_capabilities, config.targets) == (2, [(0, "SM86"), (1, "SM120")])
    with pytest.raises(BackendError, match=r"TensorRT refuses compute capability 8\.6"):
        configure(StandIn("set_compute_capability"), compute_capabilities=("8.6",))


def test_layers_are_described_as_the_inspector_says(tmp_path):
    assert describe_layers(StandIn(), None, b"plan", tmp_path / "l.json") is None
    assert (tmp_path / "l.json").read_text() == '{"Layers": []}'


@pytest.mark.parametrize(
    ("step", "reason"), [("deserialize_cuda_engine", "does not load on this machine"), ("inspect", "says nothing")]
)
def test_layers_that_cannot_be_described_have_a_reason_and_no_file(tmp_path, step, reason):
    assert reason in describe_layers(StandIn(step), None, b"plan", tmp_path / "l.json")
    assert list(tmp_path.iterdir()) == []
