"""What a nursery has done before a worker is forked from it: imports that would come later, and compiled code loaded.

Nothing here may start a thread or touch a GPU.
"""

import importlib

from ghostserve.codes import make_backend
from ghostserve.parity import paging

__all__ = ["prepare_cpu", "prepare_cuda"]


def prepare_cpu() -> None:
    """What a worker on the CPU needs until it is ready."""
    make_backend("cpu").warm_up()
    paging.warm_up()
    # Any family's model draws in nearly all that this one does.
    importlib.import_module("transformers.models.llama.modeling_llama")


def prepare_cuda() -> None:
    """The same for one on a GPU."""
    prepare_cpu()
    importlib.import_module("ghostserve.engine.cuda")
