import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given, settings
from rich.console import Console

from lrd_deploy.report.profile_figure import profile_picture
from lrd_deploy.report.profile_terminal import profile_table
from tests.bench.profiles import LAYERS, layer, profile_of
from tests.report.ci.hostile import names


def shown(profile, candidate="low.onnx", record=None):
    console = Console(width=1000, highlight=False)
    files = Path("dense.onnx"), Path(candidate) if candidate else None, Path(record) if record else None
    with console.capture() as capture:
        console.print(profile_table(profile, *files))
    return capture.get()


def row(text, name):
    return next(" ".join(line.split()) for line in text.splitlines() if line.startswith(f"{name} "))


def test_the_table_has_both_times_and_what_the_factors_do():
    text = shown(profile_of(*LAYERS))
    assert row(text, "stem") == "stem 0.500 0.500 1 1.00× (0.98 to 1.02)"
    assert row(text, "good") == "good 1.000 0.400 1 → 2 + 1 reorder 2.50× (2.45 to 2.55) pays"
    assert row(text, "bad") == "bad 0.500 0.900 1 → 2 0.56× (0.54 to 0.57) LOSES"
    assert row(text, "even").endswith("cannot tell")
    assert row(text, "layout reorders") == "layout reorders 0.0100 0.0100 2 +0.0000"


def test_the_sentences_say_what_share_is_explained_and_what_merging_would_save():
    text = shown(profile_of(*LAYERS))
    assert "base: all kernels take 3.92 ms, 98% (96% to 100%) of the 4 ms of a call without the profiler" in text
    assert "of 3 layers with factors 1 pay, 1 lose, of 1 the interval holds 1" in text
    assert "merging what loses would save about 0.4 of 3 ms: bad" in text
    assert "run alone in the candidate, fused in the base: relu 0.03 ms; 0.03 ms together" in text


def test_the_next_command_is_complete_and_quoted_once_the_record_is_kept():
    assert "-o PROFILE.json" in shown(profile_of(*LAYERS))
    text = shown(profile_of(*LAYERS), "my low.onnx", "p.json")
    assert "lrd-deploy rewrite 'my low.onnx' -o 'my low-merged.onnx' --mode merge --layers-from p.json" in text
    assert "lrd-deploy" not in shown(profile_of(*LAYERS[:2]), record="p.json")


def test_one_model_has_a_table_without_the_other():
    alone = [one.model_copy(update={"candidate": None, "speedup": None, "verdict": None}) for one in LAYERS]
    text = shown(profile_of(*alone, candidate=None, speedup=None, lost_fusions=()), candidate=None)
    assert row(text, "stem") == "stem 0.500 1"
    assert "candidate" not in text


def test_many_names_are_cut_short():
    many = [layer(f"l{number}", 0.5, 0.9, "loses") for number in range(9)]
    assert "l0, l1, l2, l3, l4, l5 and 3 more" in shown(profile_of(*many))


@settings(max_examples=20, deadline=None)
@given(names)
def test_names_are_text_in_the_table_and_the_picture(name):
    hostile = [one.model_construct(**(dict(one) | {"name": name})) for one in LAYERS]
    profile = profile_of(*LAYERS).model_copy(update={"layers": tuple(hostile)})
    svg = profile_picture(profile)
    ET.fromstring(svg)
    assert "<script" not in svg
    shown(profile)


def test_markup_in_a_name_is_printed_as_it_is():
    assert row(shown(profile_of(layer("[bold]x[/bold]", 1.0, 0.5))), "[bold]x[/bold]")


@pytest.mark.parametrize("profile", [profile_of(), profile_of(*LAYERS, candidate=None), profile_of(*LAYERS)])
def test_the_picture_is_the_same_for_the_same_profile(profile):
    assert profile_picture(profile) == profile_picture(profile)


def test_only_the_longest_of_very_many_layers_are_drawn():
    many = [layer(f"l{number}", 0.1 + number, 0.1) for number in range(200)]
    assert len(profile_picture(profile_of(*many))) < 1.05 * len(profile_picture(profile_of(*many[-160:])))
