"""The plug-in's benchmarks: vLLM with it against vLLM without it, as a client of each sees them."""
