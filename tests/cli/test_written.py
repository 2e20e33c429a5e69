"""What a verb says it wrote is there, from where the user stands, with all that belongs to it."""

import json
from pathlib import Path

import onnx
import pytest

from lrd_deploy.engines.artifact import manifest_of
from lrd_deploy.records import EngineArtifact
from tests.rewrite.beside import write_pairs

VERBS = {"rewrite": ["--quantum", 8], "convert": ["--precision", "fp16", "--keep", "dense_*"]}


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_pairs(Path("source"), width=32, rank=10, pairs=2, dense=1)


def last_line(outcome):
    code, out, err = outcome
    assert code == 0, err
    return out.splitlines()[-1]


@pytest.mark.parametrize("verb", VERBS)
def test_a_model_is_named_with_the_weights_beside_it(call, source, verb):
    target = Path("sub", "dir", "m.onnx")
    code, printed, err = call(verb, source, "-o", target, *VERBS[verb], "--json")
    assert code == 0, err
    record = json.loads(printed)
    assert Path(record["path"]) == target
    (data,) = map(Path, record["data_files"])
    assert sorted(target.parent.iterdir()) == sorted([target, data])
    line = last_line(call(verb, source, "-o", target, *VERBS[verb]))
    assert line == f"wrote {target} (and {data}, which belongs to it)"


def test_a_model_in_one_file_is_named_alone(call, source):
    onnx.save(onnx.load(source), "whole.onnx")
    target = Path("out", "m.onnx")
    assert json.loads(call("rewrite", "whole.onnx", "-o", target, "--json")[1])["data_files"] == []
    assert last_line(call("rewrite", "whole.onnx", "-o", target)) == f"wrote {target}"


def test_an_engine_is_named_with_its_manifest_which_may_be_moved(call, source):
    target = Path("engines", "m.onnx")
    code, printed, err = call("build", source, "-o", target, "--json")
    assert code == 0, err
    assert Path(json.loads(printed)["path"]) == target
    assert EngineArtifact.read(manifest_of(target)).path == Path("m.onnx")
    assert sorted(target.parent.iterdir()) == sorted([target, manifest_of(target)])
    line = last_line(call("build", source, "-o", target))
    assert line == f"wrote {target} (and {manifest_of(target)}, which belongs to it)"
