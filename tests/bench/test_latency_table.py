import pytest

from lrd_deploy.bench.latency_table import Conditions, LatencyRow, LatencyTable, MeasuredEnvironment
from lrd_deploy.bench.stored_latency import StoredLatency, stored_conditions
from lrd_deploy.errors import InputError
from lrd_deploy.records import SVD, Environment, KeepDense, LayerSignature

SIGNATURE = LayerSignature(kind="linear", in_channels=64, out_channels=64)
OTHER = LayerSignature(kind="linear", in_channels=32, out_channels=64)


def conditions(**changes):
    return Conditions(**({"backend": "onnxruntime", "batch": 8, "threads": 1, "fingerprint": "here"} | changes))


def row(choice, latency_ms, *, settled=True, signature=SIGNATURE, **changes):
    return LatencyRow(
        conditions=conditions(**changes),
        signature=signature,
        choice=choice,
        latency_ms=latency_ms,
        spread=0.01,
        settled=settled,
        samples=15,
    )


def machine(fingerprint, cpu="A CPU"):
    environment = Environment(cpu=cpu, cores=2, system="Linux", python="3.11", packages={}, fingerprint=fingerprint)
    return MeasuredEnvironment(environment=environment)


def table(*lines):
    result = LatencyTable()
    for line in lines:
        result.add(line)
    return result


def test_a_table_survives_its_file(tmp_path):
    written = table(machine("here"), row(KeepDense(), 2.0), row(SVD(rank=16), 1.0))
    written.write(tmp_path / "t.jsonl")
    assert LatencyTable.read(tmp_path / "t.jsonl") == written


def test_tables_merge_by_union_and_the_last_row_counts(tmp_path):
    table(row(KeepDense(), 2.0), row(SVD(rank=16), 1.0)).write(tmp_path / "a.jsonl")
    table(row(KeepDense(), 3.0), row(SVD(rank=32), 1.5)).write(tmp_path / "b.jsonl")
    merged = LatencyTable.read_all([tmp_path])
    assert merged.usable(conditions()) == {
        (SIGNATURE, KeepDense()): 3.0,
        (SIGNATURE, SVD(rank=16)): 1.0,
        (SIGNATURE, SVD(rank=32)): 1.5,
    }


@pytest.mark.parametrize(
    ("mutilated", "found"),
    [
        (lambda text: text[:-30], "line 2 of 2"),
        (
            lambda text: text.replace('"schema_version":1', '"schema_version":9'),
            r"line 1 of 2: Input should be 1 at 'environment\.schema_version'",
        ),
        (lambda text: '{"a": 1}\n' + text, "line 1 of 3"),
        (lambda text: text.replace("2.0", "-2.0"), "greater than 0"),
        (lambda _text: "\x00\xff", "line 1 of 1"),
    ],
    ids=["truncated", "another schema", "something else", "negative", "no JSON"],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, mutilated, found):
    text = table(machine("here"), row(KeepDense(), 2.0)).write(tmp_path / "t.jsonl").read_text()
    (tmp_path / "t.jsonl").write_text(mutilated(text))
    with pytest.raises(InputError, match=found):
        LatencyTable.read(tmp_path / "t.jsonl")


def test_rows_that_did_not_settle_are_not_usable():
    assert table(row(SVD(rank=16), 1.0, settled=False)).usable(conditions()) == {}


def test_this_machines_rows_are_taken_before_anothers():
    both = table(row(KeepDense(), 2.0), row(KeepDense(), 9.0, fingerprint="there"))
    assert stored_conditions(both, conditions()) == conditions()


def test_the_one_other_machine_is_taken_and_the_plan_says_so():
    foreign = table(machine("there", "A GPU"), row(KeepDense(), 9.0, fingerprint="there"))
    found = stored_conditions(foreign, conditions())
    source = StoredLatency(foreign, found, foreign.environments["there"])
    assert source.latencies_ms({SIGNATURE: [KeepDense()]}) == {(SIGNATURE, KeepDense()): 9.0}
    assert source.notes == ("latencies were measured on another machine: A GPU, Linux",)


def test_two_other_machines_are_one_too_many():
    foreign = table(
        *(machine(name, name.upper()) for name in ("x", "y")),
        *(row(KeepDense(), 9.0, fingerprint=name) for name in ("x", "y")),
    )
    with pytest.raises(InputError, match=r"rows of 2 machines \(X, Y\)"):
        stored_conditions(foreign, conditions())


def test_rows_of_another_batch_are_told_apart():
    with pytest.raises(InputError, match=r'rows for .*"batch":32.*; rows of one machine for .*"batch":8'):
        stored_conditions(table(row(KeepDense(), 1.0, batch=32)), conditions())


def test_an_empty_table_has_no_rows():
    with pytest.raises(InputError, match="no rows; rows of one machine for"):
        stored_conditions(LatencyTable(), conditions())


def test_layers_that_a_table_lacks_are_named():
    foreign = table(machine("there"), row(KeepDense(), 9.0, fingerprint="there"))
    source = StoredLatency(foreign, conditions(fingerprint="there"), foreign.environments["there"])
    with pytest.raises(InputError, match=r"no rows for linear 32→64 at 1; a dense row for every layer"):
        source.latencies_ms({SIGNATURE: [KeepDense()], OTHER: [KeepDense()]})
