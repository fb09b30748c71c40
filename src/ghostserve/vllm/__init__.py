"""GhostServe as a plug-in of stock vLLM: executor, worker, scheduler and middleware, given by class name."""
