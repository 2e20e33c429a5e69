"""What calibration data says about a model's layers: how to weigh errors within one, and how to compare two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lrd_deploy.ranks.metric import Metric


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
