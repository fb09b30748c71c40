"""What the CPU backend promises beyond right bytes: no compile at recovery time, threads, other CPUs."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from code_cases import erasures, rebuild, run, stripe

from ghostserve.codes import cpu_kernels, make_code
from ghostserve.codes.cpu import CpuBackend
from ghostserve.errors import UnsupportedCodeError

KERNELS = ("run_affine", "run_horner", "sum_words")


def compiled() -> list[int]:
    return [len(getattr(cpu_kernels, name).signatures) for name in KERNELS]


def test_after_warm_up_no_code_no_pattern_and_no_array_compiles(backend):
    backend.warm_up(rows=16, slot_bytes=4096)
    backend.warm_up(rows=4, slot_bytes=4096)
    before = compiled()
    for spec, n, slot_bytes in [("xor", 4, 777), ("rdp", 4, 4096), ("rdp", 6, 4096), ("rs:3", 4, 100)]:
        code = make_code(spec, n)
        shards = stripe(code, 2, slot_bytes)
        for shard in shards:
            shard.flags.writeable = False
        for lost in erasures(code):
            rebuild(backend, code, shards, lost)
        backend.checksums(shards[0])
        backend.checksums(shards[0][::-1, 1:])
    assert compiled() == before


def test_one_backend_serves_many_threads(backend):
    code = make_code("rs:2", 5)
    shards = stripe(code, 3, 400)
    patterns = list(erasures(code)) * 5

    def check(lost):
        return all(np.array_equal(d, shards[s]) for s, d in rebuild(backend, code, shards, lost).items())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(check, patterns))


def test_programs_of_plans_that_are_gone_are_not_mixed_up(backend):
    code = make_code("rs:2", 3)
    shards = stripe(code, 1, 8)
    for _ in range(200):  # plans die at once, so that their ids are given out again
        for lost in [(0, 1), (1, 2), (0, 2)]:
            rebuilt = rebuild(backend, code, shards, lost)
            assert all(np.array_equal(data, shards[shard]) for shard, data in rebuilt.items())


def test_both_methods_give_the_same_bytes(backend):
    code = make_code("rs:3", 7)
    data = stripe(code, 2, 1111)[:7]
    assert all(
        map(
            np.array_equal,
            run(backend, code.encode_plan, data),
            run(CpuBackend("horner"), code.encode_plan, data),
        )
    )


def test_unknown_method():
    with pytest.raises(UnsupportedCodeError, match="no method 'magic'; there are auto, affine and horner"):
        CpuBackend("magic")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux") or os.uname().machine != "x86_64", reason="x86-64 only")
@pytest.mark.parametrize("cpu", ["x86-64", "haswell"])
def test_cpus_without_gfni(cpu, tmp_path):
    script = """
import numpy as np
from ghostserve.codes import checksum_reference, make_code, run_reference
from ghostserve.codes.cpu import CpuBackend
backend, plan = CpuBackend(), make_code("rs:2", 5).encode_plan
assert backend.method == "horner"
data = list(np.random.default_rng(0).integers(0, 256, (5, 2, 700), dtype=np.uint8))
outputs = [np.zeros((2, 700), np.uint8) for _ in range(2)]
backend.run(plan, data, outputs)
assert all(map(np.array_equal, outputs, run_reference(plan, data)))
assert np.array_equal(backend.checksums(data[0]), checksum_reference(data[0]))
"""
    settings = {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, **settings})
