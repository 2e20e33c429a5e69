"""Where a session runs, and how it is called there."""

from __future__ import annotations

import re

from lrd_deploy.errors import UsageError
from lrd_deploy.records.record import Record

_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?", flags=re.ASCII)


class Execution(Record):
    """What decides how long the same model takes on the same machine; the default is a plain call on the CPU.

    Attributes:
        device: "cpu", or a GPU by its number, such as "cuda:0".
        io_binding: inputs and outputs stay where the model runs; without it a call on a GPU copies both.
        cuda_graph: the GPU's work is recorded once and replayed in one go; needs fixed shapes and addresses.
        tf32: float32 products on the GPU's tensor cores with 10 bits of mantissa.
    """

    device: str = "cpu"
    io_binding: bool = False
    cuda_graph: bool = False
    tf32: bool = False

    @classmethod
    def on(
        cls, device: str, *, io_binding: bool | None = None, cuda_graph: bool = False, tf32: bool | None = None
    ) -> Execution:
        """Returns an execution; what is None is what serving does: IO binding and TF32 on a GPU, neither on the CPU.

        Raises:
            UsageError: there is no such device, or the others do not go with it.
        """
        if not _DEVICE.fullmatch(device):
            raise _refused(f"the device '{device}'", "cpu, cuda or cuda:N", "choose one with --device")
        on_gpu = device != "cpu"
        io_binding = on_gpu if io_binding is None else io_binding
        if cuda_graph and not on_gpu:
            raise _refused("a CUDA graph on the CPU", "CUDA graphs on cuda alone", "add --device cuda")
        if tf32 and not on_gpu:
            raise _refused("TF32 on the CPU", "TF32 on cuda alone", "add --device cuda")
        if cuda_graph and not io_binding:
            accepted = "a graph whose inputs and outputs keep their addresses"
            raise _refused("a CUDA graph without IO binding", accepted, "leave out --no-io-binding")
        name = f"cuda:{int(device.partition(':')[2] or 0)}" if on_gpu else device
        return cls(device=name, io_binding=io_binding, cuda_graph=cuda_graph, tf32=on_gpu if tf32 is None else tf32)

    @property
    def gpu(self) -> int | None:
        """The GPU's number; None on the CPU."""
        return None if self.device == "cpu" else int(self.device.partition(":")[2])

    def __str__(self) -> str:
        """Says it in words, for a person."""
        if self.gpu is None:
            return "cpu, IO binding" if self.io_binding else "cpu"
        words = ["IO binding" if self.io_binding else "copies to and from the GPU in every call"]
        words += ["CUDA graph"] * self.cuda_graph
        return ", ".join((self.device, *words, "TF32" if self.tf32 else "no TF32"))


def _refused(found: str, accepted: str, remedy: str) -> UsageError:
    return UsageError("choosing where to run", found=found, accepted=accepted, remedy=remedy)
