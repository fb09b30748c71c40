"""GhostServe: erasure-coded parity of the KV cache keeps LLM streams alive when a worker dies."""

__all__ = ["__version__"]

__version__ = "0.1.0"
