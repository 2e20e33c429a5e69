import importlib.util
import json
import os
import signal
import subprocess
import sys

import onnx
import pytest
from typer.testing import CliRunner

from lrd_deploy.bench.layer_graph import layer_graph
from lrd_deploy.cli.main import make_app
from lrd_deploy.cli.written import placed_engine
from lrd_deploy.engines import BACKENDS, BuildSettings, SessionSettings, builder
from lrd_deploy.engines.artifact import manifest_of
from lrd_deploy.engines.backend import TimingCache
from lrd_deploy.engines.building import build_engine, build_per_batch
from lrd_deploy.engines.compile_process import log_of
from lrd_deploy.engines.gpu import NoGpu
from lrd_deploy.engines.tensorrt import TensorRT
from lrd_deploy.errors import BackendError, InputError, MissingPackage, Problems, UsageError
from lrd_deploy.files import sha256_of
from lrd_deploy.records import DimensionRange, EngineArtifact, EngineSet, LayerSignature, TargetGpu, Tucker2

L4 = TargetGpu(name="NVIDIA L4", compute_capability="8.9", driver="580.95.05")
SIGNATURE = LayerSignature(
    kind="conv2d", in_channels=16, out_channels=16, kernel=(3, 3), padding=(1, 1), spatial=(6, 6)
)
UNHEARD = (
    '<ir_version: 10, opset_import: ["" : 20, "me" : 1]> g (float[batch,2] x) => (float[batch,2] y) '
    "{ y = me.Unheard (x) }"
)
needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="the rtx extra is missing")


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(layer_graph(SIGNATURE, Tucker2(rank_in=8, rank_out=8)), path)
    return path


def rtx(machine):
    return TensorRT("tensorrt-rtx", "tensorrt_rtx", "rtx", find_gpu=lambda: machine)


# What is missing --------------------------------------------------------------------------------------------------


def test_every_lack_of_tensorrt_has_its_own_message(tmp_path, monkeypatch):
    absent = TensorRT("tensorrt", "no_such_package", "tensorrt", find_gpu=lambda: NoGpu("no driver"))
    assert absent.describe().missing == ("not installed; run: pip install 'lrd-deploy[tensorrt]'", "no driver")
    (tmp_path / "broken_package.py").write_text("raise OSError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    broken = TensorRT("tensorrt", "broken_package", "tensorrt", find_gpu=lambda: L4)
    (lack,) = broken.describe().missing
    assert lack.startswith("installed, but its libraries do not load: libnvinfer.so.11: cannot open")
    with pytest.raises(MissingPackage, match=r"pip install 'lrd-deploy\[tensorrt\]'"):
        absent.build(tmp_path / "m.onnx", tmp_path / "e", BuildSettings())
    with pytest.raises(UsageError, match=r"its libraries do not load: libnvinfer\.so\.11"):
        broken.build(tmp_path / "m.onnx", tmp_path / "e", BuildSettings())


def test_onnx_runtime_refuses_what_only_tensorrt_has_a_use_for(model, tmp_path):
    options = ["--dim", "a=1", "--no-tf32", "--timing-cache", "c", "--per-batch", "1"]
    outcome = CliRunner().invoke(make_app(), ["build", str(model), "-o", str(tmp_path / "e"), *options])
    assert isinstance(outcome.exception, UsageError)
    assert outcome.exception.found == "--dim, --timing-cache, --no-tf32, --per-batch"


def test_an_engine_does_not_replace_its_model(model):
    before = model.read_bytes()
    with pytest.raises(UsageError, match="the engine would replace it"):
        build_engine("onnxruntime", model, model, BuildSettings())
    assert model.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--min-batch", "9", "--opt-batch", "3"], "the batches min 9, opt 3, max 64"),
        (["--per-batch", "1,8", "--max-batch", "8"], "--per-batch and a range of batches"),
        (["--no-new-timings"], "--no-new-timings without --timing-cache"),
        (["--dim", "a=1", "--dim", "a=2"], "--dim for 'a' more than once"),
        (["--dim", "a=4:2:8"], "'a=4:2:8'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(model, tmp_path, options, reason):
    outcome = CliRunner().invoke(make_app(), ["build", str(model), "-o", str(tmp_path / "e"), *options])
    assert isinstance(outcome.exception, UsageError)
    assert outcome.exception.found == reason
    assert list(tmp_path.iterdir()) == [model]


# TensorRT-RTX, without a GPU --------------------------------------------------------------------------------------


@pytest.mark.rtx
@needs_rtx
class TestWithoutAGpu:
    def test_a_build_leaves_engine_manifest_and_log(self, model, tmp_path):
        engine = tmp_path / "m.engine"
        settings = BuildSettings(tf32=False, compute_capabilities=("8.6", "12.0"))
        artifact = build_engine("tensorrt-rtx", model, engine, settings)
        assert EngineArtifact.read(manifest_of(engine)) == artifact
        assert artifact.sha256 == sha256_of(engine)
        assert (artifact.tf32, artifact.precision, artifact.node_shares) == (False, "fp32", {"fp32": 1.0})
        assert (artifact.compute_capabilities, artifact.built_on) == (("8.6", "12.0"), None)
        assert (artifact.layers, artifact.warnings) == (None, 0)
        assert "takes a GPU" in artifact.no_layers
        log = log_of(engine).read_text()
        assert "DETAILED" in log
        assert "Timing cache operations are no-ops" not in log
        assert "TF32" not in log

    def test_tf32_is_on_unless_said_otherwise_and_the_log_shows_it(self, model, tmp_path):
        assert build_engine("tensorrt-rtx", model, tmp_path / "e", BuildSettings()).tf32 is True
        assert "[TF32, STRONGLY_TYPED]" in log_of(tmp_path / "e").read_text()

    def test_one_engine_per_batch_has_that_size_built_in(self, model, tmp_path):
        engines = build_per_batch("tensorrt-rtx", model, tmp_path / "m.engine", BuildSettings(), (1, 8))
        assert [str(each.path) for each in engines] == ["m.b1.engine", "m.b8.engine"]
        for each, batch in zip(engines, (1, 8), strict=True):
            (profile,) = each.profile
            assert profile.min == profile.opt == profile.max == (batch, 16, 6, 6)
            log = log_of(tmp_path / each.path).read_text()
            assert "minShape is not the same" not in log
        assert engines[0].sha256 != engines[1].sha256

    def test_names_are_data_not_patterns(self, model, tmp_path):
        graph = onnx.load(model)
        for old, new in (("x", "x[0-9]*?"), ("y", "../y")):
            for value in (*graph.graph.input, *graph.graph.output):
                value.name = new if value.name == old else value.name
            for node in graph.graph.node:
                for names in (node.input, node.output):
                    names[:] = [new if name == old else name for name in names]
        onnx.save(graph, model)
        (profile,) = build_engine("tensorrt-rtx", model, tmp_path / "e", BuildSettings()).profile
        assert profile.name == "x[0-9]*?"

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"timing_cache": TimingCache(path="c")}, "--timing-cache: it does nothing here"),
            ({"version_compatible": True}, "--version-compatible: it takes libnvinfer_lean"),
            ({"refittable": True}, "--refittable: compiling such an engine takes a GPU"),
            ({"compute_capabilities": ("9.0",)}, r"compute capability '9\.0'; one of: 7\.5"),
            ({"dimensions": {"width": DimensionRange(min=1, opt=1, max=1)}}, "sizes for 'width'"),
        ],
    )
    def test_what_cannot_be_built_here_is_refused_with_the_reason(self, model, tmp_path, changes, reason):
        with pytest.raises(UsageError, match=reason):
            rtx(NoGpu("no driver")).build(model, tmp_path / "e", BuildSettings(**changes))
        assert list(tmp_path.iterdir()) == [model]

    def test_several_refusals_come_together(self, model, tmp_path):
        settings = BuildSettings(version_compatible=True, refittable=True, compute_capabilities=("9.0",))
        with pytest.raises(Problems, match="3 problems"):
            rtx(NoGpu("no driver")).build(model, tmp_path / "e", settings)

    def test_a_refused_graph_leaves_its_log_and_no_engine(self, tmp_path):
        onnx.save(onnx.parser.parse_model(UNHEARD), tmp_path / "m.onnx")
        with pytest.raises(BackendError, match="Unheard") as caught:
            build_engine("tensorrt-rtx", tmp_path / "m.onnx", tmp_path / "e", BuildSettings())
        assert str(log_of(tmp_path / "e")) in caught.value.remedy
        assert "[E]" in log_of(tmp_path / "e").read_text()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["e.log", "m.onnx"]

    def test_a_failed_build_leaves_an_earlier_engine_as_it_was(self, model, tmp_path):
        artifact = build_engine("tensorrt-rtx", model, tmp_path / "e", BuildSettings())
        onnx.save(onnx.parser.parse_model(UNHEARD), tmp_path / "m.onnx")
        with pytest.raises(BackendError, match="Unheard"):
            build_engine("tensorrt-rtx", tmp_path / "m.onnx", tmp_path / "e", BuildSettings())
        assert sha256_of(tmp_path / "e") == artifact.sha256
        assert EngineArtifact.read(manifest_of(tmp_path / "e")) == artifact

    def test_a_compiler_that_dies_is_told_with_the_signal(self, model, tmp_path, monkeypatch):
        killed = f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"
        folder = tmp_path / "packages" / "tensorrt_rtx"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(killed)
        monkeypatch.setenv("PYTHONPATH", "")
        backend = rtx(NoGpu("no driver"))
        backend.describe()  # the real package is loaded here; the compiling process finds the other
        monkeypatch.syspath_prepend(str(folder.parent))
        with pytest.raises(BackendError, match="the compiler was ended by signal 9"):
            backend.build(model, tmp_path / "e", BuildSettings())
        assert not (tmp_path / "e").exists()

    def test_a_killed_build_leaves_no_process(self, tmp_path):
        """The compiler's end of a pipe closes when it ends."""
        os.mkfifo(tmp_path / "marks")
        script = (
            "import sys; from pathlib import Path; from lrd_deploy.engines import compile_process\n"
            "command = [sys.executable, '-c', 'import sys; from lrd_deploy.engines.compile_worker import "
            'end_with_parent; end_with_parent(); marks = open(sys.argv[1], "w"); print("started", file=marks, '
            "flush=True); import threading; threading.Event().wait()', sys.argv[2]]\n"
            "compile_process._run(command, Path(sys.argv[1]))"
        )
        parent = subprocess.Popen([sys.executable, "-c", script, tmp_path / "log", tmp_path / "marks"])
        with (tmp_path / "marks").open() as marks:
            assert marks.readline() == "started\n"
            parent.kill()
            assert marks.read() == ""
        parent.wait()

    def test_a_plan_does_not_load_without_a_gpu_and_the_reason_is_the_machine(self, model, tmp_path):
        build_engine("tensorrt-rtx", model, tmp_path / "e", BuildSettings())
        with pytest.raises(UsageError, match="no driver; the GPU that the engine is for"):
            rtx(NoGpu("no driver")).load(tmp_path / "e", SessionSettings())

    def test_a_plan_loads_only_on_a_gpu_it_was_built_for(self, model, tmp_path):
        build_engine("tensorrt-rtx", model, tmp_path / "e", BuildSettings())
        with pytest.raises(InputError, match=r"for compute capability 8\.6; NVIDIA L4 has 8\.9"):
            rtx(L4).load(tmp_path / "e", SessionSettings())

    def test_the_command_line_builds_with_a_manifest_that_it_prints(self, model, tmp_path):
        options = ["--backend", "tensorrt-rtx", "--per-batch", "1,2", "--json"]
        outcome = CliRunner().invoke(make_app(), ["build", str(model), "-o", str(tmp_path / "e.plan"), *options])
        assert outcome.exit_code == 0
        printed = EngineSet.model_validate_json(outcome.stdout)
        stored = [EngineArtifact.read(tmp_path / f"e.b{batch}.plan.json") for batch in (1, 2)]
        assert [placed_engine(artifact, tmp_path) for artifact in stored] == list(printed.engines)
        assert all(engine.path.is_file() for engine in printed.engines)


# TensorRT's own path, with TensorRT-RTX's library in its place ----------------------------------------------------


@pytest.fixture
def as_tensorrt(tmp_path, monkeypatch):
    """A package `tensorrt` that is TensorRT-RTX's, and a backend that believes in an L4."""
    folder = tmp_path / "packages" / "tensorrt"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("from tensorrt_rtx import *\n__version__ = '11.4.0.106'\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    yield TensorRT("tensorrt", "tensorrt", "tensorrt", find_gpu=lambda: L4)
    sys.modules.pop("tensorrt", None)


@pytest.mark.rtx
@needs_rtx
class TestTensorRTsPath:
    def test_a_build_is_for_the_gpu_at_hand_and_keeps_its_timings(self, as_tensorrt, model, tmp_path):
        cache = TimingCache(path=tmp_path / "timings")
        artifact = as_tensorrt.build(model, tmp_path / "e", BuildSettings(timing_cache=cache))
        assert (artifact.built_on, artifact.compute_capabilities) == (L4, ())
        assert artifact.backend_version == "11.4.0.106"
        assert artifact.timing_cache.sha256 == sha256_of(tmp_path / "timings" / artifact.timing_cache.name)
        assert artifact.timing_cache.name == "tensorrt-11.4.0.106-NVIDIA_L4-8.9-580.95.05.cache"
        assert artifact.no_layers.startswith("the engine does not load on this machine")

    def test_named_targets_are_refused_where_the_gpu_at_hand_is_the_target(
        self, as_tensorrt, model, tmp_path, monkeypatch
    ):
        import tensorrt

        monkeypatch.delattr(tensorrt, "ComputeCapability", raising=False)
        with pytest.raises(UsageError, match="none: this backend compiles for the GPU at hand"):
            as_tensorrt.build(model, tmp_path / "e", BuildSettings(compute_capabilities=("8.9",)))

    def test_a_tampered_plan_is_refused_before_tensorrt_sees_it(self, as_tensorrt, model, tmp_path):
        as_tensorrt.build(model, tmp_path / "e", BuildSettings()).write(manifest_of(tmp_path / "e"))
        content = bytearray((tmp_path / "e").read_bytes())
        content[1000] ^= 1
        (tmp_path / "e").write_bytes(content)
        with pytest.raises(InputError, match="the very file that was built: an engine is code"):
            as_tensorrt.load(tmp_path / "e", SessionSettings())

    @pytest.mark.usefixtures("as_tensorrt")
    def test_without_a_gpu_there_is_no_build(self, model, tmp_path):
        nowhere = TensorRT("tensorrt", "tensorrt", "tensorrt", find_gpu=lambda: NoGpu("no driver"))
        with pytest.raises(UsageError, match="no driver; an NVIDIA GPU and its driver: TensorRT times its kernels"):
            nowhere.build(model, tmp_path / "e", BuildSettings())


# Whole networks, dense and low-rank -------------------------------------------------------------------------------

RESNET = {
    "model_type": "resnet", "layer_type": "basic", "num_channels": 3, "embedding_size": 16, "hidden_sizes": [16, 32],
    "depths": [1, 1], "num_labels": 10,
}  # fmt: skip
VIT = {
    "model_type": "vit", "image_size": 16, "patch_size": 4, "num_channels": 3, "hidden_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "num_labels": 10,
}  # fmt: skip


@pytest.mark.rtx
@needs_rtx
@pytest.mark.parametrize("network", [RESNET, VIT], ids=["resnet", "vit"])
@pytest.mark.parametrize("lowrank", [False, True], ids=["dense", "lowrank"])
def test_whole_networks_compile_for_every_shape_and_named_gpu(network, lowrank, tmp_path):
    import torch
    from transformers import AutoConfig, AutoModelForImageClassification

    from lrd_deploy import UniformRank, decompose_, export_onnx, plan_ranks, survey

    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(AutoConfig.for_model(**network)).eval()
    example = torch.randn(2, 3, 16, 16)
    if lowrank:
        decompose_(model, plan_ranks(survey(model, example), UniformRank(alpha=2, round_to=4)))
    export_onnx(model, example, tmp_path / "m.onnx", opset=20)
    settings = BuildSettings(opt_batch=4, max_batch=16, compute_capabilities=("8.6", "8.9", "12.0"))
    artifact = build_engine("tensorrt-rtx", tmp_path / "m.onnx", tmp_path / "m.engine", settings)
    (profile,) = artifact.profile
    assert [shape[0] for shape in (profile.min, profile.opt, profile.max)] == [1, 4, 16]
    assert artifact.node_shares == {"fp32": 1.0}
    (single,) = build_per_batch("tensorrt-rtx", tmp_path / "m.onnx", tmp_path / "m.engine", BuildSettings(), (4,))
    assert single.profile[0].max == (4, 3, 16, 16)


@pytest.mark.rtx
@needs_rtx
def test_a_second_dynamic_dimension_is_compiled_with_its_range(tmp_path):
    graph = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[batch,sequence,8] x) => (float[batch,sequence,8] y) '
        "{ s = Softmax <axis = 1> (x) y = Mul (s, x) }"
    )
    onnx.save(graph, tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="the dimension 'sequence' of the input 'x'"):
        builder("tensorrt-rtx").build(tmp_path / "m.onnx", tmp_path / "e", BuildSettings())
    settings = BuildSettings(dimensions={"sequence": DimensionRange(min=16, opt=128, max=512)})
    (profile,) = builder("tensorrt-rtx").build(tmp_path / "m.onnx", tmp_path / "e", settings).profile
    assert (profile.min, profile.opt, profile.max) == ((1, 16, 8), (8, 128, 8), (64, 512, 8))


def test_doctor_names_what_each_backend_lacks():
    outcome = CliRunner().invoke(make_app(), ["doctor", "--json"])
    backends = json.loads(outcome.stdout)["backends"]
    for name, backend in BACKENDS.items():
        assert backends[name]["missing"] == list(backend.describe().missing)
