"""The plan: its figures by hand, and a recommendation that flips where it should."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ghostserve.cli.main import main
from ghostserve.errors import ConfigError
from ghostserve.plan import FAILURES, HARDWARE, MODELS, Outlook, Plan, Wishes, make_plan, read_shape

MODEL = MODELS["llama-3-70b"]
H100 = HARDWARE["h100"]
OFTEN = FAILURES["meta-rsc"]


def plan(failures: str = "meta-rsc", **wishes: float) -> Plan:
    return make_plan(MODEL, H100, FAILURES[failures], Wishes(**wishes))  # type: ignore[arg-type]


def outlook(found: Plan, strategy: str, parity: int = 0) -> Outlook:
    return next(o for o in found.outlooks if (o.strategy, o.parity) == (strategy, parity))


def test_sizes_by_hand() -> None:
    assert MODEL.kv_bytes_per_token == 2 * 80 * 8 * 128 * 2 == 327_680
    assert MODEL.parameters == pytest.approx(70.6e9, rel=0.01)  # Meta's own count
    found = plan(context=1000, sequences=2)
    cache = 2000 * 327_680
    assert outlook(found, "none").host_bytes == 0
    assert outlook(found, "replicate-host").host_bytes == cache
    assert outlook(found, "replicate-ssd").disk_bytes == cache
    assert outlook(found, "parity", 2).host_bytes == cache * 2 // 8


def test_pauses_by_hand() -> None:
    hardware = replace(H100, link_gbps=50.0, ssd_gbps=2.0, detect_s=0.5, rejoin_s=1.5, mfu=0.5)
    found = make_plan(MODEL, hardware, OFTEN, Wishes(context=100_000, sequences=1))
    shard = 100_000 * 327_680 / 8
    recompute = 100_000 * 2 * MODEL.parameters / (8 * 989e12 * 0.5)
    assert outlook(found, "none").pause_s == pytest.approx(2 + recompute)
    assert outlook(found, "parity", 1).pause_s == pytest.approx(2 + shard / 50e9)
    assert outlook(found, "replicate-ssd").pause_s == pytest.approx(2 + shard / 2e9)
    a, b = recompute, shard / 50e9
    assert outlook(found, "hybrid", 1).pause_s == pytest.approx(2 + a * b / (a + b))


def test_failures_of_published_fleets() -> None:
    """One per 42 to 264 days on a host of 8: facts that others published."""
    days = {name: 365 / plan(name).failures_a_year for name in ("llama-3", "meta-rsc")}
    assert days["meta-rsc"] == pytest.approx(42, abs=1)
    assert days["llama-3"] == pytest.approx(264, abs=1)


def test_long_contexts_are_protected() -> None:
    found = plan()
    assert found.chosen.strategy in ("parity", "hybrid")
    assert found.chosen.pause_s <= 10 < outlook(found, "none").pause_s
    assert "without protection" in found.reasons[0]


@pytest.mark.parametrize(
    ("failures", "wishes", "why"),
    [
        ("none", {}, "nothing fails"),
        ("meta-rsc", {"context": 256}, "computing every context again"),
        ("meta-rsc", {"max_pause": 1e6}, "computing every context again"),
    ],
)
def test_no_protection_where_it_buys_nothing(failures: str, wishes: dict[str, float], why: str) -> None:
    found = plan(failures, **wishes)
    assert found.chosen.strategy == "none"
    assert why in found.reasons[0]


def test_no_host_memory() -> None:
    found = plan(host_bytes=1 << 20)
    assert found.chosen.host_bytes == 0
    assert any("of host memory, there are" in reason for reason in found.reasons)
    slow_disk = replace(H100, ssd_gbps=0.001)
    found = make_plan(MODEL, slow_disk, OFTEN, Wishes(host_bytes=1 << 20))
    assert found.chosen.strategy == "none"


def test_memory_for_one_parity_only() -> None:
    roomy = plan()
    k1 = outlook(roomy, "parity", 1).host_bytes
    assert roomy.chosen.parity == 2  # the second covers pairs, a third would cover nothing more
    assert plan(host_bytes=k1).chosen.parity == 1


def test_no_failures_lose_only_overhead() -> None:
    assert all(o.lost_gpu_hours == o.overhead * 8 * 8760 for o in plan("none", overhead=0.01).outlooks)
    assert outlook(plan("none", overhead=0.01), "none").lost_gpu_hours == 0
    assert outlook(plan("none", overhead=0.01), "parity", 1).lost_gpu_hours > 0


@given(
    st.integers(128, 1_000_000),
    st.integers(1, 64),
    st.floats(0, 1e-2),
    st.integers(0, 1 << 42),
    st.floats(0.1, 100),
    st.integers(2, 16),
)
def test_any_plan_is_sound(context: int, sequences: int, rate: float, host: int, pause: float, ranks: int) -> None:
    wishes = Wishes(context=context, sequences=sequences, host_bytes=host, max_pause=pause, tensor_parallel_size=ranks)
    one, more = (make_plan(MODEL, H100, replace(OFTEN, per_gpu_hour=r), wishes) for r in (rate, 2 * rate))
    assert one.chosen.host_bytes <= host
    assert one.chosen.pause_s <= one.outlooks[0].pause_s
    for a, b in zip(one.outlooks, more.outlooks, strict=True):
        assert b.lost_gpu_hours >= a.lost_gpu_hours
    for k in range(1, min(4, ranks - 1) + 1):
        assert outlook(one, "hybrid", k).pause_s <= outlook(one, "parity", k).pause_s


def test_a_checkpoint_folder(tmp_path: Path) -> None:
    config: dict[str, object] = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 320,
        "dtype": "float32",
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    assert read_shape(str(tmp_path)).kv_bytes_per_token == 2 * 2 * 2 * 16 * 4
    for change, said in (({"num_hidden_layers": None}, "needed"), ({"kv_lora_rank": 8}, "not a dense decoder")):
        file.write_text(json.dumps(config | change))
        with pytest.raises(ConfigError, match=said):
            read_shape(str(tmp_path))
    with pytest.raises(ConfigError, match="allowed: a checkpoint folder, or llama-3-8b"):
        read_shape("absent")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = tmp_path / "plan.json", tmp_path / "plan.png"
    assert main(["plan", "llama-3-70b", "--output", str(files[0]), "--plot", str(files[1])]) == 0
    written = json.loads(files[0].read_text())
    assert written["plan"]["chosen"]["strategy"] in capsys.readouterr().out
    assert written["inputs"]["hardware"]["link_gbps"] == 54.1
    assert files[1].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--hardware", "abacus"], "hardware 'abacus' is unknown; allowed: h100, h200"),
        (["--failures", "x"], "allowed: llama-3, meta-rsc, none"),
        (["--mfu", "2"], "mfu must be above 0 and at most 1"),
        (["-tp", "1"], "tensor_parallel_size must be 2 to 128"),
        (["--hours-between-failures", "0"], "hours_between_failures must be above 0"),
        (["--context", "0"], "context must be a number above 0"),
    ],
)
def test_bad_settings(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "llama-3-8b", *flags]) == 2
    assert said in capsys.readouterr().err
