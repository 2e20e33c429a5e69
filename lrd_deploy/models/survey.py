"""Finding the layers of a model that can be factorised, and the reason for each that cannot."""

from __future__ import annotations

from collections import Counter

from torch import nn

from lrd_deploy.models.example import Example
from lrd_deploy.models.fit import run_once
from lrd_deploy.models.layer import Layer, nothing_to_factorise, skip_refusal
from lrd_deploy.models.plain_layer import is_transposed_linear, plain_layer
from lrd_deploy.records import LayerSignature

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_OTHER_CONVOLUTIONS = (nn.Conv1d, nn.Conv3d, *_TRANSPOSED)


def survey(model: nn.Module, example: Example, *, skip: tuple[str, ...] = ()) -> tuple[Layer, ...]:
    """Returns every linear and convolution layer in the order in which one forward pass reaches it.

    Args:
        model: any module that takes `example`; it is run once, in eval mode, without gradients.
        example: one batch of inputs: a tensor, tensors by position, or tensors by keyword. Layer signatures take their
            spatial sizes from it.
        skip: glob patterns of layer names that stay dense.

    Raises:
        InputError: no layer can be factorised.
    """
    inputs = _inputs_by_layer(model, example)
    shared = _shared_parameters(model)
    elsewhere = _used_past_forward(model)
    layers = []
    for name, module in _weighted(model):
        shapes = inputs.get(name, [])
        layers.append(
            Layer(
                name=name,
                signature=_signature(module, shapes[0]) if shapes else None,
                calls=len(shapes) or 1,
                weight=lambda module=module: plain_layer(module).weight.detach().cpu().double().numpy(),
                refusal=skip_refusal(name, skip) or elsewhere.get(name) or _refusal(module, shapes, shared),
            )
        )
    order = {name: position for position, name in enumerate(inputs)}
    layers.sort(key=lambda layer: order.get(layer.name, len(order)))
    if all(layer.refusal for layer in layers):
        accepted = "at least one nn.Linear or nn.Conv2d of one group"
        remedy = "choose another model, or shorten 'skip' in the recipe"
        raise nothing_to_factorise(type(model).__name__, layers, accepted=accepted, remedy=remedy)
    return tuple(layers)


_READ_DIRECTLY = {nn.MultiheadAttention: ("out_proj",), nn.TransformerEncoderLayer: ("linear1", "linear2")}


def _used_past_forward(model: nn.Module) -> dict[str, str]:
    """Names of the layers that cannot be replaced where they stand, and the refusal."""
    refusals = {"": "it is the whole model, so there is nothing to replace it in"}
    for name, module in model.named_modules():
        for kind, children in _READ_DIRECTLY.items():
            if isinstance(module, kind):
                reason = f"nn.{kind.__name__} reads this layer's weight directly"
                refusals |= {f"{name}.{child}".lstrip("."): reason for child in children}
    names = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    refusals |= {name: "the model has it under two names" for name, module in _weighted(model) if names[id(module)] > 1}
    return refusals


def _weighted(model: nn.Module) -> list[tuple[str, nn.Module]]:
    kinds = (nn.Linear, nn.Conv2d, *_OTHER_CONVOLUTIONS)
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, kinds) or is_transposed_linear(module)
    ]


def _inputs_by_layer(model: nn.Module, example: Example) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of every layer's input, a list per layer because a layer may run more than once."""
    shapes: dict[str, list[tuple[int, ...]]] = {}
    handles = []
    for name, module in _weighted(model):

        def record(_module: nn.Module, args: tuple, keywords: dict, name: str = name) -> None:
            x = args[0] if args else next(iter(keywords.values()))
            shapes.setdefault(name, []).append(tuple(x.shape))

        handles.append(module.register_forward_pre_hook(record, with_kwargs=True))
    try:
        run_once(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _shared_parameters(model: nn.Module) -> set[int]:
    """Ids of the parameters that more than one module owns."""
    owners = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    return {parameter for parameter, count in owners.items() if count > 1}


def _refusal(module: nn.Module, shapes: list[tuple[int, ...]], shared: set[int]) -> str | None:
    """The first reason why this layer must stay dense, or None."""
    if isinstance(module, _OTHER_CONVOLUTIONS):
        return f"{type(module).__name__} has no factorised form here"
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return f"grouped convolution ({module.groups} groups)"
    if nn.utils.parametrize.is_parametrized(module) or not isinstance(module.weight, nn.Parameter):
        return "its weight is parametrised"
    if type(module) not in (nn.Linear, nn.Conv2d) and not is_transposed_linear(module):
        return f"{type(module).__name__} may compute something else than its base class"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has forward hooks, which its factors would not have"
    if getattr(module, "padding", None) == "same" and any(
        d * (k - 1) % 2 for d, k in zip(module.dilation, module.kernel_size, strict=True)
    ):
        return "its padding 'same' is uneven"
    if not module.weight.is_floating_point():
        return f"its weight is {module.weight.dtype}, not a float"
    if id(module.weight) in shared:
        return "its weight is shared with another layer"
    if not shapes:
        return "the example input does not reach it"
    return None


def _signature(module: nn.Module, shape: tuple[int, ...]) -> LayerSignature | None:
    module = plain_layer(module)
    if isinstance(module, nn.Linear):
        return LayerSignature(
            kind="linear", in_channels=module.in_features, out_channels=module.out_features, spatial=shape[1:-1]
        )
    if not isinstance(module, nn.Conv2d):
        return None
    return LayerSignature(
        kind="conv2d",
        in_channels=module.in_channels,
        out_channels=module.out_channels,
        kernel=module.kernel_size,
        stride=module.stride,
        padding=_padding(module),
        dilation=module.dilation,
        groups=module.groups,
        spatial=shape[2:],
    )


def _padding(module: nn.Conv2d) -> tuple[int, int]:
    """Padding in pixels at the start of each axis; 'same' is spelled out."""
    if module.padding == "valid":
        return (0, 0)
    if module.padding == "same":
        height, width = (d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
        return (height, width)
    return module.padding
