"""A profile as a measurement would give it, without one."""

from pathlib import Path

from lrd_deploy.records import (
    ArmProfile,
    Environment,
    KernelSum,
    LayerTime,
    LostFusion,
    ModelProfile,
    ProfiledKernel,
    ProfiledLayer,
    Ratio,
)


def ratio(estimate, spread=0.02):
    low, high = estimate * (1 - spread), estimate * (1 + spread)
    demonstrated = not low <= 1 <= high
    return Ratio(estimate=estimate, low=low, high=high, confidence=0.95, demonstrated=demonstrated, launches=6)


def time(ms, *nodes, roles=None):
    roles = roles or ["layer"] * len(nodes)
    kernels = tuple(
        ProfiledKernel(name=f"k{number}", operator="Conv", role=role, ms=ms / len(roles))
        for number, role in enumerate(roles)
    )
    return LayerTime(ms=ms, least_ms=0.9 * ms, most_ms=1.1 * ms, nodes=nodes, kernels=kernels)


def layer(name, base_ms, candidate_ms, verdict=None, chains=None, **changes):
    factors = verdict is not None
    nodes = (f"{name}.down", f"{name}.up") if factors else (name,)
    return ProfiledLayer(
        name=name,
        base=time(base_ms, name),
        candidate=time(candidate_ms, *nodes, **changes),
        chains=((name,) if factors else ()) if chains is None else chains,
        speedup=ratio(base_ms / candidate_ms),
        verdict=verdict,
    )


def arm(path, sha256, whole_ms):
    return ArmProfile(
        path=Path(path),
        sha256=sha256,
        whole_ms=whole_ms,
        profiled_ms=1.05 * whole_ms,
        kernels_ms=0.98 * whole_ms,
        explained=ratio(0.98),
        outside_layers={
            "reorders": KernelSum(kernels=2, ms=0.01),
            "elementwise": KernelSum(kernels=0, ms=0.0),
            "other": KernelSum(kernels=5, ms=0.2),
        },
    )


def profile_of(*layers, sha256="e" * 64, **changes):
    """A profile whose candidate has this digest."""
    fields = {
        "base": arm("dense.onnx", "d" * 64, 4.0),
        "candidate": arm("low.onnx", sha256, 3.0),
        "speedup": ratio(4 / 3),
        "layers": layers,
        "lost_fusions": (LostFusion(node="relu", operator="Relu", alone_in="candidate", ms=0.03),),
        "backend": "onnxruntime",
        "batch": 8,
        "threads": 1,
        "launches": 6,
        "timing_overhead_us": 2.2,
        "warnings": (),
        "environment": Environment(
            cpu="CPU", cores=2, system="Linux", python="3.12", packages={}, fingerprint="f" * 16
        ),
    }
    return ModelProfile(**(fields | changes))


LAYERS = (
    layer("stem", 0.5, 0.5),
    layer("good", 1.0, 0.4, "pays", roles=["layer", "reorder", "layer"]),
    layer("bad", 0.5, 0.9, "loses"),
    layer("even", 0.7, 0.7, "undecided"),
)
