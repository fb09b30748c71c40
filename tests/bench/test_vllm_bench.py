"""The plug-in's benchmark: its arithmetic and tables without vLLM, and one tiny run with it."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from rich.console import Console

from ghostserve.bench.vllm.engine import BenchEngine
from ghostserve.bench.vllm.pause import PauseFigure, caught_up, phases_of, resumed
from ghostserve.bench.vllm.tables import as_json, pause_tables, throughput_table
from ghostserve.bench.vllm.throughput import SAME, STOCK, ThroughputFigure, take_turns
from ghostserve.bench.vllm.work import EngineSettings, Outcome, Stream, Work
from ghostserve.cli.main import main
from ghostserve.errors import GhostServeError
from ghostserve.status import RecoveryRecord

WORK = Work("decode", streams=2, prompt=8, tokens=2)
without_vllm = pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")


class Engine:
    """Takes a given time for each work and remembers when it had its turns."""

    def __init__(self, name, seconds, turns, tokens=((1, 2), (3, 4))):
        self.name, self.seconds, self.turns, self.tokens = name, iter(seconds), turns, tokens

    def run(self, work, seed):
        self.turns.append((seed, self.name))
        end = 100.0 + next(self.seconds)
        return Outcome([Stream(list(tokens), [100.5, end]) for tokens in self.tokens], began=100.0)


def engines(turns, **tokens):
    return {
        STOCK: Engine(STOCK, [9, 4, 4, 4], turns, tokens.get("stock", ((1, 2), (3, 4)))),
        SAME: Engine(SAME, [9, 3, 6, 2], turns, tokens.get("same", ((1, 2), (3, 4)))),
        "rs:1": Engine("rs:1", [90, 2, 8, 2.5], turns),
    }


def quietly(text):
    assert text


def shown(*tables):
    console = Console(width=170, record=True)
    for table in tables:
        console.print(table)
    return console.export_text()


# ---- what an engine is asked to do


def test_prompts_have_their_length_and_differ_with_the_seed():
    prompts = WORK.prompts(1000, seed=1)
    assert [len(prompt) for prompt in prompts] == [8, 8]
    assert all(0 <= token < 1000 for prompt in prompts for token in prompt)
    assert prompts == WORK.prompts(1000, seed=1)
    others = [*WORK.prompts(1000, seed=2), *prompts]
    assert len({tuple(prompt) for prompt in others}) == 4
    assert WORK.processed == 20


def test_the_work_is_done_with_the_last_token_of_the_slowest_stream():
    assert Outcome([Stream([1, 2], [11.0, 12.0]), Stream([1, 2], [11.0, 14.5])], began=10.0).seconds == 4.5


# ---- throughput


def test_the_ratio_is_the_median_of_the_rounds_and_the_warm_up_does_not_count():
    figure = take_turns(engines([]), WORK, "rs:1", 3, quietly, rest=0.0)
    assert figure.seconds == {STOCK: (4, 4, 4), SAME: (3, 6, 2), "rs:1": (2, 8, 2.5)}
    assert figure.ratios("rs:1", SAME) == [1.5, 0.75, 0.8]
    assert figure.ratio("rs:1", SAME) == 0.8  # of medians it would be 1.2
    assert figure.speeds(STOCK) == [5, 5, 5]
    assert figure.agreed == 1


def test_everyone_is_first_and_last_in_turn():
    turns = []
    take_turns(engines(turns), WORK, "rs:1", 3, quietly, rest=0.0)
    rounds = [[name for seed, name in turns if seed == number] for number in range(4)]
    assert all(sorted(names) == sorted([STOCK, SAME, "rs:1"]) for names in rounds)
    assert {names[0] for names in rounds} == {names[-1] for names in rounds} == {STOCK, SAME, "rs:1"}


def test_other_tokens_over_the_same_collectives_stop_it():
    with pytest.raises(GhostServeError, match="decode, round 0: tokens with the plug-in differ from stock vLLM's"):
        take_turns(engines([], same=((1, 2), (3, 5))), WORK, "rs:1", 3, quietly, rest=0.0)


def test_other_tokens_over_other_collectives_are_counted_up_to_the_first_difference():
    figure = take_turns(engines([], stock=((9, 2), (3, 9))), WORK, "rs:1", 3, quietly, rest=0.0)
    assert figure.agreed == 0.25


# ---- the pause


def test_tokens_that_were_under_way_at_the_kill_do_not_end_the_pause():
    late = Stream([1, 2, 3, 4], [9.0, 10.01, 12.0, 12.1])
    early = Stream([1, 2, 3, 4], [9.0, 9.9, 11.8, 12.1])
    assert resumed(Outcome([late, early], 0.0, killed=10.0)) == 2.0


def test_a_kill_after_the_last_token_is_no_figure():
    with pytest.raises(GhostServeError, match="all of its tokens before the kill"):
        resumed(Outcome([Stream([1, 2], [8.0, 9.0])], 0.0, killed=10.0))


def test_a_restart_lasts_until_each_stream_is_one_token_further():
    before = Outcome([Stream([1, 2], [1.0, 2.0]), Stream([3], [2.0])], 0.0, killed=2.5, counts=[2, 1], died=True)
    after = Outcome([Stream([1, 2, 7], [20.0, 21.0, 22.5]), Stream([3, 4, 5], [20.0, 21.0, 30.0])], 19.0)
    assert caught_up(before, after) == 20.0
    after.streams[1].tokens[0] = 9
    with pytest.raises(GhostServeError, match="tokens differ"):
        caught_up(before, after)


def test_phases_become_durations_that_add_up():
    marks = [("released", 0.5), ("detected", 0.0), ("spawned", 0.25), ("rebuilt", 1.5), ("replayed", 2.0)]
    record = RecoveryRecord(
        epoch=2,
        reason="killed",
        lost_ranks=[1],
        seconds=2.0,
        bytes_rebuilt=1,
        replayed_steps=1,
        recomputed_requests=0,
        phases=marks,
    )
    phases = phases_of(record, 2.25)
    assert phases == (
        ("a newcomer takes the rank", 0.25),
        ("survivors leave the group", 0.25),
        ("KV rebuilt from parity", 1.0),
        ("unprotected steps replayed", 0.5),
        ("noticing the death, and the next token's way", 0.25),
    )


# ---- what is shown


THROUGHPUT = ThroughputFigure(WORK, {STOCK: (4.0, 4.0), SAME: (3.0, 6.0), "rs:1": (2.0, 8.0)}, agreed=0.5)
PAUSE = [
    PauseFigure("recovery with a standby", (2.0, 4.0), ((("x", 1.5), ("y", 0.5)), (("y", 3.0), ("x", 1.0)))),
    PauseFigure("restart and send again", (30.0, 36.0)),
]


def test_throughput_table():
    lines = [line.split() for line in shown(throughput_table([THROUGHPUT], "rs:1", 3)).splitlines()]
    (first,) = [line for line in lines if "decode:" in line]
    assert [cell for cell in first if "." in cell] == ["10.0", "6.7", "5.0", "1.500", "2.000", "0.750"]
    (median,) = [line for line in lines if "median" in line]
    assert [cell for cell in median if "." in cell] == ["6.2", "5.0", "5.0", "1.125", "1.250", "1.125"]


def test_pause_tables():
    text = shown(*pause_tables(PAUSE, "TP 3, rs:1"))
    lines = {words[1]: words for line in text.splitlines() if len(words := line.split()) > 1}
    assert "2.00, 4.00" in text
    assert "11.0x faster" in text
    assert lines["x"][3::2] == ["1.500", "1.000"]
    assert lines["y"][3::2] == ["0.500", "3.000"]


def test_json():
    found = json.loads(json.dumps(as_json([THROUGHPUT], PAUSE, "rs:1")))
    (throughput,) = found["throughput"]
    assert throughput["ratio against the same collectives"] == 1.125
    assert throughput["ratio against stock"] == 1.25
    assert throughput["seconds"]["rs:1"] == [2.0, 8.0]
    assert [pause["median"] for pause in found["pause"]] == [3.0, 33.0]
    assert found["pause"][0]["phases"][1] == {"y": 3.0, "x": 1.0}


# ---- with and without vLLM


@without_vllm
def test_without_vllm_it_says_so(capsys):
    assert main(["bench", "vllm"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: benchmark vllm needs vLLM 0.32")
    assert error.count("\n") == 1


@without_vllm
def test_an_engine_that_does_not_start_says_why():
    with pytest.raises(GhostServeError, match="No module named 'vllm'"), BenchEngine(EngineSettings("x", 2)):
        pass


@pytest.mark.vllm
@pytest.mark.timeout(900)  # five starts of vLLM
def test_a_tiny_run(tmp_path, capsys):
    pytest.importorskip("vllm")
    sys.path.append(str(Path(__file__).parents[1] / "engine"))
    import tiny

    config = tiny.llama(heads=4, kv_heads=4, hidden_size=256, head_dim=64, max_position_embeddings=1024)
    model = tiny.make_checkpoint(tmp_path / "model", config)
    output = tmp_path / "figures.json"
    arguments = ["--model", str(model), "--tensor-parallel-size", "2", "--quick", "--output", str(output)]
    assert main(["bench", "vllm", *arguments]) == 0, capsys.readouterr().err
    figures = json.loads(output.read_text())["vllm"]
    (throughput,) = figures["throughput"]
    assert throughput["agreed with stock"] == 1  # two addends: no order to depend on
    (pause,) = figures["pause"]
    assert 0 < pause["median"] < 60
    assert pause["phases"][0]["KV rebuilt from parity"] > 0
