"""The frozen records that stages hand to each other and that `--json` prints.

Units are suffixes (`_ms`, `_per_s`), shares lie in [0, 1], and no number is NaN: what was not measured is `None`.
Paths inside a record are relative to the folder that holds the record.
"""

from lrd_deploy.records.checkpoint import CheckpointReport, FactorisedWeight
from lrd_deploy.records.environment import Environment
from lrd_deploy.records.gate import (
    BaselineManifest,
    CaseEvidence,
    CaseVerdict,
    ControlReading,
    GateArtefact,
    GateEvidence,
    GatePolicy,
    GateResult,
    LaunchRatio,
    OutputEvidence,
    ParityEvidence,
    Promotion,
    SelfTest,
    SlowdownRates,
    Verdict,
)
from lrd_deploy.records.graphs import (
    Applied,
    BuiltEngines,
    EngineArtifact,
    ExportedModel,
    ExportedPair,
    NodeOrigin,
    OutputDifference,
    RewriteReport,
    RewrittenModel,
    Skipped,
    TensorInfo,
)
from lrd_deploy.records.layers import (
    SVD,
    ChannelSVD,
    Choice,
    KeepDense,
    LayerSignature,
    SpatialSVD,
    Tucker2,
    TwoFactors,
)
from lrd_deploy.records.measurement import Comparison, Latency, Ratio, TrainingSpeedup
from lrd_deploy.records.plan import (
    CalibratedLatencies,
    FrontPoint,
    LayerStudy,
    PlannedLayer,
    RankPlan,
    RankPoint,
    RankStudy,
)
from lrd_deploy.records.record import Record
from lrd_deploy.records.run import Pair, RunRecord
from lrd_deploy.records.training import Epoch, FrozenGroup, TrainedModel

__all__ = [
    "SVD",
    "Applied",
    "BaselineManifest",
    "BuiltEngines",
    "CalibratedLatencies",
    "CaseEvidence",
    "CaseVerdict",
    "ChannelSVD",
    "CheckpointReport",
    "Choice",
    "Comparison",
    "ControlReading",
    "EngineArtifact",
    "Environment",
    "Epoch",
    "ExportedModel",
    "ExportedPair",
    "FactorisedWeight",
    "FrontPoint",
    "FrozenGroup",
    "GateArtefact",
    "GateEvidence",
    "GatePolicy",
    "GateResult",
    "KeepDense",
    "Latency",
    "LaunchRatio",
    "LayerSignature",
    "LayerStudy",
    "NodeOrigin",
    "OutputDifference",
    "OutputEvidence",
    "Pair",
    "ParityEvidence",
    "PlannedLayer",
    "Promotion",
    "RankPlan",
    "RankPoint",
    "RankStudy",
    "Ratio",
    "Record",
    "RewriteReport",
    "RewrittenModel",
    "RunRecord",
    "SelfTest",
    "Skipped",
    "SlowdownRates",
    "SpatialSVD",
    "TensorInfo",
    "TrainedModel",
    "TrainingSpeedup",
    "Tucker2",
    "TwoFactors",
    "Verdict",
]
