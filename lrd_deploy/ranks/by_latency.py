"""Ranks by measured latency: time the staircases, solve for the best combination, time what it chose, solve again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from math import isfinite

from lrd_deploy.errors import UsageError
from lrd_deploy.models.layer import Layer
from lrd_deploy.ranks.allocate import (
    Budget,
    Candidate,
    allocate,
    error_out_of_reach,
    out_of_reach,
    percent,
    undominated,
)
from lrd_deploy.ranks.correction import Correction, corrected_until_met
from lrd_deploy.ranks.cost import parameters
from lrd_deploy.ranks.evidence import Evidence
from lrd_deploy.ranks.exploration import explore
from lrd_deploy.ranks.planned import kept_dense, rank_plan
from lrd_deploy.ranks.source import LatencySource, ModelTimer
from lrd_deploy.ranks.spectrum import Spectrum
from lrd_deploy.ranks.staircase import forms, grid
from lrd_deploy.recipe.policies import LatencyRank
from lrd_deploy.records import (
    Choice,
    FrontPoint,
    KeepDense,
    LayerSignature,
    LayerStudy,
    PlannedLayer,
    RankPlan,
    RankPoint,
    RankStudy,
)

_MOST_CANDIDATES = 48  # per layer, after the dominated ones are gone
_ROUNDS = 5  # of timing what was chosen on a prediction
_FRONT = 12
_DENSE = KeepDense()


class LatencyPlanner:
    """Plans one model by one source of latencies; may be asked for several plans, and times nothing twice."""

    def __init__(
        self,
        layers: Sequence[Layer],
        policy: LatencyRank,
        source: LatencySource,
        evidence: Evidence | None = None,
    ) -> None:
        """Times the layers' staircases and reads off what every rank would lose.

        Args:
            layers: all of them, refused ones included.
            policy: the goal.
            source: times layers.
            evidence: weighs errors; without it all inputs and all layers weigh the same.
        """
        self.layers, self.policy, self.source = layers, policy, source
        self.evidence = evidence or Evidence()
        self.staircases = explore(layers, source, policy.quantum)
        self.quantum = self.staircases.quantum
        self._errors = {layer.name: self._squared_errors(layer) for layer in layers if layer.may_be_factorised}

    def plan(self, timer: ModelTimer | None = None) -> RankPlan:
        """Returns the plan that meets the policy's goal; as measured on the whole model where a timer is given.

        Raises:
            UsageError: no combination of candidates meets it, or only the dense model is within so small an error;
                the message says what the nearest does.
        """
        target = self.policy.target_speedup
        if timer is not None and target is not None:
            extremes = self._dense_plan(), self._fastest_plan()
            return corrected_until_met(self._solved, timer, *extremes, target, self._goal())
        plan = self._solved(Correction(), target)
        if target is None and (plan is None or not plan.factorised) and (least := self._least_error()):
            raise error_out_of_reach(self._goal(), least)
        if plan is None:
            raise self._out_of_reach()
        return plan if timer is None else _measured(plan, timer)

    def aiming_at(self, policy: LatencyRank) -> LatencyPlanner:
        """Returns a planner with another goal on the same ranks; what is timed for one is known to both."""
        other = copy(self)
        other.policy = policy
        return other

    def mildest_plan(self) -> RankPlan | None:
        """Returns the plan that factorises one layer and loses least; None where no form is faster than dense."""
        options = self._options()
        steps = [
            (option.loss, option.latency_ms - layer[0].latency_ms, number, option)
            for number, layer in enumerate(options)
            for option in layer[1:]
        ]
        if not steps:
            return None
        _, saved_ms, changed, step = min(steps, key=lambda entry: entry[:2])
        dense_ms = sum(layer[0].latency_ms for layer in options)
        chosen = [step if number == changed else layer[0] for number, layer in enumerate(options)]
        return self._plan_of(options, chosen, dense_ms / (dense_ms + saved_ms))

    def study(self, plan: RankPlan) -> RankStudy:
        """Returns what was seen on the way to a plan: each layer's points, and the front that all layers make."""
        options = self._options()
        studied = []
        for layer, planned, candidates in zip(self.layers, plan.layers, options, strict=True):
            if not layer.may_be_factorised:
                continue
            timed = self.staircases.known[layer.signature]
            seen = [self._candidate(layer, choice) for choice in timed if choice in self._errors[layer.name]]
            choices = {candidate.choice: candidate for candidate in (*candidates, *seen)}
            points = [
                RankPoint(
                    choice=choice,
                    latency_ms=candidate.latency_ms,
                    relative_error=candidate.squared_error**0.5,
                    timed=choice in timed,
                )
                for choice, candidate in choices.items()
                if choice != _DENSE
            ]
            studied.append(
                LayerStudy(
                    name=layer.name,
                    signature=layer.signature,
                    dense_latency_ms=candidates[0].latency_ms,
                    chosen=planned.choice,
                    points=tuple(points),
                )
            )
        return RankStudy(layers=tuple(studied), front=self._front(options), timings=self.staircases.timings)

    def front_point(self, name: str, plan: RankPlan) -> FrontPoint | None:
        """Returns where another policy's plan lies; None where the source cannot time one of its choices."""
        known, choices = (
            self.staircases.known,
            [(layer.signature, layer.choice) for layer in plan.layers if layer.signature],
        )
        self.staircases.ask(_grouped(choices))
        if any(choice not in known[signature] for signature, choice in choices):
            return None
        latencies = [layer.calls * known[layer.signature][layer.choice] for layer in plan.layers if layer.signature]
        dense = [layer.calls * known[layer.signature][_DENSE] for layer in plan.layers if layer.signature]
        loss = sum(
            self.evidence.importance.get(layer.name, 1.0) * layer.predicted_error**2 for layer in plan.factorised
        )
        return FrontPoint(policy=name, speedup=sum(dense) / sum(latencies), predicted_error=loss**0.5)

    # Candidates ----------------------------------------------------------------------------------------------

    def _squared_errors(self, layer: Layer) -> dict[Choice, float]:
        """The squared relative error of every choice on the grid of one layer."""
        spectrum = Spectrum(layer.weight(), self.evidence.metrics.get(layer.name))
        return {
            choice: spectrum.relative_error(choice) ** 2
            for form in forms(layer.signature)
            for choice in grid(layer.signature, form, self.staircases.step(layer.signature))
        }

    def _options(self) -> list[list[Candidate]]:
        """Per layer dense first, then what no other choice beats."""
        return [self._options_of(layer) for layer in self.layers]

    def _options_of(self, layer: Layer) -> list[Candidate]:
        if layer.signature is None:
            return [Candidate(_DENSE, 0.0, 0.0, 0)]
        dense = self._candidate(layer, _DENSE)
        if layer.refusal:
            return [dense]
        candidates = [self._candidate(layer, choice) for choice in self._errors[layer.name]]
        faster = [candidate for candidate in candidates if self._pays(candidate, dense)]
        return [dense, *undominated(faster, most=_MOST_CANDIDATES)]

    def _pays(self, candidate: Candidate, dense: Candidate) -> bool:
        """Slower than dense is only worth it where parameters are scarce too, and what no timing tells of is not."""
        scarce = self.policy.max_parameters is not None and isfinite(candidate.latency_ms)
        return candidate.latency_ms < dense.latency_ms or scarce

    def _candidate(self, layer: Layer, choice: Choice) -> Candidate:
        squared = 0.0 if choice == _DENSE else self._errors[layer.name].get(choice, 1.0)
        return Candidate(
            choice=choice,
            latency_ms=layer.calls * self.staircases.latency_ms(layer.signature, choice),
            loss=squared * self.evidence.importance.get(layer.name, 1.0),
            parameters=parameters(layer.signature, choice),
            squared_error=squared,
        )

    # Solving -------------------------------------------------------------------------------------------------

    def _solved(self, correction: Correction, speedup: float | None) -> RankPlan | None:
        """The best combination under the goal, every chosen latency measured where the source can; None if none is.

        Of goals by speedup it is this one that counts.
        """
        for _ in range(_ROUNDS):
            options = self._options()
            dense_ms = sum(layer[0].latency_ms for layer in options)
            chosen = allocate(options, self._budget(options, correction, speedup))
            if chosen is None:
                return None
            pairs = zip(self.layers, chosen, strict=True)
            if not self.staircases.ask(
                _grouped([(layer.signature, one.choice) for layer, one in pairs if layer.signature])
            ):
                break
        predicted = correction.predicted_speedup(dense_ms, sum(candidate.latency_ms for candidate in chosen))
        return self._plan_of(options, chosen, predicted)

    def _budget(self, options: Sequence[Sequence[Candidate]], correction: Correction, speedup: float | None) -> Budget:
        policy = self.policy
        dense_ms = sum(layer[0].latency_ms for layer in options)
        return Budget(
            latency_ms=None if speedup is None else correction.budget_ms(dense_ms, speedup),
            loss=policy.max_error**2 if policy.max_error else None,
            parameters=self._most_parameters(options),
        )

    def _most_parameters(self, options: Sequence[Sequence[Candidate]]) -> float | None:
        share = self.policy.max_parameters
        return None if share is None else share * sum(layer[0].parameters for layer in options)

    def _out_of_reach(self) -> UsageError:
        limited = self.policy.max_parameters is not None
        return out_of_reach(self._options(), self._goal(), parameters=limited)

    def _least_error(self) -> float | None:
        """The least predicted error of a plan that factorises something within the parameters; None without one."""
        if self.policy.max_parameters is None:
            mildest = self.mildest_plan()
            return mildest.predicted_error if mildest else None
        options = self._options()
        dense_ms = sum(layer[0].latency_ms for layer in options)
        fewer = allocate(options, Budget(latency_ms=dense_ms, parameters=self._most_parameters(options)))
        return sum(candidate.loss for candidate in fewer) ** 0.5 if fewer else None

    def _goal(self) -> str:
        policy = self.policy
        wanted = (
            f"a speedup of {policy.target_speedup:g}"
            if policy.target_speedup
            else f"a relative error of at most {policy.max_error:g}"
        )
        if policy.max_parameters is not None:
            wanted += f" with at most {percent(policy.max_parameters)} of the parameters"
        return wanted

    def _plan_of(self, options: Sequence[Sequence[Candidate]], chosen: Sequence[Candidate], speedup: float) -> RankPlan:
        planned = [
            self._explained(layer, candidates, candidate)
            for layer, candidates, candidate in zip(self.layers, options, chosen, strict=True)
        ]
        plan = rank_plan(planned, self.policy, self.source.environment)
        return plan.model_copy(
            update={
                "predicted_speedup": speedup,
                "predicted_error": sum(candidate.loss for candidate in chosen) ** 0.5,
                "quantum": self.quantum,
                "notes": tuple(getattr(self.source, "notes", ())),
            }
        )

    def _dense_plan(self) -> RankPlan:
        options = self._options()
        return self._plan_of(options, [layer[0] for layer in options], 1.0)

    def _fastest_plan(self) -> RankPlan:
        """Of those with as few parameters as the policy wants."""
        options = self._options()
        chosen = allocate(options, Budget(parameters=self._most_parameters(options)))
        if chosen is None:
            raise self._out_of_reach()
        dense_ms = sum(layer[0].latency_ms for layer in options)
        return self._plan_of(options, chosen, dense_ms / sum(candidate.latency_ms for candidate in chosen))

    def _explained(self, layer: Layer, options: Sequence[Candidate], chosen: Candidate) -> PlannedLayer:
        dense = options[0]
        if layer.refusal or layer.signature is None:
            return kept_dense(layer, layer.refusal or "its size is not known", dense.latency_ms or None)
        if not self._errors[layer.name]:
            step = self.staircases.step(layer.signature)
            return kept_dense(layer, f"no multiple of {step} saves parameters", dense.latency_ms)
        if chosen.choice == _DENSE:
            return kept_dense(layer, self._why_dense(layer.signature, options), dense.latency_ms)
        timed = chosen.choice in self.staircases.known[layer.signature]
        return PlannedLayer(
            name=layer.name,
            signature=layer.signature,
            choice=chosen.choice,
            reason=f"{dense.latency_ms / chosen.latency_ms:.1f}× faster than dense{'' if timed else ', predicted'}",
            calls=layer.calls,
            predicted_error=chosen.squared_error**0.5,
            dense_latency_ms=dense.latency_ms,
            predicted_latency_ms=chosen.latency_ms,
        )

    def _why_dense(self, signature: LayerSignature, options: Sequence[Candidate]) -> str:
        if any(option.latency_ms < options[0].latency_ms for option in options[1:]):
            return "its error buys more time elsewhere"
        told = any(choice != _DENSE for choice in self.staircases.known[signature])
        return "no form is faster than dense" if told else "no timing of its factors settled"

    def _front(self, options: Sequence[Sequence[Candidate]]) -> tuple[FrontPoint, ...]:
        """Least error at latencies spread between the fastest combination and dense."""
        dense_ms = sum(layer[0].latency_ms for layer in options)
        fastest_ms = sum(min(option.latency_ms for option in layer) for layer in options)
        points = []
        for step in range(_FRONT + 1):
            budget = dense_ms * (fastest_ms * 1.001 / dense_ms) ** (step / _FRONT)
            chosen = allocate(options, Budget(latency_ms=budget))
            if chosen is not None:
                latency, loss = sum(c.latency_ms for c in chosen), sum(c.loss for c in chosen)
                points.append(FrontPoint(policy="latency", speedup=dense_ms / latency, predicted_error=loss**0.5))
        return tuple(points)


def _grouped(choices: Iterable[tuple[LayerSignature, Choice]]) -> dict[LayerSignature, list[Choice]]:
    requests: dict[LayerSignature, list[Choice]] = {}
    for signature, choice in choices:
        requests.setdefault(signature, []).append(choice)
    return requests


def _measured(plan: RankPlan, timer: ModelTimer) -> RankPlan:
    """The plan with its speedup as measured, and as the sums over layers and the dense model's latency predict it.

    A layer alone also converts its inputs and outputs to the backend's own layout; its factors do the same, so that
    differences between them are right where ratios are not.
    """
    dense_ms, lowrank_ms = timer.latencies_ms(plan)
    dense_layers_ms = sum(layer.dense_latency_ms or 0.0 for layer in plan.layers)
    lowrank_layers_ms = sum(layer.predicted_latency_ms or 0.0 for layer in plan.layers)
    correction = Correction(outside_ms=dense_ms - dense_layers_ms)
    predicted = correction.predicted_speedup(dense_layers_ms, lowrank_layers_ms)
    return plan.model_copy(update={"measured_speedup": dense_ms / lowrank_ms, "predicted_speedup": predicted})
