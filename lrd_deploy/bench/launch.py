"""One launch: all arms in one fresh process, in interleaved blocks. Calls and clock are arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from pathlib import Path

from pydantic import Field

from lrd_deploy.bench.statistics import median
from lrd_deploy.errors import BackendError
from lrd_deploy.records import Execution, GpuReadings, Record

Call = Callable[[], object]
Clock = Callable[[], int]  # nanoseconds

_BLOCK_MS = 10.0  # blocks shorter than this are mostly the first call after a switch
_MAX_CALLS = 50
_SLOW_MS = 25.0  # one such call outlasts what disturbs a fast one: two make a block
_WINDOW_MS = 100.0
_FEWEST_ROUNDS = 6


class LaunchPlan(Record):
    """What one launch does. `load_order` and `reverse_first` are what is counterbalanced between launches.

    With no `solo_seconds` no arm is run alone.
    """

    arms: dict[str, Path]
    load_order: tuple[str, ...]
    reverse_first: bool
    inputs: Path
    backend: str
    threads: int
    rounds: int
    arm_seconds: float
    solo_seconds: float
    execution: Execution = Execution()


class LaunchSamples(Record):
    """Raw nanoseconds: `blocks` by arm and round, `solo` by arm; `cold_start_ns` from loading to the first result.

    `waited`: another measurement had this machine, and the launch began when it was done. `h2d_ns` and `d2h_ns`: copies
    of all inputs to the GPU, and of all outputs from it, where those are not in the timed calls. `on_cpu`: operators
    that ran on the CPU although the model ran on a GPU, by arm.
    """

    load_order: tuple[str, ...]
    calls_per_block: int
    warmup_converged: bool
    blocks: dict[str, tuple[tuple[int, ...], ...]]
    solo: dict[str, tuple[int, ...]]
    cold_start_ns: dict[str, int]
    waited: bool = False
    h2d_ns: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    d2h_ns: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    on_cpu: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    gpu: GpuReadings | None = None


def interleave(
    calls: Mapping[str, Call],
    clock: Clock,
    *,
    rounds: int,
    arm_seconds: float,
    reverse_first: bool,
    after_round: Callable[[], None] = lambda: None,
) -> tuple[dict[str, tuple[tuple[int, ...], ...]], int, bool]:
    """Times all arms in rounds of one block each, in an order that favours none: see `round_orders`.

    A block is one discarded call, which pays for the switch, then the timed ones. Calls per block fill 10 ms of the
    slowest arm; rounds shrink where they would take longer than `arm_seconds` per arm, to whole cycles of orders.
    `after_round` is called between rounds, where its time counts for no arm.

    Returns:
        Samples by arm and round, calls per block, and whether every arm's warm-up converged.
    """
    warmups = {name: warm_up(call, clock) for name, call in calls.items()}
    slowest_ms = max(latency for latency, _ in warmups.values())
    per_block = min(max(ceil(_BLOCK_MS / slowest_ms), 3 if slowest_ms < _SLOW_MS else 2), _MAX_CALLS)
    affordable = int(arm_seconds * 1e3 / (slowest_ms * (per_block + 1)))
    orders = round_orders(list(calls)[::-1] if reverse_first else list(calls))
    cycles = max(min(rounds, affordable) // len(orders), ceil(_FEWEST_ROUNDS / len(orders)))
    blocks: dict[str, list[tuple[int, ...]]] = {name: [] for name in calls}
    for order in orders * cycles:
        for name in order:
            calls[name]()
            blocks[name].append(timed(calls[name], clock, per_block))
        after_round()
    return (
        {name: tuple(samples) for name, samples in blocks.items()},
        per_block,
        all(converged for _, converged in warmups.values()),
    )


def round_orders(arms: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns the orders of one cycle of rounds: every rotation of the arms, each followed by its reverse.

    Of two or three arms each comes in every place, after each other and after itself, equally often or once more or
    less: an arm that always ran between two others would never find its weights in a cache. Of two: A B, B A, B A, A B.
    """
    rotations = [(*arms[start:], *arms[:start]) for start in range(len(arms))]
    return [order for rotation in rotations for order in (rotation, rotation[::-1])]


def warm_up(
    call: Call, clock: Clock, *, window: int = 10, least_seconds: float = 0.1, most_seconds: float = 3.0
) -> tuple[float, bool]:
    """Calls until two windows' medians differ by less than 2 %, for `least_seconds` at least.

    Args:
        call: what to warm up. Two calls go before the windows: the first pays for what is done once.
        clock: in nanoseconds.
        window: calls per window; as few as five where ten would take more than 0.1 s.
        least_seconds: goes on for so long.
        most_seconds: gives up then.

    Returns:
        The last window's median in milliseconds, and whether it converged in time.
    """
    started, previous = clock(), None
    _, usual = timed(call, clock, 2)
    window = min(max(ceil(_WINDOW_MS * 1e6 / usual), 5), window)
    while True:
        latest = median(timed(call, clock, window)) / 1e6
        elapsed = (clock() - started) / 1e9
        if previous is not None and abs(latest - previous) < 0.02 * previous and elapsed >= least_seconds:
            return latest, True
        if elapsed >= most_seconds:
            return latest, False
        previous = latest


def solo(call: Call, clock: Clock, seconds: float) -> tuple[int, ...]:
    """Times one arm alone, back to back, for at least that long and at least 20 calls."""
    samples: list[int] = []
    started = clock()
    while len(samples) < 20 or clock() - started < seconds * 1e9:
        samples.extend(timed(call, clock, 5))
    return tuple(samples)


def timed(call: Call, clock: Clock, times: int) -> tuple[int, ...]:
    """Returns the duration of each of so many calls, in nanoseconds.

    Raises:
        BackendError: the clock stood still or went back.
    """
    samples = []
    for _ in range(times):
        started = clock()
        call()
        samples.append(clock() - started)
    if min(samples) <= 0:
        raise BackendError(
            "timing a call",
            found=f"{min(samples)} ns by this machine's monotonic clock",
            accepted="a clock that moves forwards",
            remedy="look for a virtual machine that was moved or suspended meanwhile, and measure again",
        )
    return tuple(samples)


def balanced_order(arms: Sequence[str], launch: int) -> tuple[tuple[str, ...], bool]:
    """Returns the load order and the first direction of a launch, by its number, so that no arm is favoured.

    Where in a process a session is created moves its latency by up to a percent, and not in step with the place: of
    three, the last is fastest. Two launches that follow each other exchange the places of the first two arms, so that
    these have held the same ones after every two launches, and all arms have after every two per arm.
    """
    pair, exchanged = divmod(launch, 2)
    places = (*arms[1::-1], *arms[2:]) if exchanged else tuple(arms)
    start = pair % len(arms)
    return (*places[start:], *places[:start]), pair % 2 == 1
