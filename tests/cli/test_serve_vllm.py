"""`ghostserve serve --engine vllm`: what it makes of a command line, without any server."""

import json
import os
import sys
from pathlib import Path

import pytest

from ghostserve.cli import serve_vllm
from ghostserve.cli.main import main
from ghostserve.cli.serve_vllm import CLASSES, MIDDLEWARE, is_vllm, vllm_arguments, vllm_environment
from ghostserve.errors import ConfigError

PLUGIN = [*(word for pair in CLASSES.items() for word in pair), "--middleware", MIDDLEWARE]


def settings(arguments: list[str]) -> dict[str, object]:
    """The one additional config among them."""
    places = [index for index, word in enumerate(arguments) if word.startswith("--additional")]
    assert [arguments[index] for index in places] == ["--additional-config"]
    found = json.loads(arguments[places[0] + 1])
    assert isinstance(found, dict)
    return found


def test_which_engine_is_asked_for() -> None:
    assert is_vllm(["serve", "model", "--engine", "vllm"])
    assert is_vllm(["serve", "--engine=vllm", "model", "--unknown"])
    assert not is_vllm(["serve", "model"])
    assert not is_vllm(["serve", "model", "--engine", "embedded"])
    assert not is_vllm(["serve", "model", "--engine"])
    assert not is_vllm(["bench", "--engine", "vllm"])


def test_vllms_options_pass_unchanged_and_in_order() -> None:
    given = ["model", "-tp", "2", "--port=8001", "--max_num_seqs", "8", "-O3", "--hf-overrides", '{"a": "--parity"}',
             "--no-enable-prefix-caching", "--stop", "-1", "--enc", "x"]  # fmt: skip
    arguments = vllm_arguments(["--engine", "vllm", *given, "--parity", "rs:2"])
    assert arguments[: len(given)] == given
    assert arguments[len(given) :] == ["--additional-config", '{"ghostserve": {"parity": "rs:2"}}', *PLUGIN]


def test_ghostserves_options_become_settings() -> None:
    arguments = vllm_arguments(
        ["m", "--parity=rs:2", "--standbys", "2", "--flush_tokens", "4", "--max-unprotected-tokens", "64", "--encoder",
         "striped", "--step-deadline", "5", "--phase-deadline", "7.5", "--max-recovery-attempts", "3", "--status-path",
         "/run/x", "--parity-allow-unprotected"]
    )  # fmt: skip
    assert settings(arguments) == {
        "ghostserve": {
            "parity": "rs:2", "standbys": 2, "flush_tokens": 4, "max_unprotected_tokens": 64, "encoder": "striped",
            "step_deadline": 5.0, "phase_deadline": 7.5, "max_recovery_attempts": 3, "status_path": "/run/x",
            "allow_unprotected": True,
        }
    }  # fmt: skip
    assert settings(vllm_arguments(["m"])) == {"ghostserve": {}}


@pytest.mark.parametrize("name", ["--additional-config", "--additional_config"])
@pytest.mark.parametrize("joined", [False, True])
def test_the_users_additional_config_is_kept_and_ours_wins(name: str, joined: bool) -> None:
    user = json.dumps({"other": 1, "ghostserve": {"parity": "rs:1", "skip_rebuild": True}})
    words = [f"{name}={user}"] if joined else [name, user]
    arguments = vllm_arguments(["m", *words, "--seed", "1", "--parity", "rs:2"])
    assert settings(arguments) == {"other": 1, "ghostserve": {"parity": "rs:2", "skip_rebuild": True}}
    assert arguments[:3] == ["m", "--seed", "1"]


def test_beside_dotted_options_ours_are_dotted() -> None:
    """vLLM drops a JSON object where there are dotted options of the same name."""
    user = ["--additional-config.other", "1"]
    arguments = vllm_arguments(["m", *user, "--parity", "rs:2", "--standbys", "0"])
    ours = ["--additional-config.ghostserve.parity", '"rs:2"', "--additional-config.ghostserve.standbys", "0"]
    assert arguments == ["m", *user, *ours, *PLUGIN]


def test_the_additional_config_of_a_config_file_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("port: 8001\nadditional_config:\n  other: 1\n  ghostserve:\n    standbys: 2\n")
    arguments = vllm_arguments(["m", "--config", str(file), "--parity", "rs:2"])
    assert arguments[:3] == ["m", "--config", str(file)]
    assert settings(arguments) == {"other": 1, "ghostserve": {"standbys": 2, "parity": "rs:2"}}


def test_what_the_user_names_already_is_not_named_twice() -> None:
    given = [word for pair in CLASSES.items() for word in pair] + ["--middleware", "a.B", f"--middleware={MIDDLEWARE}"]
    arguments = vllm_arguments(["m", *given])
    assert arguments == ["m", *given, "--additional-config", '{"ghostserve": {}}']
    assert vllm_arguments(["m", "--middleware", "a.B"])[-4:] == PLUGIN[-4:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--worker-cls", "a.B"], "--worker-cls a.B can't be used .* ghostserve.vllm.worker.GhostServeWorker"),
        (["--scheduler_cls=a.B"], "--scheduler-cls a.B can't be used"),
        (["--distributed-executor-backend", "ray"], "--distributed-executor-backend ray can't be used"),
        (["--parity", "raid"], "no code 'raid'; allowed are"),
        (["--standbys", "some"], "standbys must be a whole number, not 'some'"),
        (["--parity"], "--parity"),
        (["--parity-allow-unprotected=no"], "--parity-allow-unprotected"),
        (["--additional-config", "{"], "'{' is no JSON"),
        (["--additional-config", "[1]"], "must be a JSON object"),
        (["--additional-config", '{"ghostserve": 1}'], "must be a JSON object"),
        (["--additional-config", '{"ghostserve": {"partiy": "rs:1"}}'], "'partiy' is unknown; allowed: parity"),
        (["--config", "/no/such.yaml"], "--config /no/such.yaml can't be read"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        vllm_arguments(["m", *arguments])


def test_the_environment_is_completed_not_changed() -> None:
    completed = vllm_environment({"HOME": "/home"})
    assert (completed["HOME"], completed["VLLM_USE_V2_MODEL_RUNNER"]) == ("/home", "0")
    assert completed["GHOSTSERVE_STATUS_FILE"].endswith(f"serve-{os.getpid()}.json")
    user = {"VLLM_USE_V2_MODEL_RUNNER": "1", "GHOSTSERVE_STATUS_FILE": "/run/x"}
    assert vllm_environment(user) == user


def test_the_process_becomes_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(serve_vllm.metadata, "version", lambda name: {"vllm": "0.32.1"}[name])
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call) or sys.exit(9))
    with pytest.raises(SystemExit):
        main(["serve", "m", "--engine", "vllm", "-tp", "2"])
    ((program, command, environment),) = calls
    assert program == sys.executable
    assert command[1:6] == ["-m", "ghostserve.vllm.launch", "serve", "m", "-tp"]
    assert environment["VLLM_USE_V2_MODEL_RUNNER"] == "0"


def test_a_missing_or_other_vllm_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve_vllm.metadata, "version", lambda name: "0.33.0")
    assert main(["serve", "m", "--engine", "vllm"]) == 2
    assert 'works with vLLM 0.32, and 0.33.0 is installed: pip install "vllm==0.32.*"' in capsys.readouterr().err

    def missing(name: str) -> str:
        raise serve_vllm.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(serve_vllm.metadata, "version", missing)
    monkeypatch.setattr(serve_vllm.util, "find_spec", lambda name: None)
    assert main(["serve", "m", "--engine", "vllm"]) == 2
    assert 'pip install "ghostserve[vllm]"' in capsys.readouterr().err


def test_an_unknown_engine_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "m", "--engine", "sglang"]) == 2
    assert "engine 'sglang' is unknown; allowed: embedded, vllm" in capsys.readouterr().err


def test_vllm_understands_the_result() -> None:
    pytest.importorskip("vllm")
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    for words in (["--additional-config.other", "1"], ["--additional-config", '{"other": 1}']):
        arguments = vllm_arguments(["m", "-tp", "2", *words, "--parity", "rs:2", "--middleware", "a.B"])
        parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
        assert (parsed.model_tag, parsed.tensor_parallel_size) == ("m", 2)
        assert parsed.additional_config == {"other": 1, "ghostserve": {"parity": "rs:2"}}
        assert parsed.middleware == ["a.B", MIDDLEWARE]
        assert [parsed.distributed_executor_backend, parsed.worker_cls, parsed.scheduler_cls] == list(CLASSES.values())
