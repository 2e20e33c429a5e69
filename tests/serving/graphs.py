"""Small ONNX graphs, written as text."""

import onnx

MATMUL = (
    "g (float[batch,4] x) => (float[batch,3] y) <float[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}> { y = MatMul (x, w) }"
)
OTHER_WEIGHTS = MATMUL.replace("{1,2,", "{1,3,")


def graph(text=MATMUL):
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')


def save(path, text=MATMUL):
    onnx.save(graph(text), path)
    return path


def save_with_weights_beside(path, location="weights.bin", text=MATMUL):
    """Saves a graph whose weights are in files of their own, however small."""
    model = graph(text)
    for tensor in model.graph.initializer:  # only raw data is moved out
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    (path.parent / location).parent.mkdir(parents=True, exist_ok=True)
    options = {"save_as_external_data": True, "location": location, "size_threshold": 0}
    onnx.save(model, path, **options)
    return path
