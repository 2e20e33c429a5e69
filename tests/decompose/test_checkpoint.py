"""A checkpoint decomposed on disk is the model decomposed in memory, whatever stops or shares the work."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lrd_deploy.decompose import checkpoint, shards
from lrd_deploy.decompose.checkpoint import decompose_checkpoint
from lrd_deploy.decompose.surgery import decompose_, load_lowrank_
from lrd_deploy.errors import InputError, Problems, StorageError, UsageError
from lrd_deploy.models.source import load_weights_
from lrd_deploy.models.stored_tensors import INDEX_NAME, stored_tensors
from lrd_deploy.processes import shared_out
from lrd_deploy.recipe.policies import UniformRank
from lrd_deploy.records import SVD, CheckpointReport, KeepDense, RankPlan
from tests.tolerances import sum_tolerance

POLICY = UniformRank(alpha=2, round_to=8)


def llama(tied=False):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    llama().save_pretrained(folder, max_shard_size="60KB")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"the same weights in another format")
    return folder


@pytest.fixture
def source(saved, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(saved, tmp_path / "source")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def tensors(folder):
    return {name: tensor.read() for name, tensor in stored_tensors(folder).items()}


@pytest.mark.parametrize("tied", [False, True])
def test_the_loaded_checkpoint_equals_the_model_decomposed_in_memory(tmp_path, tied):
    llama(tied).save_pretrained(tmp_path / "dense", max_shard_size="60KB")
    decompose_checkpoint(tmp_path / "dense", tmp_path / "low", POLICY)
    plan = RankPlan.read(tmp_path / "low" / "plan.json")
    loaded = load_lowrank_(llama(tied), plan, tmp_path / "low")
    expected = decompose_(llama(tied), plan)
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        ours, theirs = loaded(tokens).logits, expected(tokens).logits
    assert len(plan.factorised) == 14
    assert not torch.allclose(ours, llama(tied)(tokens).logits)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=sum_tolerance(np.float32, 160, float(theirs.abs().max())))


def test_every_matrix_is_decided_on_with_a_reason(saved, tmp_path):
    report = decompose_checkpoint(saved, tmp_path, POLICY, include=("model.*",), skip=("*.k_proj",))
    assert report.refusals["lm_head"] == "no pattern includes it"
    assert report.refusals["model.embed_tokens"] == "it is an embedding: a table of rows, not a layer"
    assert report.refusals["model.layers.1.self_attn.k_proj"] == "'*.k_proj' skips it"
    plan = RankPlan.read(tmp_path / "plan.json")
    assert {layer.name: layer.reason for layer in plan.layers if layer.choice == KeepDense()} == report.refusals
    assert {weight.name: SVD(rank=weight.rank) for weight in report.weights} == {
        layer.name: layer.choice for layer in plan.factorised
    }
    assert report.lowrank_parameters < report.dense_parameters
    assert CheckpointReport.model_validate_json(report.to_json()) == report


def test_what_would_not_get_smaller_stays_dense(saved, tmp_path):
    report = decompose_checkpoint(saved, tmp_path, UniformRank(alpha=2, round_to=32))
    assert "is not below min(in, out) = 32" in report.refusals["model.layers.0.self_attn.k_proj"]


def test_factors_keep_the_dtype_and_their_error_is_as_reported(tmp_path):
    torch.manual_seed(0)
    (tmp_path / "in").mkdir()
    stored = {
        f"{dtype}.weight".replace("torch.", ""): torch.randn(48, 40, dtype=torch.float64).to(dtype)
        for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    }
    odd = {"counter": torch.tensor(3), "quantised.weight": torch.ones(9, 9, dtype=torch.int8), "empty": torch.ones(0)}
    save_file(stored | odd, tmp_path / "in" / "model.safetensors")
    report = decompose_checkpoint(tmp_path / "in", tmp_path / "out", POLICY)
    found = tensors(tmp_path / "out")
    for weight in report.weights:
        down, up = found[f"{weight.name}.down.weight"], found[f"{weight.name}.up.weight"]
        exact = stored[f"{weight.name}.weight"]
        assert down.dtype == up.dtype == exact.dtype
        error = (exact.double() - up.double() @ down.double()).norm() / exact.double().norm()
        assert weight.relative_error == pytest.approx(float(error), abs=sum_tolerance(np.float32, 48))
    assert len(report.weights) == 4
    assert all(torch.equal(found[name], tensor) for name, tensor in odd.items())
    assert report.refusals == {"quantised": "its weight is I8, not a float of 16 bits or more"}


def test_biases_follow_and_the_rest_is_copied(saved, tmp_path):
    decompose_checkpoint(saved, tmp_path, POLICY)
    before, after = tensors(saved), tensors(tmp_path)
    layer = "model.layers.0.self_attn.q_proj"
    assert torch.equal(after[f"{layer}.up.bias"], before[f"{layer}.bias"])
    assert torch.equal(after["model.norm.weight"], before["model.norm.weight"])
    assert f"{layer}.bias" not in after
    assert (tmp_path / "tokenizer.json").is_file()
    assert not (tmp_path / "pytorch_model.bin").exists()
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in after.values())
    assert load_file(tmp_path / index["weight_map"][f"{layer}.up.weight"]).keys() <= after.keys()


def test_a_tensor_larger_than_a_chunk_is_copied_whole(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_CHUNK_BYTES", 1000)
    decompose_checkpoint(saved, tmp_path, POLICY)
    name = "model.embed_tokens.weight"
    assert torch.equal(tensors(tmp_path)[name], tensors(saved)[name])


@pytest.mark.parametrize("died_at", [1, 9, 14])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(saved, tmp_path, monkeypatch, died_at):
    decompose_checkpoint(saved, tmp_path / "whole", POLICY)
    calls = []

    def killed(weight, rank):
        calls.append(rank)
        if len(calls) == died_at:
            raise KeyboardInterrupt
        return factorised(weight, rank)

    factorised = checkpoint.factorised
    monkeypatch.setattr(checkpoint, "factorised", killed)
    with pytest.raises(KeyboardInterrupt):
        decompose_checkpoint(saved, tmp_path / "again", POLICY)
    assert not (tmp_path / "again" / INDEX_NAME).exists()
    report = decompose_checkpoint(saved, tmp_path / "again", POLICY)
    assert len(calls) <= 14 + 2  # what was finished is not computed again, but for the shard it died in
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")
    done = decompose_checkpoint(saved, tmp_path / "again", POLICY)
    assert done.weights == report.weights
    assert done.resumed_shards == len(done.shards)


@pytest.mark.slow
def test_two_processes_write_what_one_does(saved, tmp_path):
    decompose_checkpoint(saved, tmp_path / "one", POLICY)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m"]
    verb = ["lrd_deploy.cli.main", "decompose", str(saved), "-o", str(tmp_path / "two"), "--round-to", "8", "--json"]
    done = subprocess.run(
        [*launcher, *verb], capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["processes"] == 2
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        # The threads of a matrix product, which may differ, round its sums in another order.
        torch.testing.assert_close(tensor, two[name], rtol=0, atol=sum_tolerance(np.float32, 160))


def test_the_work_is_shared_by_cost():
    shares = shared_out([5.0, 1.0, 1.0, 3.0, 2.0], 2)
    assert sorted(piece for share in shares for piece in share) == [0, 1, 2, 3, 4]
    assert [sum([5.0, 1.0, 1.0, 3.0, 2.0][piece] for piece in share) for share in shares] == [6.0, 6.0]


# What is refused ----------------------------------------------------------------------------------------------


def test_all_broken_shards_are_told_together(source, tmp_path):
    first, second = sorted(source.glob("*.safetensors"))[:2]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-20])
    with pytest.raises(Problems) as caught:
        decompose_checkpoint(source, tmp_path / "out", POLICY)
    for part in (f"no file '{first.name}'", "copy or download the missing shard", "a whole safetensors file"):
        assert part in str(caught.value)
    assert not (tmp_path / "out").exists()


def edited_index(source, **changes):
    index = json.loads((source / INDEX_NAME).read_text())
    index["weight_map"] |= changes
    (source / INDEX_NAME).write_text(json.dumps(index))


def test_an_index_that_names_a_tensor_that_is_not_there_is_refused(source, tmp_path):
    edited_index(source, ghost=sorted(source.glob("*.safetensors"))[0].name)
    with pytest.raises(InputError, match=r"'ghost' is not in 'model-00001.* index that belongs to these shards"):
        decompose_checkpoint(source, tmp_path / "out", POLICY)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": "../b"}}'])
def test_an_index_that_is_none_is_refused(source, tmp_path, text):
    (source / INDEX_NAME).write_text(text)
    with pytest.raises(InputError, match="JSON with a 'weight_map'"):
        decompose_checkpoint(source, tmp_path / "out", POLICY)


def test_weights_that_are_not_finite_are_refused_by_name(source, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    file = stored_tensors(source)[name].file
    held = load_file(file)
    held[name][3, 4] = torch.nan
    save_file(held, file)
    with pytest.raises(InputError, match=rf"factorising '{name}'.*1 values that are NaN.*--skip 'model.layers.1.mlp"):
        decompose_checkpoint(source, tmp_path / "out", POLICY)
    assert not (tmp_path / "out" / INDEX_NAME).exists()


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"neither model\.safetensors\.index\.json nor model\.safetensors"):
        decompose_checkpoint(tmp_path, tmp_path / "out", POLICY)


def test_targets_that_hold_something_else_are_refused(source, tmp_path):
    with pytest.raises(UsageError, match="the target is the source folder itself"):
        decompose_checkpoint(source, source / ".." / "source", POLICY)
    shutil.copytree(source, tmp_path / "other")
    with pytest.raises(UsageError, match="weights that this command did not write"):
        decompose_checkpoint(source, tmp_path / "other", POLICY)
    decompose_checkpoint(source, tmp_path / "out", POLICY)
    with pytest.raises(UsageError, match="the shards of another source, policy"):
        decompose_checkpoint(source, tmp_path / "out", UniformRank(alpha=3, round_to=8))


def test_a_target_that_cannot_be_written_is_refused(source, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="choose another path"):
        decompose_checkpoint(source, tmp_path / "file" / "out", POLICY)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"include": ("nothing",)}, "those that match 'nothing'.*no pattern includes it"),
        ({"skip": ("*",)}, r"'\*' skips it; at least one matrix"),
    ],
)
def test_nothing_to_factorise_is_refused_with_the_reasons(source, tmp_path, change, match):
    with pytest.raises(InputError, match=match):
        decompose_checkpoint(source, tmp_path / "out", POLICY, **change)


def test_a_name_that_is_taken_is_refused(tmp_path):
    save_file({"a.weight": torch.ones(32, 32), "a.up.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"'a.up.weight' is in the checkpoint already.*--skip 'a'"):
        decompose_checkpoint(tmp_path, tmp_path / "out", POLICY)


def test_weights_load_from_an_index_and_misfits_are_told(saved):
    loaded = load_weights_(llama(), saved / INDEX_NAME)
    assert torch.equal(loaded.lm_head.weight, llama().lm_head.weight)
    with pytest.raises(InputError, match="'weight' is missing"):
        load_weights_(torch.nn.Linear(2, 2), saved)


def test_the_verb_prints_shapes_and_totals(saved, tmp_path, capsys):
    from lrd_deploy.cli.main import exit_code

    assert exit_code(["decompose", str(saved), "-o", str(tmp_path), "--round-to", "8", "--skip", "*.mlp.*"]) == 0
    printed = capsys.readouterr().out
    for part in ("64→32", "kept dense: 6, '*.mlp.*' skips it", "8 weights factorised", "peak memory"):
        assert part in printed
    assert exit_code(["decompose", str(saved), "-o", str(tmp_path), "--alpha", "1"]) == 2
    assert "an alpha above 1" in capsys.readouterr().err


def test_matrices_that_are_stored_the_other_way_round_stay_dense(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=48, n_layer=1, n_head=4, vocab_size=96, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "dense")
    with pytest.raises(InputError, match=r"c_attn': it is stored \(in, out\), as its bias shows") as refused:
        decompose_checkpoint(tmp_path / "dense", tmp_path / "low", POLICY)
    assert "attn.c_proj': it is square, and other matrices here are stored (in, out)" in str(refused.value)
