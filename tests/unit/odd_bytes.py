"""Files that somebody damaged, or wrote in the place of ours."""

from hypothesis import strategies as st

from tests.unit.test_decoders import changed, damaged

_DEEP = b"[" * 20_000


def odd_json(example: bytes) -> st.SearchStrategy[bytes]:
    """The example with other values or bytes in some of its places, a field more that is nested too deep, or any."""
    nested = example.rstrip()[:-1] + b', "more": ' + _DEEP
    return (
        changed(example) | damaged(example) | st.sampled_from([b"", b"\0" * 64, _DEEP, nested]) | st.binary(max_size=20)
    )
