"""What `stream-app api` and `stream-app sink` refuse before they start."""

from typing import Any

import pytest
import redis
import redis.asyncio

from schemas.config.settings import load_settings
from schemas.errors import SettingsError
from stream_app.api.stores import store_client
from stream_app.errors import StoreError
from stream_app.settings import StreamSettings


@pytest.mark.parametrize("token", ["", " ", "two words", "secret\n"])
def test_a_token_that_protects_nothing_or_no_client_can_send_is_refused(token: str) -> None:
    given = {"api.host": "0.0.0.0", "api.token": token}
    with pytest.raises(SettingsError, match=r"api\.token"):
        load_settings(StreamSettings, config=None, environ={}, overrides=given)


@pytest.mark.parametrize(
    "url",
    ["redis://:hunter#2@store:6379/0", "redis://:hunter/2@store:6379", "redis://:hunter?2@store", "redis://store:0",
     "rediss://store:99999", "valkey://[::1", "redis://"],
)  # fmt: skip
def test_a_store_that_cannot_be_read_is_refused_without_a_word_of_its_password(url: str) -> None:
    with pytest.raises(SettingsError, match=r"api\.store_url") as caught:
        load_settings(StreamSettings, config=None, environ={}, overrides={"api.store_url": url})
    assert "hunter" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://store", "valkeys://user:p%23w@store:6380/1", "unix:///run/store.sock?db=2"])
def test_stores(url: str) -> None:
    load_settings(StreamSettings, config=None, environ={}, overrides={"api.store_url": url})


@pytest.mark.parametrize("option", ["sokcet_timeout=1", "socket_timeout=soon"])
@pytest.mark.parametrize("kind", [redis.Redis, redis.asyncio.Redis], ids=["sink", "api"])
def test_an_option_that_the_stores_client_does_not_know_is_refused_at_once(kind: Any, option: str) -> None:
    """It would be a TypeError at the first lookup."""
    with pytest.raises(StoreError, match=r"^api\.store_url: .*" + option.partition("=")[0]) as caught:
        store_client(kind, f"redis://:hunter2@store:6379/0?{option}", seconds=1)
    assert "hunter2" not in str(caught.value)
    store_client(kind, "valkeys://user:p%23w@store:6380/1?health_check_interval=10", seconds=1)
