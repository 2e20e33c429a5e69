"""Deciding what becomes of a graph's factor chains, by what each would take: nothing is rewritten here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from onnx import ModelProto

from lrd_deploy.export.onnx_layers import inferred_shapes
from lrd_deploy.ranks.source import Latencies, LatencySource
from lrd_deploy.records import ChainDecision, ChainOption, Choice, LayerSignature
from lrd_deploy.rewrite.apply import graph_of
from lrd_deploy.rewrite.best_option import TimedOption, best_options
from lrd_deploy.rewrite.chain_layer import layer_of
from lrd_deploy.rewrite.factor_chain import FactorChain, check_chain, find_chains
from lrd_deploy.rewrite.rank_options import RankOption, rank_options, truncation_error
from lrd_deploy.rewrite.rule import Rule


@dataclass(frozen=True)
class Decided:
    """What becomes of one chain: the record of it, the rule that does it, and the squared error that it adds."""

    decision: ChainDecision
    rule: Rule | None = None
    loss: float = 0.0


@dataclass(frozen=True)
class _Timeable:
    """A chain as a layer in some form, with what could be done to it."""

    chain: FactorChain
    signature: LayerSignature
    options: tuple[RankOption, ...]


def decide(
    model: ModelProto,
    quanta: Sequence[int],
    budget: float,
    latency: LatencySource,
    only: frozenset[str] | None = None,
) -> list[Decided]:
    """Returns a decision for every factor chain of a model, in the graph's order.

    Args:
        model: left as it is.
        quanta: multiples of these are candidates.
        budget: the most that the squared relative errors of truncations may sum to; 0 allows none.
        latency: asked once, for all chains together.
        only: names of the chains to decide about; the others are kept. None: all.

    Raises:
        InputError: the graph's shapes contradict each other, or a table lacks a layer.
    """
    looked = _looked(model, quanta, only, truncate=budget > 0)
    timeable = [one for one in looked if isinstance(one, _Timeable)]
    times = latency.latencies_ms(_requests(timeable)) if timeable else {}
    timed = {one.chain.name: _timed(one, times) for one in timeable}
    settled = {name: options for name, options in timed.items() if options}
    best = dict(zip(settled, best_options(list(settled.values()), budget), strict=True))
    return [
        _explained(one, best.get(one.chain.name), timed[one.chain.name], times) if isinstance(one, _Timeable) else one
        for one in looked
    ]


def _looked(
    model: ModelProto, quanta: Sequence[int], only: frozenset[str] | None, *, truncate: bool
) -> list[_Timeable | Decided]:
    """Every chain, or why it cannot be timed."""
    graph, shapes = graph_of(model), inferred_shapes(model)
    looked: list[_Timeable | Decided] = []
    for chain in find_chains(graph):
        if only is not None and chain.name not in only:
            looked.append(Decided(_kept(chain.name, "it is not among the layers asked for")))
            continue
        layer = check_chain(graph, chain) or layer_of(chain, shapes.get(chain.nodes[0].inputs[0].name))
        if isinstance(layer, str):
            looked.append(Decided(_kept(chain.name, layer)))
        else:
            signature, choice = layer
            options = rank_options(graph, chain, choice, quanta, truncate=truncate)
            looked.append(_Timeable(chain, signature, tuple(options)))
    return looked


def _kept(chain: str, reason: str) -> ChainDecision:
    return ChainDecision(chain=chain, action="keep", choice=None, signature=None, options=(), reason=reason)


def _requests(timeable: Iterable[_Timeable]) -> dict[LayerSignature, list[Choice]]:
    requests: dict[LayerSignature, list[Choice]] = {}
    for one in timeable:
        requests.setdefault(one.signature, []).extend(option.choice for option in one.options)
    return {signature: list(dict.fromkeys(choices)) for signature, choices in requests.items()}


def _timed(one: _Timeable, times: Latencies) -> list[TimedOption]:
    """The options with a latency, staying first; none where that of staying is not known."""
    if (one.signature, one.options[0].choice) not in times:
        return []
    return [
        TimedOption(option, times[one.signature, option.choice], _loss(one.chain, option))
        for option in one.options
        if (one.signature, option.choice) in times
    ]


def _loss(chain: FactorChain, option: RankOption) -> float:
    return truncation_error(chain, option.choice) ** 2 if option.action == "truncate" else 0.0


def _explained(one: _Timeable, best: TimedOption | None, timed: Sequence[TimedOption], times: Latencies) -> Decided:
    losses = {option.option.choice: option.loss for option in timed}
    options = tuple(
        ChainOption(
            action=option.action,
            choice=option.choice,
            latency_ms=times.get((one.signature, option.choice)),
            relative_error=losses.get(option.choice, 0.0) ** 0.5,
        )
        for option in one.options
    )
    decision = ChainDecision(
        chain=one.chain.name,
        action="keep" if best is None else best.option.action,
        choice=one.options[0].choice if best is None else best.option.choice,
        signature=one.signature,
        options=options,
        reason=_reason(one, best, timed),
    )
    return Decided(decision, best.option.rule, best.loss) if best is not None else Decided(decision)


def _reason(one: _Timeable, best: TimedOption | None, timed: Sequence[TimedOption]) -> str:
    here = one.options[0].choice
    if best is None:
        return f"no latency of {here} is known that could be compared with"
    if best.option.rule is not None:
        return f"{best.option.choice} takes {best.latency_ms:.3g} ms, {here} {timed[0].latency_ms:.3g} ms"
    others = [option for option in timed[1:] if option.option.action != "truncate"]
    if not others:
        return f"{here} takes {best.latency_ms:.3g} ms, and nothing else could be done that loses nothing"
    fastest = min(others, key=lambda option: option.latency_ms)
    compared = f"{fastest.option.choice} {fastest.latency_ms:.3g} ms"
    return f"{here} takes {best.latency_ms:.3g} ms, {compared}: not 5 % faster"
