"""Whatever a checkpoint's file holds: a run goes on from it, or it is refused and stays as it is."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load
from safetensors.numpy import save as as_safetensors

from tests.unit.odd_bytes import odd_json
from tests.unit.test_decoders import damaged
from tests.unit.trainer.builders import random_sessions
from trainer.models.gru4rec import Weights
from trainer.models.settings import Gru4RecSettings
from trainer.training import checkpoint as checkpoints
from trainer.training.checkpoint import CheckpointError
from trainer.training.fit import fit


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("run") / "run.safetensors"
    settings = Gru4RecSettings(hidden_size=2, batch_size=2, n_sample=2, epochs=1)
    fit(random_sessions(6, items=5), settings, checkpoint=file)
    return file


def about(content: bytes) -> dict[str, str]:
    """The metadata of a file."""
    size = int.from_bytes(content[:8], "little")
    found: dict[str, str] = json.loads(content[8 : 8 + size])["__metadata__"]
    return found


def vouched(content: bytes, told: bytes, odd: np.ndarray | None) -> bytes:
    """The file with other facts, and another array in the place of its first, and a digest of both."""
    arrays = load(content)
    if odd is not None:
        arrays[min(arrays)] = odd
    text = told.decode(errors="replace")
    return as_safetensors(arrays, metadata={"about": text, "sha256": checkpoints._digest(text, arrays)})


arrays = st.sampled_from([None, *(np.ones(shape, kind) for shape in [(), (0,), (3, 1)] for kind in ["f2", "u2", "?"])])


@given(data=st.data())
def test_any_checkpoint_is_gone_on_from_or_refused(saved: Path, data: st.DataObject) -> None:
    whole = saved.read_bytes()
    facts = about(whole)["about"].encode()
    content = data.draw(
        damaged(whole) | st.builds(vouched, st.just(whole), st.just(facts) | odd_json(facts), arrays) | st.binary()
    )
    file = saved.with_name("odd.safetensors")
    file.write_bytes(content)
    try:
        found = checkpoints.load(file, json.loads(facts)["identity"], Weights.of_tensors)
    except CheckpointError as error:
        str(error).encode()  # can be printed
    else:
        assert found is not None
    assert file.read_bytes() == content
