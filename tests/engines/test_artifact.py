import json

import onnx
import pytest

from lrd_deploy.bench.layer_graph import layer_graph
from lrd_deploy.engines import BuildSettings, SessionSettings, runtime
from lrd_deploy.engines.artifact import check_engine, checked_bytes, manifest_of
from lrd_deploy.engines.backend import BackendStatus
from lrd_deploy.engines.building import build_engine
from lrd_deploy.engines.gpu import NoGpu
from lrd_deploy.errors import BackendError, InputError, UsageError
from lrd_deploy.export.node_precision import node_shares
from lrd_deploy.files import sha256_of
from lrd_deploy.records import EngineArtifact, KeepDense, LayerSignature, Processor, TargetGpu

L4 = TargetGpu(name="NVIDIA L4", compute_capability="8.9", driver="580.95.05")
HERE = BackendStatus(name="tensorrt", builds=True, runs=True, version="11.4.0.106", detail="")
SIGNATURE = LayerSignature(kind="linear", in_channels=8, out_channels=8)


def record(**changes):
    fields = {
        "path": "m.engine", "sha256": "a" * 64, "source_sha256": "b" * 64, "backend": "tensorrt",
        "backend_version": HERE.version, "precision": "fp32", "target": "NVIDIA L4", "build_seconds": 1.0,
        "size_bytes": 5, "built_on": L4,
    }  # fmt: skip
    return EngineArtifact(**fields | changes)


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "m.engine"
    path.write_bytes(b"a plan")
    record(sha256=sha256_of(path)).write(manifest_of(path))
    return path


def test_a_plan_whose_manifest_fits_is_given_out_as_it_is(plan):
    content, artifact = checked_bytes(plan, HERE, L4)
    assert content == b"a plan"
    assert artifact == EngineArtifact.read(manifest_of(plan))


@pytest.mark.parametrize("position", range(6))
@pytest.mark.parametrize("bit", [0, 7])
def test_one_flipped_bit_anywhere_is_noticed(plan, position, bit):
    content = bytearray(plan.read_bytes())
    content[position] ^= 1 << bit
    plan.write_bytes(content)
    with pytest.raises(InputError, match="the very file that was built: an engine is code"):
        checked_bytes(plan, HERE, L4)


@pytest.mark.parametrize("content", [b"", b"a pla", b"a plan."])
def test_a_plan_cut_short_or_longer_is_noticed(plan, content):
    plan.write_bytes(content)
    with pytest.raises(InputError, match="it was changed or cut short"):
        checked_bytes(plan, HERE, L4)


def test_a_plan_without_a_manifest_is_refused(plan):
    manifest_of(plan).unlink()
    with pytest.raises(InputError, match=r"no manifest 'm\.engine\.json' beside it"):
        checked_bytes(plan, HERE, L4)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"path": 3}'])
def test_a_damaged_manifest_is_refused(plan, text):
    manifest_of(plan).write_text(text)
    with pytest.raises(InputError, match=r"reading '.*m\.engine\.json' as EngineArtifact"):
        checked_bytes(plan, HERE, L4)


def check(artifact, machine=L4, version=HERE.version, sha256="a" * 64):
    status = HERE.model_copy(update={"version": version})
    check_engine("m.engine", artifact, sha256, status, machine)


OTHER_GPU = L4.model_copy(update={"name": "NVIDIA H100"})


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"sha256": "c" * 64}, InputError, r"its SHA-256 is a{16}…, its manifest says c{16}…"),
        ({"backend": "tensorrt-rtx"}, UsageError, "an engine of tensorrt-rtx; one of tensorrt;"),
        (
            {"backend_version": "11.3"},
            InputError,
            r"tensorrt 11\.3 built it, and this is 11\.4\.0\.106; this very version",
        ),
        ({"compute_capabilities": ("8.6", "12.0")}, InputError, r"compute capability 8\.6, 12\.0; NVIDIA L4 has 8\.9"),
        ({"built_on": OTHER_GPU}, InputError, "built on NVIDIA H100, and this is NVIDIA L4"),
    ],
)
def test_each_mismatch_has_its_own_error(changes, error, reason):
    check(record())
    with pytest.raises(error, match=reason):
        check(record(**changes))


def test_the_first_mismatch_is_told_first():
    with pytest.raises(InputError, match="SHA-256"):
        check(record(sha256="c" * 64, backend="other", backend_version="1"), NoGpu("none"))
    with pytest.raises(UsageError, match="an engine of other"):
        check(record(backend="other", backend_version="1"), NoGpu("none"))
    with pytest.raises(InputError, match="tensorrt 1 built it"):
        check(record(backend_version="1"), NoGpu("none"))


def test_without_a_gpu_the_reason_is_the_machine():
    with pytest.raises(UsageError, match="no driver; the GPU that the engine is for"):
        check(record(), NoGpu("no driver"))


def test_another_driver_is_no_mismatch():
    check(record(), L4.model_copy(update={"driver": "590.1"}))


def test_a_plan_for_several_generations_loads_on_each_of_them():
    check(record(compute_capabilities=("8.6", "8.9"), built_on=None))


def test_a_version_compatible_plan_loads_in_the_same_major_and_not_before_its_own():
    compatible = record(version_compatible=True, backend_version="11.3.0")
    check(compatible)
    for version in ("11.2.9", "12.0.0", "rubbish", None):
        with pytest.raises(InputError, match="or an older one of the same major"):
            check(compatible, version=version)


@pytest.fixture
def optimised(tmp_path):
    onnx.save(layer_graph(SIGNATURE, KeepDense()), tmp_path / "m.onnx")
    engine = tmp_path / "e.onnx"
    build_engine("onnxruntime", tmp_path / "m.onnx", engine, BuildSettings())
    return engine


def edit(engine, **changes):
    manifest = manifest_of(engine)
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))


def load(engine):
    return runtime("onnxruntime").load(engine, SessionSettings())


def test_an_optimised_model_loads_where_it_was_made_and_says_for_which_processor(optimised):
    load(optimised)
    assert isinstance(EngineArtifact.read(manifest_of(optimised)).built_on, Processor)


def test_an_optimised_model_of_another_processor_is_refused(optimised):
    edit(optimised, built_on={"name": "Other", "instructions": ["avx", "sve"]})
    with pytest.raises(
        InputError, match=r"it was optimised for Other; this is .* without .*sve.*; a processor with the"
    ):
        load(optimised)


def test_an_optimised_model_of_another_version_is_refused(optimised):
    edit(optimised, backend_version="1.0.0")
    with pytest.raises(InputError, match=r"onnxruntime 1\.0\.0 built it, and this is"):
        load(optimised)


def test_an_optimised_model_that_was_changed_is_refused(optimised):
    content = bytearray(optimised.read_bytes())
    content[-1] ^= 1
    optimised.write_bytes(content)
    with pytest.raises(InputError, match="an engine is code"):
        load(optimised)


def test_a_plan_is_no_optimised_model(optimised):
    edit(optimised, backend="tensorrt")
    with pytest.raises(UsageError, match="an engine of tensorrt; one of onnxruntime"):
        load(optimised)


def test_an_onnx_file_with_somebody_elses_json_beside_it_loads(optimised):
    manifest_of(optimised).write_text('{"voice": "alto"}')
    load(optimised)
    manifest_of(optimised).write_text("[1]")
    load(optimised)
    manifest_of(optimised).unlink()
    load(optimised)


def test_a_manifest_cut_short_is_told_rather_than_ignored(optimised):
    manifest_of(optimised).write_bytes(manifest_of(optimised).read_bytes()[:40])
    with pytest.raises(InputError, match="as EngineArtifact"):
        load(optimised)


def test_rubbish_with_a_fitting_manifest_is_still_the_backends_to_refuse(optimised):
    optimised.write_bytes(b"rubbish")
    edit(optimised, sha256=sha256_of(optimised))
    with pytest.raises(BackendError, match="with ONNX Runtime"):
        load(optimised)


def test_the_manifest_names_the_digest_of_external_weights(tmp_path):
    onnx.save(
        layer_graph(SIGNATURE, KeepDense()), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin",
        size_threshold=0,
    )  # fmt: skip
    artifact = build_engine("onnxruntime", tmp_path / "m.onnx", tmp_path / "e.onnx", BuildSettings())
    assert artifact.external_data == {"w.bin": sha256_of(tmp_path / "w.bin")}


def test_nodes_are_counted_by_the_type_of_their_first_output():
    graph = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[batch,4] x) => (float[batch,4] y) {'
        "h = Cast <to = 10> (x) r = Relu (h) i = Cast <to = 1> (r) s = Shape (i) y = Reshape (i, s) }"
    )
    assert node_shares(graph) == {"fp16": 0.5, "fp32": 0.5}
    assert (
        node_shares(
            onnx.parser.parse_model(
                '<ir_version: 10, opset_import: ["" : 20]> g (int64[2] x) => (int64[2] y) { y = Abs (x) }'
            )
        )
        == {}
    )
