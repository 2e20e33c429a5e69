"""TensorRT's timing cache: kept between builds, shared by processes, and never used where it was not measured.

Beside each cache file lies its key: TensorRT's version, the GPU and the driver. The key is written before the cache
and never changes, so that a process killed in between leaves no contradiction.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lrd_deploy.engines.backend import TimingCache
from lrd_deploy.errors import BackendError, UsageError
from lrd_deploy.files import read_bytes, storage_errors, write_bytes
from lrd_deploy.records import Record, TimingCacheUse


class TimingCacheKey(Record):
    """What timings hold for."""

    backend: str
    version: str
    gpu: str
    compute_capability: str
    driver: str


class OpenedCache(Record):
    """A cache file that fits this environment, and the digest of what was in it; None where it was empty."""

    path: Path
    key: TimingCacheKey
    sha256: str | None
    miss_is_error: bool


def cache_file(cache: TimingCache, key: TimingCacheKey) -> Path:
    """Returns the file for an environment: the one that was named, or its own in the folder that was named."""
    if cache.path.suffix == ".cache":
        return cache.path
    name = "-".join(re.sub(r"[^\w.]+", "_", str(value)) for value in key.model_dump().values())
    return cache.path / f"{name}.cache"


def open_cache(cache: TimingCache, key: TimingCacheKey) -> OpenedCache:
    """Makes sure that a cache may be used here.

    Raises:
        UsageError: it was measured in another environment, or is empty and must not miss.
        StorageError: it cannot be read.
    """
    path = cache_file(cache, key)
    with _locked(path):
        _check_key(path, key)
        content = _content(path)
    if cache.miss_is_error and not content:
        raise UsageError(
            f"opening the timing cache '{path}'",
            found="nothing in it, so that every timing would be a miss",
            accepted="a cache that an earlier build of this model filled",
            remedy="build once without --no-new-timings, and keep the cache",
        )
    return OpenedCache(path=path, key=key, sha256=_digest(content), miss_is_error=cache.miss_is_error)


def attach_(config: Any, opened: OpenedCache) -> Any:
    """Gives the cache to a builder's config, and returns it: it must outlive the build.

    Raises:
        BackendError: TensorRT does not take it.
    """
    with _locked(opened.path):
        content = _content(opened.path)
    timings = config.create_timing_cache(content)
    if timings is None or not config.set_timing_cache(timings, ignore_mismatch=False):
        raise BackendError(
            f"using the timing cache '{opened.path}'",
            found="TensorRT does not take it",
            accepted="a cache of this version and this GPU, whole",
            remedy="delete it, or name another with --timing-cache",
        )
    return timings


def save(config: Any, opened: OpenedCache) -> TimingCacheUse:
    """Adds a finished build's timings to the file, together with what other builds put there meanwhile."""
    timings = config.get_timing_cache()
    not_saved = None

    def merged(content: bytes) -> bytes:
        nonlocal not_saved
        if content and not timings.combine(config.create_timing_cache(content), ignore_mismatch=False):
            not_saved = "TensorRT does not join it with the timings that another build has put there"
            return content
        return bytes(timings.serialize())

    after = update_cache(opened.path, opened.key, merged)
    return TimingCacheUse(
        name=opened.path.name, sha256_before=opened.sha256, sha256=_digest(after), not_saved=not_saved
    )


def update_cache(path: Path, key: TimingCacheKey, merge: Callable[[bytes], bytes]) -> bytes:
    """Replaces a cache file's content by what `merge` makes of it, one process at a time; returns the new content.

    Raises:
        UsageError: the file was measured in another environment.
        StorageError: it cannot be written.
    """
    with _locked(path):
        _check_key(path, key)
        before = _content(path)
        after = merge(before)
        if after != before:
            write_bytes(path, after)
    return after


def _check_key(path: Path, key: TimingCacheKey) -> None:
    """Compares the key beside the cache; writes it where there is none yet."""
    place = path.with_name(path.name + ".json")
    if not place.is_file() and not path.is_file():
        key.write(place)
    if not place.is_file():
        raise UsageError(
            f"opening the timing cache '{path}'",
            found=f"no key '{place.name}' beside it, so that nobody knows what it was measured on",
            accepted="a cache that lrd-deploy made",
            remedy="name a new file, and let a build fill it",
        )
    stored = TimingCacheKey.read(place)
    if stored != key:
        different = [name for name in TimingCacheKey.model_fields if getattr(stored, name) != getattr(key, name)]
        raise UsageError(
            f"opening the timing cache '{path}'",
            found=", ".join(f"{name} {getattr(stored, name)}, here {getattr(key, name)}" for name in different),
            accepted="timings of this very version, GPU and driver: others mislead",
            remedy="name a folder, which keeps a file for each, or another file",
        )


def _content(path: Path) -> bytes:
    return read_bytes(path) if path.is_file() else b""


def _digest(content: bytes) -> str | None:
    return hashlib.sha256(content).hexdigest() if content else None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits until no other process has the cache; the lock goes with its process."""
    with storage_errors("opening the timing cache", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(path.name + ".lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
