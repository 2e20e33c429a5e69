import subprocess
import sys

import pytest

from lrd_deploy.engines.backend import TimingCache
from lrd_deploy.engines.timing_cache import TimingCacheKey, attach_, cache_file, open_cache, save, update_cache
from lrd_deploy.errors import BackendError, InputError, UsageError
from tests.engines.stand_in import StandIn

KEY = TimingCacheKey(
    backend="tensorrt", version="11.4.0.106", gpu="NVIDIA L4", compute_capability="8.9", driver="580.95.05"
)
ADD_MANY = """
import sys
from pathlib import Path
from lrd_deploy.engines.timing_cache import TimingCacheKey, update_cache

path, key, name = Path(sys.argv[1]), TimingCacheKey.model_validate_json(sys.argv[2]), sys.argv[3]
for number in range(40):
    update_cache(path, key, lambda content: content + f"{name}{number}\\n".encode())
"""


def other(**changes):
    return KEY.model_copy(update=changes)


@pytest.fixture
def cache(tmp_path):
    return TimingCache(path=tmp_path / "t.cache")


def build(trt, cache, key=KEY, timings=()):
    """What a build does with its cache; its new timings are those given."""
    config, opened = trt.builder().create_builder_config(), open_cache(cache, key)
    attached = attach_(config, opened)
    attached.lines |= set(timings)
    return save(config, opened)


def test_timings_are_kept_for_the_next_build(cache):
    first = build(StandIn(), cache, timings=[b"conv"])
    assert (first.name, first.sha256_before, first.not_saved) == ("t.cache", None, None)
    second = build(StandIn(), cache, timings=[b"gemm"])
    assert second.sha256_before == first.sha256 != second.sha256
    assert cache.path.read_bytes().split() == [b"conv", b"gemm"]


def test_a_folder_holds_a_file_for_each_environment(tmp_path):
    keys = (KEY, other(version="11.5"), other(gpu="NVIDIA H100"), other(compute_capability="9.0"), other(driver="590"))
    files = [cache_file(TimingCache(path=tmp_path), key) for key in keys]
    assert files[0] == tmp_path / "tensorrt-11.4.0.106-NVIDIA_L4-8.9-580.95.05.cache"
    assert len(set(files)) == len(keys)


@pytest.mark.parametrize("name", list(TimingCacheKey.model_fields))
def test_timings_of_another_environment_are_refused_with_what_differs(cache, name):
    build(StandIn(), cache, timings=[b"conv"])
    with pytest.raises(UsageError, match=rf"{name} .*, here elsewhere; timings of this very version, GPU and driver"):
        open_cache(cache, other(**{name: "elsewhere"}))
    assert cache.path.read_bytes() == b"conv"


def test_a_cache_that_nobody_knows_the_origin_of_is_refused(cache):
    cache.path.write_bytes(b"from somewhere")
    with pytest.raises(UsageError, match=r"no key 't\.cache\.json' beside it"):
        open_cache(cache, KEY)


def test_a_damaged_key_is_told(cache):
    build(StandIn(), cache, timings=[b"conv"])
    cache.path.with_name("t.cache.json").write_text("{")
    with pytest.raises(InputError, match="as TimingCacheKey"):
        open_cache(cache, KEY)


def test_an_empty_cache_that_must_not_miss_is_refused_before_anything_is_built(cache):
    with pytest.raises(UsageError, match="nothing in it, so that every timing would be a miss"):
        open_cache(cache.model_copy(update={"miss_is_error": True}), KEY)


@pytest.mark.parametrize("step", ["create_timing_cache", "set_timing_cache"])
def test_a_cache_that_tensorrt_does_not_take_is_told(cache, step):
    with pytest.raises(BackendError, match="TensorRT does not take it; a cache of this version"):
        build(StandIn(step), cache)


def test_timings_that_cannot_be_joined_stay_out_and_the_record_says_so(cache):
    build(StandIn(), cache, timings=[b"conv"])
    use = build(StandIn("combine"), cache, timings=[b"gemm"])
    assert use.not_saved == "TensorRT does not join it with the timings that another build has put there"
    assert cache.path.read_bytes() == b"conv"
    assert use.sha256 == use.sha256_before


def test_two_processes_at_once_lose_nothing(cache):
    command = [sys.executable, "-c", ADD_MANY, str(cache.path), KEY.model_dump_json()]
    workers = [subprocess.Popen([*command, name]) for name in ("a", "b")]
    assert [worker.wait() for worker in workers] == [0, 0]
    wanted = {f"{name}{number}".encode() for name in ("a", "b") for number in range(40)}
    assert set(cache.path.read_bytes().split()) == wanted


def test_an_update_that_fails_leaves_what_was_there(cache):
    build(StandIn(), cache, timings=[b"conv"])

    def fail(_):
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        update_cache(cache.path, KEY, fail)
    assert cache.path.read_bytes() == b"conv"
    assert not [path for path in cache.path.parent.iterdir() if "partial" in path.name]
