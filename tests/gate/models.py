"""Small ONNX models whose answers are known."""

import numpy as np
import onnx
from onnx import TensorProto, helper

from lrd_deploy.bench.launch import LaunchSamples


def scaled(path, factor=1.0, *, width=4, batch="batch", external=False, opset=20):
    """Writes y = factor · x, over rows of `width` values."""
    weight = (factor * np.eye(width)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="scale")],
        "scaled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, width])],
        [helper.make_tensor("w", TensorProto.FLOAT, weight.shape, weight.tobytes(), raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    extra = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0} if external else {}
    onnx.save(model, path, **extra)
    return path


def samples_file(path, samples=6, width=4, labels=True):
    """Writes samples whose largest value sits at the label."""
    random = np.random.default_rng(0)
    x = random.standard_normal((samples, width)).astype(np.float32)
    arrays = {"x": x} | ({"labels": x.argmax(-1)} if labels else {})
    np.savez(path, **arrays)
    return path


def scripted_launches(ratio=1.0, *, control=1.0, wiggle=0.002, stop_after=None):
    """Returns a source of launches in which the candidate takes `ratio` times the baseline's 2 ms."""

    def source(_base, _candidate, _inputs, _threads, _length, _observer):
        number = 0
        while True:
            if stop_after is not None and number == stop_after:
                raise KeyboardInterrupt
            yield samples_of(number, ratio * (1 + wiggle * (-1) ** number), control)
            number += 1

    return source


def samples_of(number, ratio, control=1.0, *, waited=False, converged=True):
    """One launch: blocks of equal samples."""

    def blocks(milliseconds):
        return ((round(milliseconds * 1e6),) * 3,) * 8

    order = ("base", "candidate", "control")
    return LaunchSamples(
        load_order=order if number % 2 == 0 else order[::-1],
        calls_per_block=3,
        warmup_converged=converged,
        blocks={"base": blocks(2.0), "candidate": blocks(2.0 * ratio), "control": blocks(2.0 * control)},
        solo={},
        cold_start_ns=dict.fromkeys(order, 1),
        waited=waited,
    )
