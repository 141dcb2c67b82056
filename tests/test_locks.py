"""One process at a time writes an output."""

import threading

from data_pipelines.runtime.locks import hold_lock


def test_hold_lock_makes_the_second_wait(tmp_path):
    order = []

    def second():
        with hold_lock(tmp_path / "out"):
            order.append("second")

    thread = threading.Thread(target=second)
    with hold_lock(tmp_path / "out"):
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == [tmp_path / ".out.lock"]
