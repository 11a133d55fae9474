"""Values as people, or nobody sane, would write them in a settings file."""

import json

from hypothesis import strategies as st

from trainer.models.registry import FAMILIES

texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", " ", "0", "-1", "1e400", "nan", "inf", "9" * 30, "9" * 5000, "5m", "1e9d", "true", "a,b", "\0"]
    ),
    st.sampled_from(
        ["s3://u:p@h/x", "http://[", "[]", "[1", '["a"]', "{}", "[" * 5000, "localhost:9092", "a b", "é" * 300]
    ),
    st.sampled_from(["champion", "SASL_SSL", "json", "clicks", "*", "redis://h:99999", "0.0.0.0", *FAMILIES]),
)
values = st.recursive(
    texts.map(lambda text: json.dumps(text, ensure_ascii=False))
    | st.integers().map(str)
    | st.floats().map(str)
    | st.sampled_from(
        ["true", "false", "0", "1", "nan", "-inf", "9" * 5000, f"0x{'f' * 5000}", "2024-01-01", "07:00:00"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]")
        | st.dictionaries(st.sampled_from(["a", "view", "port"]), inner, max_size=2).map(
            lambda table: f"{{{', '.join(f'{name} = {value}' for name, value in table.items())}}}"
        )
    ),
    max_leaves=4,
)
