"""A SIGTERM ends a command wherever it comes, also where Python drops what a handler raises."""

import subprocess
import sys

import pytest

# Each process signals itself at a bad moment, then works on for longer than anyone would wait.
PROLOGUE = """
import os, signal, sys, time, weakref
from ghostserve import signals
from ghostserve.signals import unwinding_on_sigterm

signals._AGAIN_SECONDS = 0.5  # longer than a busy machine leaves a process waiting between two lines

class Thing:
    pass

def strike(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(100):
        pass
    print("the handler has not raised", flush=True)

def in_plain_code():
    strike()

def in_a_callback():
    thing = Thing()
    reference = weakref.ref(thing, strike)
    del thing

def in_a_finalizer():
    Thing.__del__ = strike
    Thing()

def in_two_callbacks():
    in_a_callback()
    in_a_finalizer()

def wait_in_a_finalizer(*_):
    until = time.monotonic() + 0.7
    while time.monotonic() < until:
        pass

def repeated_in_a_finalizer():
    in_a_callback()
    Thing.__del__ = wait_in_a_finalizer
    Thing()

def in_a_callback_and_again():
    in_a_callback()
    strike()
"""
BODY = """
try:
    {moment}()
    print("went on", flush=True)
    time.sleep(20)
    print("slept", flush=True)
finally:
    print("unwinds", flush=True)
    time.sleep(0.7)
    print("unwound", flush=True)
"""
PLAIN = ["in_plain_code", "in_a_callback_and_again"]
"""Where the last signal finds nothing that drops what is raised."""
DROPPED = ["in_a_callback", "in_a_finalizer", "in_two_callbacks", "repeated_in_a_finalizer"]


def run(script: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", PROLOGUE + script]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)


def indented(text: str) -> str:
    return text.replace("\n", "\n    ")


@pytest.mark.parametrize("moment", PLAIN + DROPPED)
def test_it_unwinds_wherever_it_comes(moment: str) -> None:
    done = run("with unwinding_on_sigterm(143):" + indented(BODY.format(moment=moment)))
    assert done.returncode == 143, done.stdout + done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["went on"] * (moment in DROPPED) + ["unwinds", "unwound"]


@pytest.mark.parametrize("moment", DROPPED)
def test_a_handler_that_only_raises_loses_it(moment: str) -> None:
    """The twin."""
    handler = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
    done = run(handler + BODY.format(moment=moment).replace("sleep(20)", "sleep(0.2)"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["went on", "slept", "unwinds", "unwound"]
    assert "SystemExit: 143" in done.stderr


def test_what_others_lose_is_told_and_everything_is_put_back() -> None:
    done = run("""
def told(lost):
    print("told of", lost.exc_type.__name__)

def fail(reference):
    raise SystemExit("not ours")

sys.unraisablehook = told
with unwinding_on_sigterm(143):
    thing = Thing()
    reference = weakref.ref(thing, fail)
    del thing
    time.sleep(0.2)
assert sys.unraisablehook is told
assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["told of SystemExit"]


@pytest.mark.parametrize(
    ("handler", "said"), [('lambda *_: print("drains")', ["drains", "cleaned up"]), ("signal.SIG_IGN", ["cleaned up"])]
)
def test_who_handles_it_by_then_gets_it(handler: str, said: list[str]) -> None:
    """A server that drains, and a cleanup that is not to be cut."""
    done = run(f"""
with unwinding_on_sigterm(143):
    in_a_callback()
    signal.signal(signal.SIGTERM, {handler})
    time.sleep(0.7)
    print("cleaned up")
""")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == said


def test_what_was_lost_at_the_very_end_does_no_harm_afterwards() -> None:
    done = run("""
with unwinding_on_sigterm(143):
    in_a_callback()
time.sleep(0.7)
print("alive")
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")
