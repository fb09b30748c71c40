"""Benchmarks of the GPU data path: kernels, checkpoints, rebuilds and what all of it costs a model that runs.

Each compares bytes with the CPU's before it measures, and measures its ceiling in the same run.
"""
