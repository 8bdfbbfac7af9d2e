"""When the engine computes with how many threads."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.helpers.worker_process import wait_until
from worker.engine.threads import (
    BURST_S,
    BUSY_S,
    AdaptiveThreads,
    FixedThreads,
    release_team,
    threads_for,
    timed_products,
)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Cores:
    """Stands for the machine: how long products take with so many threads, and what time it is."""

    def __init__(self, **durations: float) -> None:
        self.now = 0.0
        self.tried: list[int] = []
        self.durations = {int(name.removeprefix("with_")): value for name, value in durations.items()}

    def timed(self, count: int) -> float:
        self.tried.append(count)
        return self.durations[count]

    def threads(self, maximum: int) -> AdaptiveThreads:
        return AdaptiveThreads(maximum, timed=self.timed, clock=lambda: self.now)


def test_free_cores_are_all_used() -> None:
    cores = Cores(with_4=1.0, with_2=1.9, with_1=3.7)
    threads = cores.threads(4)
    threads.adjust()
    assert (threads.count, torch.get_num_threads()) == (4, 4)


def test_busy_cores_are_left_to_the_others_until_they_are_free_again() -> None:
    cores = Cores(with_2=70.0, with_1=1.0)
    threads = cores.threads(2)
    threads.adjust()
    assert (threads.count, torch.get_num_threads()) == (1, 1)
    cores.durations = {2: 0.5, 1: 1.0}
    threads.adjust()
    assert threads.count == 1  # a decision is kept for a while
    cores.now = 60.0
    threads.adjust()
    assert (threads.count, torch.get_num_threads()) == (2, 2)


def test_a_decision_is_kept_for_a_while() -> None:
    cores = Cores(with_2=1.0, with_1=2.0)
    threads = cores.threads(2)
    for _ in range(100):
        threads.adjust()
    assert cores.tried == [2, 1]


def test_burst_on_free_cores_costs_a_moment() -> None:
    cores = Cores(with_2=70.0, with_1=1.0)
    threads = cores.threads(2)
    threads.adjust()
    assert threads.count == 1
    cores.durations = {2: 0.5, 1: 1.0}
    cores.now = BURST_S
    threads.adjust()
    assert threads.count == 2


def test_cores_that_stay_busy_are_tried_less_and_less_often() -> None:
    cores = Cores(with_2=70.0, with_1=1.0)
    threads = cores.threads(2)
    tried_at = []
    while cores.now < 30.0:
        num_before = len(cores.tried)
        threads.adjust()
        if len(cores.tried) > num_before:
            tried_at.append(cores.now)
        cores.now += 0.25
    waits = [after - before for before, after in itertools.pairwise(tried_at)]
    assert waits == [0.25, 0.5, 1.0, 2.0, 4.0, *[BUSY_S] * (len(waits) - 5)]


def test_one_quick_try_is_not_enough_to_take_more_threads() -> None:
    cores = Cores(with_2=70.0, with_1=1.0)
    threads = cores.threads(2)
    threads.adjust()
    cores.now = 60.0
    tries = iter([0.5, 1.0, 70.0, 1.0])
    threads._timed = lambda count: next(tries)
    threads.adjust()
    assert threads.count == 1


def test_one_slow_try_is_not_enough_to_take_fewer_threads() -> None:
    threads = Cores().threads(2)
    tries = iter([70.0, 1.0, 0.5, 1.0])
    threads._timed = lambda count: next(tries)
    threads.adjust()
    assert threads.count == 2


def test_equal_times_mean_more_threads() -> None:
    cores = Cores(with_6=1.1, with_3=1.05, with_1=1.0)
    threads = cores.threads(6)
    threads.adjust()
    assert threads.count == 6


def test_a_number_that_was_asked_for_holds() -> None:
    threads = threads_for(torch.device("cpu"), 1)
    assert isinstance(threads, FixedThreads)
    threads.adjust()
    assert torch.get_num_threads() == 1


def test_one_core_needs_no_trying() -> None:
    torch.set_num_threads(1)
    assert isinstance(threads_for(torch.device("cpu"), None), FixedThreads)
    torch.set_num_threads(2)
    assert isinstance(threads_for(torch.device("cpu"), None), AdaptiveThreads)
    assert isinstance(threads_for(torch.device("meta"), None), FixedThreads)


def test_products_take_time() -> None:
    assert timed_products(1) > 0
    assert torch.get_num_threads() == 1


OWN_THREADS = Path("/proc/self/task")
TEAM = "one team"


def num_in_team() -> int:
    """Count the threads of that name: a thread's team has its name, and other threads come and go as they like."""
    num = 0
    for thread in OWN_THREADS.iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            num += (thread / "comm").read_text().strip() == TEAM
    return num


def compute_and_let_go() -> None:
    (OWN_THREADS / str(threading.get_native_id()) / "comm").write_text(TEAM)
    timed_products(3)
    assert num_in_team() == 3
    release_team()
    wait_until(lambda: num_in_team() == 1, "its threads have ended, one after the other")


@pytest.mark.skipif(not OWN_THREADS.is_dir(), reason="counts threads as Linux lists them")
def test_a_thread_that_is_done_leaves_no_threads_behind() -> None:
    with ThreadPoolExecutor(1) as executor:
        executor.submit(compute_and_let_go).result()


def test_who_let_its_threads_go_computes_the_same_with_new_ones() -> None:
    torch.set_num_threads(2)
    left = torch.rand(300, 300)
    product = left @ left
    release_team()
    assert torch.equal(left @ left, product)
