"""Synthetic captions whose run is killed by `kill -9` again and again end with the bytes of a run without a kill."""

import os
import random
import signal
import sys
import threading

import pytest
from caption_server import Reply, caption_server, prompt_of
from captioning import captioner, fuser, write_pairs

from mm1_hf.corpus.stages import run_stages
from mm1_hf.corpus.ways.synthetic import Settings, stages


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")


class Killer:
    """Kills a process when a number of requests has been answered, in the middle of the next one."""

    def __init__(self) -> None:
        self.answered = self.left = 0
        self.victim: int | None = None
        self.lock = threading.Lock()

    def around(self, answer):
        def answered(request) -> Reply:
            with self.lock:
                self.answered += prompt_of(request) != "Hello"
                self.left -= 1
                if self.victim is not None and self.left < 0:
                    os.kill(self.victim, signal.SIGKILL)
                    self.victim = None
                    return Reply(hang_up=True)
            return answer(request)

        return answered


def run_in_child(settings: Settings, killer: Killer, after: int | None) -> int:
    """The signal that ended a run in a process of its own, or 0."""
    with killer.lock:
        killer.left = 0 if after is None else after
        child = os.fork()
        if child == 0:
            # Nothing of the test's own process may run here, such as its reports.
            status = 1
            try:
                run_stages(stages(settings), settings.output, tasks=2)
                status = 0
            finally:
                os._exit(status)
        killer.victim = None if after is None else child
    _, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def test_kills_change_no_byte(tmp_path):
    number, killer, draw = 70, Killer(), random.Random(0)
    pairs = write_pairs(tmp_path / "pairs", number)
    with (
        caption_server(killer.around(captioner), ("eye",)) as eye,
        caption_server(killer.around(fuser), ("pen",)) as pen,
    ):

        def settings(name: str) -> Settings:
            return Settings(
                (str(pairs),), str(tmp_path / name), captioner_endpoint=eye, fuser_endpoint=pen, requests=4
            )

        run_stages(stages(settings("whole")), str(tmp_path / "whole"), tasks=2)
        assert killer.answered == 2 * number
        kills = 0
        while run_in_child(settings("killed"), killer, draw.randrange(25)) == signal.SIGKILL:
            kills += 1
    assert kills > 6
    # What was under way when it was killed is asked again, and nothing else.
    assert killer.answered <= 4 * number + 6 * kills
    assert {path.name: path.read_bytes() for path in (tmp_path / "whole" / "data").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "killed" / "data").iterdir()
    }
