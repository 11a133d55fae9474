"""`trainer sign`, and which keys a trainer starts with."""

import subprocess
import sys
from pathlib import Path

import pytest

from schemas.bundle.files import open_bundle
from schemas.bundle.signature import trusted_keys
from schemas.config.settings import load_settings
from schemas.errors import SettingsError
from tests.bundle_keys import KeyPair, new_keys
from tests.contract.tiny_model import TinyModel
from trainer.service.assembly import registry_of, signing_key_of
from trainer.service.settings import TrainerRoot


@pytest.fixture
def keys(tmp_path: Path) -> KeyPair:
    return new_keys(tmp_path, "ours")


def root_with(keys: KeyPair | None, *trusted: Path) -> TrainerRoot:
    given = {"bundles.trusted_keys": trusted, "trainer.signing_key": None if keys is None else keys.private}
    return load_settings(TrainerRoot, config=None, environ={}, overrides=given)


def test_the_command_signs_what_is_published(keys: KeyPair, tmp_path: Path) -> None:
    bundle = TinyModel().write(tmp_path / "registry")
    (tmp_path / "nextclick.toml").write_text(
        f'bundles.trusted_keys = ["{keys.public}"]\ntrainer.signing_key = "{keys.private}"\n'
    )
    command = [sys.executable, "-m", "trainer", "sign", "v1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "signed v1\n"), done.stderr
    assert open_bundle(bundle, trusted=trusted_keys([keys.public])).version == "v1"


def test_a_trainer_does_not_start_to_publish_what_nobody_would_serve(keys: KeyPair, tmp_path: Path) -> None:
    theirs = new_keys(tmp_path, "theirs")
    with pytest.raises(SettingsError, match=r"trainer\.signing_key is not set: nobody would serve"):
        registry_of(root_with(None, keys.public), "writer")
    with pytest.raises(SettingsError, match=r"the public key of .*ours\.key\.pem is not among bundles\.trusted_keys"):
        registry_of(root_with(keys, theirs.public), "writer")
    registry_of(root_with(None, keys.public))  # to look, and to promote, takes no private key
    assert signing_key_of(root_with(None)) is None
    for root in (root_with(keys), root_with(keys, theirs.public, keys.public)):
        assert signing_key_of(root) is not None
