"""The plug-in's settings: defaults, every wrong value by name, and nothing of vLLM imported for it."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from ghostserve.errors import ConfigError
from ghostserve.vllm.config import PluginConfig, parse_settings, plugin_config


def given(additional: object) -> PluginConfig:
    return plugin_config(SimpleNamespace(additional_config=additional))  # type: ignore[arg-type]


def test_defaults_where_nothing_is_set() -> None:
    assert given({}) == given({"ghostserve": {}}) == given({"other": 1}) == PluginConfig()
    assert (PluginConfig().parity, PluginConfig().standbys, PluginConfig().allow_unprotected) == ("rs:1", 1, False)


def test_what_is_set_is_taken() -> None:
    config = given({"ghostserve": {"parity": "none", "standbys": 0, "step_deadline": 5, "record": "/tmp/schedule"}})
    assert (config.parity, config.standbys, config.step_deadline, config.record) == ("none", 0, 5.0, "/tmp/schedule")


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"parity": "rs:x"}, ["rs:x", "rs:K"]),
        ({"parity": "raid"}, ["raid", "'xor'"]),
        ({"parity": 2}, ["parity", "text", "2"]),
        ({"standbys": -1}, ["standbys", "at least 0", "-1"]),
        ({"standbys": 1.5}, ["standbys", "a whole number", "1.5"]),
        ({"standbys": "1"}, ["standbys", "a whole number", "'1'"]),
        ({"flush_tokens": 0}, ["flush_tokens", "at least 1", "0"]),
        ({"max_unprotected_tokens": 0}, ["max_unprotected_tokens", "at least 1"]),
        ({"max_recovery_attempts": 0}, ["max_recovery_attempts", "at least 1"]),
        ({"encoder": "all"}, ["encoder", "round_robin or striped", "'all'"]),
        ({"step_deadline": 0}, ["step_deadline", "positive", "0"]),
        ({"phase_deadline": float("inf")}, ["phase_deadline", "positive", "inf"]),
        ({"phase_deadline": float("nan")}, ["phase_deadline", "positive", "nan"]),
        ({"allow_unprotected": 1}, ["allow_unprotected", "true or false", "1"]),
        ({"status_path": ""}, ["status_path", "''"]),
        ({"record": 3}, ["record", "a path", "3"]),
        ({"partiy": "rs:1"}, ["partiy", "unknown", "parity, standbys"]),
        (["parity"], ["object of settings", "['parity']"]),
        (None, ["object of settings", "None"]),
    ],
)
def test_a_wrong_value_is_named(settings: object, names: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        given({"ghostserve": settings})
    assert [name for name in names if name not in str(caught.value)] == []


def test_an_opaque_additional_config_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be a JSON object, not str"):
        given("ghostserve")


def test_numbers_of_a_command_line_are_text() -> None:
    config = parse_settings({"standbys": "2", "step_deadline": "7.5"}, from_text=True)
    assert (config.standbys, config.step_deadline) == (2, 7.5)
    with pytest.raises(ConfigError, match="standbys must be a whole number, not 'two'"):
        parse_settings({"standbys": "two"}, from_text=True)


def test_parity_is_checked_against_the_ranks() -> None:
    PluginConfig(parity="rs:2").check_ranks(4)
    PluginConfig(parity="none").check_ranks(4)
    with pytest.raises(ConfigError, match="parity 'rs:200' with 100 ranks"):
        PluginConfig(parity="rs:200").check_ranks(100)


@pytest.mark.parametrize("module", ["config", "support", "status_file", "metrics", "middleware", "launch"])
def test_importing_it_imports_no_vllm(module: str) -> None:
    code = f"import sys, ghostserve.vllm.{module}; sys.exit('vllm' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
