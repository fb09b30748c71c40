"""The benchmark checks bits and measures; its figures are not judged here."""

from ghostserve.bench.codes import bench_codes


def test_bench_runs():
    figures = bench_codes(seconds=0.001)
    assert {figure.slot_bytes for figure in figures} == {15_360, 7_680}
    assert all(figure.ours_gbps > 0 and figure.isal_gbps > 0 and figure.ratio > 0 for figure in figures)
