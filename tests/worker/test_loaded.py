"""What workers say of their models, as the bots read it."""

from __future__ import annotations

import redis

from worker.queue.loaded import LIFE_S, MAX_ERRORS, LoadedState, RedisBoard, load_errors, loaded_models

ADA = LoadedState("ada", "1f2e3d4c5b6a", "ada@0001-1f2e3d4c5b6a", ("", "ada"), 1000.0, 512, "cpu")
EVE = LoadedState("eve", "aaaaaaaaaaaa", "", ("eve",), 900.0, 256)


def test_what_is_shown_replaces_what_was_and_is_gone_when_it_is_not_renewed(redis_client: redis.Redis) -> None:
    board = RedisBoard(redis_client, "host:1")
    board.show([ADA, EVE])
    RedisBoard(redis_client, "host:2").show([ADA])
    assert loaded_models(redis_client) == {"host:1": [EVE, ADA], "host:2": [ADA]}
    board.show([ADA])
    assert loaded_models(redis_client)["host:1"] == [ADA]
    assert ADA.is_default
    assert not EVE.is_default
    assert 0 < redis_client.ttl("models:host:1") <= LIFE_S
    board.show([])
    assert list(loaded_models(redis_client)) == ["host:2"]


def test_the_newest_failures_are_kept(redis_client: redis.Redis) -> None:
    board = RedisBoard(redis_client, "host:1")
    for number in range(MAX_ERRORS + 5):
        board.failed("ada", f"reason {number}")
    errors = load_errors(redis_client, 100)
    assert len(errors) == MAX_ERRORS
    assert (errors[0].worker, errors[0].reference, errors[0].reason) == ("host:1", "ada", f"reason {MAX_ERRORS + 4}")
