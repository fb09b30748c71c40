"""`ghostserve simulate-faults`: its options."""

__all__ = ["simulate_faults"]


def simulate_faults(*, seed: int | None = None, seeds: int = 1, jobs: int | None = None) -> int:
    """Run the engine under random faults on a virtual clock, and check every token that clients saw.

    Parameters
    ----------
    seed
        Replay this one and print what happened; with --seeds the first of them (0 by default).
    seeds
        How many seeds to run.
    jobs
        Processes that share them; by default one a core.
    """
    from ghostserve.cli.simulate_faults import run_simulation

    return run_simulation(seed, seeds, jobs)
