"""The GPU data path: kernels, device memory, streams. Imported by module, and only where a GPU is used."""
