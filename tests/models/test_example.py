"""Inputs and outputs by name, whatever form they come in."""

from collections import UserDict, namedtuple

import pytest
import torch
from torch import nn

from lrd_deploy.errors import InputError
from lrd_deploy.models.example import call, first_samples, in_form_of, mapped, named_inputs, named_outputs

ONE, TWO = torch.zeros(2, 3), torch.ones(2, 3)
FORMS = [ONE, (ONE, TWO), {"a": ONE, "b": TWO}]
Pair = namedtuple("Pair", ["left", "right"])


class Adds(nn.Module):
    def forward(self, first, second=None):
        return first if second is None else first + second


class Any(nn.Module):
    def forward(self, *parts):
        return sum(parts)


@pytest.mark.parametrize(
    ("example", "names"),
    [
        (ONE, ["images"]),
        ((ONE,), ["first"]),
        ([ONE, TWO], ["first", "second"]),
        ({"second": TWO, "first": ONE}, ["second", "first"]),
        (UserDict(first=ONE), ["first"]),
    ],
)
def test_inputs_are_named_as_forward_names_them(example, names):
    found = named_inputs(Adds(), example)
    assert list(found) == names
    torch.testing.assert_close(call(Adds(), example), sum(found.values()))


def test_a_forward_of_any_number_gets_numbered_names():
    assert list(named_inputs(Any(), (ONE, TWO))) == ["parts_0", "parts_1"]


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        ((ONE, TWO, ONE), "3 tensors; at most 2, as its forward takes"),
        ({"first": [1, 2]}, "'first' of type list"),
        ({}, "no tensor"),
        ((), "no tensor"),
    ],
)
def test_what_is_no_input_is_refused(example, reason):
    with pytest.raises(InputError, match=reason):
        named_inputs(Adds(), example)


class Object:
    logits = ONE


@pytest.mark.parametrize(
    ("output", "example", "names"),
    [
        (ONE, ONE, ["logits"]),
        (Object(), ONE, ["logits"]),
        (ONE, (ONE,), ["output"]),
        ((ONE, TWO), ONE, ["output_0", "output_1"]),
        ([ONE, None, [TWO]], (ONE,), ["output_0", "output_2_0"]),
        ({"a": ONE, "b": (TWO, ONE), "c": None}, {"x": ONE}, ["a", "b_0", "b_1"]),
        (Pair(ONE, TWO), (ONE,), ["left", "right"]),
    ],
)
def test_outputs_are_named_by_where_they_are(output, example, names):
    assert list(named_outputs(output, example)) == names


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ({"a": ONE, "cache": object()}, "'cache' of type object"),
        (None, "no tensor"),
        (Object(), "'output' of type Object"),
    ],
)
def test_what_is_no_output_is_refused(output, reason):
    with pytest.raises(InputError, match=f"reading a model's outputs.*{reason}.*use_cache"):
        named_outputs(output, (ONE,))


@pytest.mark.parametrize("example", FORMS, ids=["one", "by position", "by name"])
def test_a_changed_example_keeps_its_form(example):
    halves = first_samples(example, 1)
    assert type(halves) is (list if isinstance(example, tuple) else type(example))
    for same in (mapped(example, lambda tensor: tensor), in_form_of(example, tensors_of(example))):
        torch.testing.assert_close(tensors_of(same), tensors_of(example))
    assert {tensor.shape for tensor in tensors_of(halves)} == {(1, 3)}


def tensors_of(example):
    if isinstance(example, torch.Tensor):
        return [example]
    return list(example.values() if isinstance(example, dict) else example)
