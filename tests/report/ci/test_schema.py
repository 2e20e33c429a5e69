import json

import jsonschema
import pytest

from lrd_deploy.records import GateResult
from lrd_deploy.report.ci.schema import gate_result_schema
from tests.report.ci.golden import SCHEMA
from tests.report.ci.results import RESULTS

VALIDATOR = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))


@pytest.mark.parametrize("name", RESULTS)
def test_what_the_gate_prints_validates(name):
    VALIDATOR.validate(json.loads(RESULTS[name].to_json()))


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(json.loads(SCHEMA.read_text()))


def printed(**changes):
    return json.loads(RESULTS["pass"].to_json()) | changes


def without(field):
    return {name: value for name, value in printed().items() if name != field}


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        (printed(schema_version=2), "1 was expected"),
        (printed(verdict="MAYBE"), "is not one of"),
        (printed(surprise=1), "Additional properties"),
        (printed(change="fast"), "is not valid under any"),
        (without("low"), "'low' is a required property"),
        (without("schema_version"), "'schema_version' is a required property"),
    ],
    ids=["version", "verdict", "extra", "type", "missing", "unversioned"],
)
def test_another_shape_does_not_validate(changed, complaint):
    with pytest.raises(jsonschema.ValidationError, match=complaint):
        VALIDATOR.validate(changed)


def test_a_changed_record_changes_the_schema():
    class Changed(GateResult):
        surprise: int

    assert gate_result_schema(Changed) != gate_result_schema()
    assert "surprise" in json.loads(gate_result_schema(Changed))["required"]
