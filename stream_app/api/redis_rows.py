"""How the latest rankings lie in Redis or Valkey, and the one way in which they get there.

    <prefix>ranking:<session id>            hash: ranking (its JSON), partition and offset (of its click); expires
    <prefix>position:<topic id>:<partition> first offset of the rankings topic that is not in the rows

A batch of rankings and the position behind it are written together, and only where the position is still the one at
which the batch begins. So whatever is killed, each ranking counts once, and a sink that was frozen while its partition
moved writes nothing.
"""

from collections.abc import Mapping
from typing import Any, Final

from stream_app.api.latest import Latest

RANKING: Final = "ranking"

_APPLY: Final = """
local position = redis.call('GET', KEYS[1]) or ''
if position ~= ARGV[1] then return 0 end
for n = 2, #KEYS do
  local key, at = KEYS[n], 5 * (n - 2) + 2
  local partition, offset, expires, anew, ranking = unpack(ARGV, at + 1, at + 5)
  if anew == '1' then redis.call('DEL', key) end
  if ranking ~= '' then
    local stored = redis.call('HMGET', key, 'partition', 'offset')
    if stored[1] ~= partition or tonumber(stored[2]) < tonumber(offset) then
      redis.call('HSET', key, 'partition', partition, 'offset', offset, 'ranking', ranking)
      redis.call('PEXPIREAT', key, expires)
    end
  end
end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""


def ranking_key(prefix: bytes, session: bytes) -> bytes:
    """The key of a session's hash."""
    return prefix + b"ranking:" + session


class RedisRows:
    """The rows of a deployment, for the sink that writes them. Raises what the client raises."""

    def __init__(self, client: Any, prefix: str, topic_id: str, *, ttl_ms: int) -> None:
        self._client = client
        self._prefix = prefix.encode()
        self._topic_id = topic_id
        self._ttl_ms = ttl_ms
        self._apply = client.register_script(_APPLY)

    def position(self, partition: int) -> int | None:
        """The first offset of a partition that is not in the rows, None where none is."""
        told = self._client.get(self._position_key(partition))
        return None if told is None else int(told)

    def apply(self, partition: int, changes: Mapping[bytes, Latest], before: int | None, after: int) -> bool:
        """What the rankings of a partition from `before` to `after` come to; False where it is not at `before`."""
        keys = [self._position_key(partition)]
        arguments: list[bytes | int] = [b"" if before is None else before, after]
        for session, latest in changes.items():
            keys.append(ranking_key(self._prefix, session))
            expires = latest.at_ms + self._ttl_ms
            arguments += [latest.partition, latest.offset, expires, int(latest.anew), latest.value]
        return bool(self._apply(keys=keys, args=arguments))

    def _position_key(self, partition: int) -> bytes:
        return self._prefix + f"position:{self._topic_id}:{partition}".encode()
