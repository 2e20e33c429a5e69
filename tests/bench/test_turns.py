import os
from contextlib import contextmanager
from threading import Event, Thread

from lrd_deploy.bench.training import TrainingLaunchSamples
from lrd_deploy.bench.turns import Turns, own_turn
from lrd_deploy.observer import SilentObserver

SAMPLES = TrainingLaunchSamples(batch=1, dense_ms=(1.0,), lowrank_ms={"A": (1.0,)})


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


def test_launches_that_waited_are_marked_and_the_observer_hears_once(monkeypatch):
    busy, heard = iter([True, False, True]), []

    @contextmanager
    def turn(on_wait):
        if next(busy):
            on_wait()
        yield

    class Listener(SilentObserver):
        def note(self, text):
            heard.append(text)

    monkeypatch.setattr("lrd_deploy.bench.turns.own_turn", turn)
    turns = Turns(Listener())
    assert [turns.take(lambda: SAMPLES).waited for _ in range(3)] == [True, False, True]
    assert heard == ["another measurement is running on this machine; launches take turns"]
