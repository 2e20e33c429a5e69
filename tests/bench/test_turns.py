import os
from threading import Event, Thread

from lrd_deploy.bench.turns import own_turn


def test_a_second_measurement_says_that_it_waits_and_then_has_its_turn(tmp_path):
    waits, done = Event(), Event()

    def second():
        with own_turn(waits.set, tmp_path):
            done.set()

    waiting = Thread(target=second)
    with own_turn(lambda: None, tmp_path):
        waiting.start()
        assert waits.wait(30)
        assert not done.is_set()
    waiting.join(30)
    assert done.is_set()


def test_a_turn_alone_waits_for_nothing(tmp_path):
    for _ in range(2):
        with own_turn(lambda: (_ for _ in ()).throw(AssertionError("waited")), tmp_path):
            assert os.listdir(tmp_path) == ["lrd-deploy-measuring.lock"]


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "lrd-deploy-measuring.lock").symlink_to(tmp_path / "elsewhere")
    with own_turn(lambda: None, tmp_path):
        assert not (tmp_path / "elsewhere").exists()
