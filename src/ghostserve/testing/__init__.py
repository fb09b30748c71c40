"""Suites that a code, a parity store or a protection strategy must pass, for whoever writes another one.

Subclass `codes.CodeConformance`, `stores.StoreConformance` or `strategies.StrategyConformance` in a test module, and
say how the thing is made; pytest finds the tests in the subclass. `stateful.StoreModel` runs a store against a naive
model. All need the extra `ghostserve[testing]`; nothing of GhostServe itself imports this package. See docs/testing.md.
"""
