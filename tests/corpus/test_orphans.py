import multiprocessing
import os
import sys
import time

import pytest

from mm1_hf.corpus.orphans import end_children_with_this_process


def _start_a_child(writing: int) -> None:
    end_children_with_this_process()
    if os.fork() == 0:
        os.write(writing, b"began ")
        time.sleep(5)
        os.write(writing, b"outlived its parent")
        os._exit(0)
    time.sleep(60)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such signal")
def test_children_of_a_killed_process_end_with_it():
    reading, writing = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=_start_a_child, args=(writing,))
    process.start()
    os.close(writing)
    assert os.read(reading, 100) == b"began "
    process.kill()
    process.join()
    # Nobody can write any more.
    assert os.read(reading, 100) == b""
    os.close(reading)
