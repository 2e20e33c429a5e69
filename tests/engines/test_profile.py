import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from lrd_deploy.engines import BuildSettings
from lrd_deploy.engines.profile import input_profiles, parse_batches, parse_dimension, shapes_at
from lrd_deploy.errors import InputError, Problems, UsageError
from lrd_deploy.records import DimensionRange


def model(signature):
    body = "{ y = Constant <value = float[1] {0}> () }"
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> g ({signature}) => (float[1] y) {body}')


TEXT = model("int64[batch,sequence] tokens, int64[batch,sequence] mask, float[3] bias")


def shapes(profile):
    return profile.min, profile.opt, profile.max


@given(st.lists(st.integers(1, 1000), min_size=6, max_size=6))
def test_every_input_gets_the_batch_and_the_sizes_of_its_names(sizes):
    batch, sequence = sorted(sizes[:3]), sorted(sizes[3:])
    settings = BuildSettings(
        min_batch=batch[0], opt_batch=batch[1], max_batch=batch[2],
        dimensions={"sequence": DimensionRange.model_validate(sequence)},
    )  # fmt: skip
    tokens, mask, bias = input_profiles(TEXT, settings)
    assert shapes(tokens) == shapes(mask) == tuple(zip(batch, sequence, strict=True))
    assert shapes(bias) == ((3,), (3,), (3,))


def test_a_dimension_of_one_input_comes_before_its_name_and_that_before_the_batch():
    both = {"sequence": 128, "mask[1]": (1, 2, 3), "batch": 5}
    settings = BuildSettings(dimensions={name: DimensionRange.model_validate(each) for name, each in both.items()})
    tokens, mask, _ = input_profiles(TEXT, settings)
    assert shapes(tokens) == ((5, 128),) * 3
    assert shapes(mask) == ((5, 1), (5, 2), (5, 3))


def test_an_unnamed_dimension_is_told_by_its_place():
    graph = model("float[batch,3,?,?] image")
    settings = BuildSettings(dimensions={f"image[{axis}]": DimensionRange(min=32, opt=64, max=96) for axis in (2, 3)})
    assert input_profiles(graph, settings)[0].opt == (8, 3, 64, 64)


def test_every_dimension_that_was_not_given_is_told_together_with_how_to_give_it():
    with pytest.raises(Problems) as caught:
        input_profiles(TEXT, BuildSettings())
    assert [problem.found for problem in caught.value.problems] == [
        f"the dimension 'sequence' of the input '{name}' (axis 1) may have any size" for name in ("tokens", "mask")
    ]
    assert "--dim 'sequence=SIZE', of an engine also MIN:OPT:MAX" in str(caught.value)
    assert "--dim 'mask[1]=SIZE'" in str(caught.value)


def test_a_deployment_has_one_shape_per_input():
    sizes = {"sequence": DimensionRange(min=128, opt=128, max=128), "mask[1]": DimensionRange(min=2, opt=2, max=2)}
    assert shapes_at(TEXT, 4, sizes) == {"tokens": (4, 128), "mask": (4, 2), "bias": (3,)}
    with pytest.raises(UsageError, match="a range of sizes for 'sequence'; one size, such as sequence=2"):
        shapes_at(TEXT, 4, {"sequence": DimensionRange(min=1, opt=2, max=3)})


@pytest.mark.parametrize("name", ["batch", "tokens[0]", "other[1]"])
def test_a_deployment_takes_no_size_for_the_batch_beside_it(name):
    graph = model("int64[batch,sequence] tokens, float[4,batch] other")
    sizes = {each: DimensionRange(min=4, opt=4, max=4) for each in ("sequence", name)}
    with pytest.raises(UsageError, match=r"which is the batch; sizes of other dynamic dimensions; say --batch"):
        shapes_at(graph, 8, sizes)


def test_sizes_for_what_is_no_dynamic_dimension_are_refused():
    for name in ("width", "bias[0]", "tokens[7]"):
        settings = BuildSettings(
            dimensions={"sequence": DimensionRange(min=1, opt=1, max=1), name: DimensionRange(min=1, opt=1, max=1)}
        )
        with pytest.raises(UsageError, match=r"no dynamic dimension of an input; one of: batch, sequence"):
            input_profiles(TEXT, settings)


def test_an_input_without_a_number_of_dimensions_is_refused():
    graph = model("float[batch,3] image")
    graph.graph.input[0].type.CopyFrom(onnx.TypeProto(tensor_type=onnx.TypeProto.Tensor(elem_type=TensorProto.FLOAT)))
    with pytest.raises(InputError, match="the input 'image' has no shape, not even a number of dimensions"):
        input_profiles(graph, BuildSettings())


def test_batches_that_do_not_rise_are_refused():
    with pytest.raises(UsageError, match="min 9, opt 8, max 64; sizes of 1 and more, min ≤ opt ≤ max"):
        input_profiles(model("float[batch,3] image"), BuildSettings(min_batch=9))


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="="), min_size=1),
    st.lists(st.integers(1, 10**6), min_size=3, max_size=3),
)
def test_a_dimension_is_read_as_it_is_written(name, sizes):
    low, opt, high = sorted(sizes)
    assert parse_dimension(f"{name}={low}:{opt}:{high}") == (name, DimensionRange(min=low, opt=opt, max=high))
    assert parse_dimension(f"{name}={low}") == (name, DimensionRange(min=low, opt=low, max=low))


@pytest.mark.parametrize("text", ["sequence", "=3", "s=", "s=a", "s=1:2", "s=1:2:3:4", "s=-1", "s=1:2:1", "s=0", "s=²"])
def test_what_is_no_dimension_is_refused(text):
    with pytest.raises(UsageError, match="choosing the shapes of the inputs"):
        parse_dimension(text)


@pytest.mark.parametrize("text", ["sequence", "s=a", "s=1:2:3", "s=0"])
def test_where_one_size_is_wanted_no_range_is_offered(text):
    with pytest.raises(UsageError, match="size of 1 and more") as caught:
        parse_dimension(text, ranges=False)
    assert "min" not in str(caught.value).lower()
    assert parse_dimension("s=3", ranges=False) == ("s", DimensionRange(min=3, opt=3, max=3))


def test_batches_are_read_as_they_are_written():
    assert parse_batches("1, 8,32") == (1, 8, 32)
    for text in ("", "1,,2", "0", "-1", "1,1", "8;9", "1.5"):
        with pytest.raises(UsageError, match="different batches of 1 and more with commas between"):
            parse_batches(text)
