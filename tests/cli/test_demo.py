"""The demo's logic on a tiny checkpoint: passes when nothing is wrong, and fails when it is sabotaged."""

from pathlib import Path

from cli_command import RunCommand

from ghostserve.cli.demo.passage import PASSAGE
from ghostserve.cli.demo.prompts import STREAMS, chat_messages
from ghostserve.cli.demo.story import Stream

SHORT = ("--max-tokens", "120", "--longest-prompt", "200", "--plain")


def test_two_kills_and_no_difference(ghostserve: RunCommand, tiny: str, tmp_path: Path) -> None:
    svg = tmp_path / "demo.svg"
    done = ghostserve("demo", "--model", tiny, *SHORT, "--svg", str(svg))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("SIGKILL to rank") == 2
    assert done.stdout.count("is wiped") == 2
    assert f"{6 * 120} tokens" in done.stdout
    assert "6 of 6 streams exactly" in done.stdout
    assert "tiny-llama" in svg.read_text().replace("&#160;", " ")


def test_sabotage_is_seen(ghostserve: RunCommand, tiny: str) -> None:
    done = ghostserve("demo", "--model", tiny, *SHORT, "--sabotage", "skip-rebuild")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the first" in done.stdout
    assert "the check can fail" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stderr


def test_prompts_are_as_long_as_asked() -> None:
    def count(text: str) -> int:
        return len(text.split())

    lengths = [count(chat_messages(plan, 1000, count)[-1]["content"]) for plan in STREAMS]
    assert lengths == sorted(lengths)
    assert lengths[0] < 20
    assert lengths[-1] == 1000
    assert count(PASSAGE) > 1000


def test_a_pause_belongs_to_one_kill() -> None:
    stream = Stream(STREAMS[0], times=[1.0, 1.2, 2.0, 2.2, 3.7, 3.9])
    assert stream.pause(1.1, 2.1) == 0.8
    assert stream.pause(2.1, 9.0) == 1.5
    assert stream.pause(4.0, 9.0) == 0.0
