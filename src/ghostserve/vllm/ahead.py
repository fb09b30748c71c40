"""Nearly all that a process of vLLM with this plug-in imports, in one go: whoever starts one imports this first."""

from ghostserve.imports import fast_imports

with fast_imports():
    import ghostserve.vllm.process  # noqa: F401
