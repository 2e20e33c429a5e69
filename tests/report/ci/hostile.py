"""Names and numbers that a report must survive."""

from hypothesis import strategies as st

from lrd_deploy.records import CaseVerdict, ControlReading, GateResult
from tests.report.ci.results import RESULTS

PIECES = (
    *("\n", "\r\n", "]]>", "<![CDATA[", "<script>alert(1)</script>", "<!--", "&amp;", "[[ATTACHMENT|/etc/passwd]]"),
    *("::error::", "::set-output name=a::b", "%0A", "${{ github.token }}", "; rm -rf /", "$(id)", "--json", "{}"),
    *("|", "`", "```", "**", "_", "#", "\\", '"', "'", "$x^2$", "[a](javascript:b)", "http://a.b", "@all"),
    *("\x00", "\x08", "\x1b[31m", "\x7f", "\x85", "\u2028", "\u202e", "\ufffe", "\U0001ffff", "\ud800"),
    *("🦊", "👩‍👩‍👧", "é", " ", "a", "batch 8", "a" * 300),
)
names = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=6).map("".join)
shares = st.none() | st.floats(min_value=-1, max_value=1e6, allow_nan=False)
times = st.none() | st.floats(min_value=1e-6, max_value=1e6, allow_nan=False)
_ZERO = st.just(0.0)


@st.composite
def case_verdicts(draw):
    return CaseVerdict.model_construct(
        name=draw(names),
        verdict=draw(st.sampled_from(("PASS", "FAIL", "INCONCLUSIVE"))),
        reason=draw(names),
        change=draw(shares),
        low=draw(shares),
        high=draw(shares),
        p_value=draw(st.none() | st.floats(0, 1)),
        min_detectable=draw(shares),
        launches=draw(st.integers(0, 12)),
        confirming_launches=draw(st.integers(0, 12)),
        base_ms=draw(times),
        candidate_ms=draw(times),
        control=draw(st.none() | st.builds(ControlReading, change=shares.filter(bool), low=_ZERO, high=_ZERO)),
    )


@st.composite
def results(draw):
    """A result whose every text is hostile; surrogates cannot be validated, so the records are constructed."""
    known = draw(st.sampled_from(sorted(RESULTS)))
    result = RESULTS[known]
    evidence, name = result.evidence, draw(names)
    artefacts = {
        arm: artefact and artefact.model_copy(update={"name": draw(names)})
        for arm, artefact in (("baseline", evidence.baseline), ("candidate", evidence.candidate))
    }
    environment = evidence.environment.model_copy(update={"cpu": name, "system": name})
    evidence = evidence.model_copy(
        update=artefacts
        | {"environment": environment, "warnings": tuple(draw(st.lists(names, max_size=3))), "measured_at": draw(names)}
    )
    cases = tuple(draw(st.lists(case_verdicts(), max_size=4))) if result.cases else ()
    reasons = tuple(draw(st.lists(names, min_size=1, max_size=3)))
    return GateResult.model_construct(**(dict(result) | {"evidence": evidence, "cases": cases, "reasons": reasons}))
