"""A seeded simulation of the whole engine in one thread, on a virtual clock, under random faults."""
