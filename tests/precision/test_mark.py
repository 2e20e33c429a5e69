import pytest

from lrd_deploy.errors import InputError
from lrd_deploy.precision.half import to_half
from lrd_deploy.precision.mark import KEY, check_unconverted, mark_of, precision_differences, set_mark_
from lrd_deploy.precision.quantize import to_int8
from lrd_deploy.precision.share import converted_share
from lrd_deploy.records import ConvertedShare, PrecisionPolicy
from tests.precision.graphs import network

FP16, BF16 = PrecisionPolicy(precision="fp16"), PrecisionPolicy(precision="bf16")
INT8 = PrecisionPolicy(precision="int8", method="minmax", activation_type="int8", keep=("y",))
WHOLE = ConvertedShare(nodes=4, converted=4, macs=1.0, weights=1.0)


def marked(policy, share=WHOLE):
    model = network()
    set_mark_(model, policy, share)
    return model


def told(one, other):
    return precision_differences((one, other), ("base", "candidate"))


@pytest.mark.parametrize("policy", [FP16, INT8])
def test_a_mark_survives_the_file(policy):
    model = marked(policy)
    set_mark_(model, policy, WHOLE)
    assert (mark_of(model).policy, mark_of(model).share) == (policy, WHOLE)
    assert len(model.metadata_props) == 1


@pytest.mark.parametrize("text", ["", "{}", "rubbish", '{"policy": 1}'])
def test_a_mark_that_cannot_be_read_is_none(text):
    model = network()
    model.metadata_props.add(key=KEY, value=text)
    assert mark_of(model) is None


def test_models_converted_alike_are_compared_without_a_word():
    assert told(network(), network()) == ()
    assert told(marked(FP16), marked(FP16)) == ()
    assert told(marked(FP16), marked(FP16, WHOLE.model_copy(update={"macs": 0.995}))) == ()


def test_another_policy_is_told_and_swapping_the_arms_swaps_the_sentence():
    assert told(marked(FP16), marked(INT8)) == (
        "the base is converted to FP16, the candidate converted to INT8, int8 activations, ranges by minmax, "
        "without y: the ratio shows that difference too",
    )
    assert told(network(), marked(BF16)) == (
        "the base is in fp32, the candidate converted to BF16: the ratio shows that difference too",
    )
    assert told(marked(BF16), network())[0].startswith("the base is converted to BF16, the candidate in fp32")


def test_another_share_by_the_same_policy_is_told():
    assert told(marked(FP16), marked(FP16, WHOLE.model_copy(update={"macs": 0.6}))) == (
        "100% of the base's multiply–accumulates are converted to FP16, 60% of the candidate's: "
        "the ratio shows that difference too",
    )


def test_weights_in_half_without_a_mark_are_told():
    assert told(network(), to_half(network(), "fp16", {}).model) == (
        "the base is in fp32, the candidate in fp16: the ratio shows that difference too",
    )


def test_what_was_converted_before_is_recognised_or_refused():
    assert check_unconverted(network(), FP16) is None
    assert check_unconverted(marked(FP16), FP16).share == WHOLE
    with pytest.raises(InputError, match="a model in FP16; the float32 model"):
        check_unconverted(marked(FP16), INT8)
    quantised = to_int8(network(), {"x": 1.0}, "int8", {}).model
    with pytest.raises(InputError, match="a graph that is quantised already"):
        check_unconverted(quantised, FP16)


def test_shares_are_of_multiply_accumulates_and_of_weights():
    model = network()  # 6×6 pixels: 216·36, 32·36 and 32·36 products, then 40
    share = converted_share(model, (0, 1, 8), 9)
    assert (share.nodes, share.converted) == (9, 3)
    assert share.macs == pytest.approx((216 * 36 + 40) / (280 * 36 + 40))
    assert share.weights == pytest.approx(256 / 320)
    assert converted_share(model, range(9), 9).macs == 1.0
    assert converted_share(model, (), 9).macs == 0.0
