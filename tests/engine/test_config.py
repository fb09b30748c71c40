import pytest

from ghostserve.engine.config import EngineConfig
from ghostserve.errors import ConfigError


def test_defaults_are_allowed():
    assert EngineConfig(model="m").flush_tokens == 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *(
            (name, value, f"{name} must be at least 1, not {value}")
            for name in (
                *("tensor_parallel_size", "flush_tokens", "max_unprotected_tokens", "block_size"),
                *("kv_cache_memory", "max_num_seqs", "max_num_batched_tokens", "max_queue", "max_recovery_attempts"),
            )
            for value in (0, -3)
        ),
        ("standbys", -1, "standbys must be at least 0, not -1"),
        ("max_num_batched_tokens", 31, "max_num_batched_tokens 31 is below max_num_seqs 32"),
        *(
            (name, value, f"{name} must be a positive number of seconds, not {value}")
            for name in ("step_deadline", "phase_deadline")
            for value in (0.0, -1.0, float("nan"), float("inf"))
        ),
        ("encoder", "both", "encoder 'both' is unknown; allowed: round_robin, striped"),
        ("dtype", "int3", "dtype 'int3' is unknown; allowed: auto, float32, bfloat16, float16"),
        ("max_model_len", 1, "max_model_len must be at least 2, not 1"),
        ("parity_memory", -1, "parity_memory must not be negative, not -1"),
    ],
)
def test_a_value_that_cannot_be_is_named(name, value, message):
    with pytest.raises(ConfigError) as caught:
        EngineConfig(model="m", **{name: value})
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "settings",
    [{"standbys": 0}, {"encoder": "striped"}, {"dtype": "float16"}, {"max_model_len": 2}, {"parity_memory": 0}],
)
def test_values_at_the_edge_are_allowed(settings):
    EngineConfig(model="m", **settings)
