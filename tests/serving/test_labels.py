import pytest

from lrd_deploy.errors import InputError
from lrd_deploy.serving.labels import demanded_labels, labels_for, named_classes, read_labels
from lrd_deploy.serving.tensors import served_graph
from tests.serving.graphs import MATMUL, graph

GRAPH = served_graph(graph(MATMUL))


def test_labels_belong_to_the_output_with_as_many_classes():
    assert labels_for(GRAPH, ("a", "b", "c")).output == "y"
    assert labels_for(GRAPH, ("a", "b")) is None
    assert labels_for(GRAPH, ()) is None


def test_labels_of_two_alike_outputs_are_nobodys():
    two = served_graph(graph("g (float[n,3] x) => (float[n,3] y, float[n,3] z) { y = Relu (x) z = Abs (x) }"))
    assert labels_for(two, ("a", "b", "c")) is None


@pytest.mark.parametrize(
    ("id2label", "names"),
    [
        ({0: "cat", 1: "dog"}, ("cat", "dog")),
        ({0: "LABEL_0", 1: "LABEL_1"}, ()),  # nobody named them
        ({0: "cat", 2: "dog"}, ()),
        ({0: "cat\nand", 1: "dog"}, ()),
        (None, ()),
    ],
)
def test_classes_that_nobody_named_have_no_names(id2label, names):
    assert named_classes(id2label) == names


def test_a_file_of_labels_is_read_as_triton_reads_it(tmp_path):
    path = tmp_path / "l.txt"
    path.write_bytes("crane\r\ngrue, dite cendrée\r\ncrane\r\n".encode())
    assert read_labels(path) == ("crane", "grue, dite cendrée", "crane")
    assert demanded_labels(GRAPH, path).text == "crane\ngrue, dite cendrée\ncrane\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "line 1 without printable text"),
        (b"a\n\nb\n", "line 2 without printable text"),
        (b"a\nb\x07\nc\n", "line 2 without printable text"),
        (b"a\nb\xff\n", "the byte 0xff; UTF-8 text"),
        (b"a\nb\n", r"2 labels; the last dimensions of the outputs are 'y' 3"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(tmp_path, content, reason):
    (tmp_path / "l.txt").write_bytes(content)
    with pytest.raises(InputError, match=reason):
        demanded_labels(GRAPH, tmp_path / "l.txt")
