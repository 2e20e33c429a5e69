"""The JSON schema of what `gate --json` prints: written from the record, so that the two cannot part."""

from __future__ import annotations

import json

from lrd_deploy.records import GateResult, Record

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def gate_result_schema(record: type[Record] = GateResult) -> str:
    """Returns the schema of a record as it is printed: every field is there, null where nothing was measured."""
    schema = record.model_json_schema(mode="serialization")
    for part in (schema, *schema["$defs"].values()):
        if "properties" in part:
            part["required"] = list(part["properties"])
    titled = {"$schema": _DIALECT, **schema, "title": "The result of lrd-deploy gate"}
    return json.dumps(titled, indent=2, ensure_ascii=False) + "\n"
