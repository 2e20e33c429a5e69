"""What calibration data says about a model's layers: how to weigh errors within one, and how to compare two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lrd_deploy.ranks.metric import InputMoment, Metric


@dataclass(frozen=True)
class Evidence:
    """Per layer name; a layer that is not named counts as it would without data.

    Attributes:
        metrics: weigh the error of a layer's weights by the layer's inputs.
        importance: what a layer's squared relative error adds to that of the model's outputs; 1 where not named.
        unweighted: why a layer has no metric.
    """

    metrics: Mapping[str, Metric] = field(default_factory=dict)
    importance: Mapping[str, float] = field(default_factory=dict)
    unweighted: Mapping[str, str] = field(default_factory=dict)


def metrics_of(moments: Mapping[str, InputMoment], *, damping: float) -> tuple[dict[str, Metric], dict[str, str]]:
    """Returns a metric for each moment, and for the others why there is none."""
    unweighted = {
        name: f"plain: {moment.positions} calibration inputs cannot tell {len(moment.channels)} channels apart"
        for name, moment in moments.items()
        if not moment.full_rank
    }
    metrics = {name: Metric.of(moment, damping=damping) for name, moment in moments.items() if name not in unweighted}
    return metrics, unweighted
