"""What the demo's clients ask: questions of some twenty tokens up to one about a passage of some 1,500."""

from collections.abc import Callable
from dataclasses import dataclass

from ghostserve.cli.demo.passage import PASSAGE

__all__ = ["STREAMS", "StreamPlan", "chat_messages"]


@dataclass(frozen=True)
class StreamPlan:
    """One client: its question, how much of the passage goes with it (a share of the longest prompt), its sampling."""

    name: str
    question: str
    share: float = 0.0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    system: str | None = None
    """Instead of the system message that a model's chat template may add by itself."""

    @property
    def sampling(self) -> str:
        """In words."""
        if self.temperature == 0:
            return "greedy"
        cut = f" top_p {self.top_p:g}" if self.top_p < 1 else f" top_k {self.top_k}" if self.top_k else ""
        return f"T {self.temperature:g}{cut} seed {self.seed}"


STREAMS = (
    StreamPlan("ask", "What is the capital of France?", system="Be brief."),
    StreamPlan("poem", "Write a short poem about a ghost who keeps a promise.", temperature=0.8, top_p=0.95, seed=7),
    StreamPlan("plan", "List five things to check before a long walk in the hills.", 0.08),
    StreamPlan("who", "Who is described in this text? Answer in plain words.", 0.3, 0.7, 1.0, 40, 11),
    StreamPlan("mood", "Describe the mood of this text and how the author makes it.", 0.6, 1.0, 0.9, 0, 42),
    StreamPlan("sum up", "Sum up this text for a friend who has not read it.", 1.0),
)


def chat_messages(plan: StreamPlan, longest: int, count_tokens: Callable[[str], int]) -> list[dict[str, str]]:
    """The question, before it as much of the passage as makes `share * longest` tokens together."""
    room = int(plan.share * longest) - count_tokens(plan.question)
    words = PASSAGE.split(" ")
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count_tokens(" ".join(words[:middle])) <= room else (low, middle - 1)
    text = " ".join(words[:low]) + "\n\n" + plan.question if low else plan.question
    system = [] if plan.system is None else [{"role": "system", "content": plan.system}]
    return [*system, {"role": "user", "content": text}]
