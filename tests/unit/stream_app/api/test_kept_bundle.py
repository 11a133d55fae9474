"""Explanations rank with a bundle that is opened once, and one at a time."""

from pathlib import Path

import pytest

from schemas.bundle.files import manifest_digest
from schemas.messages.announcement import ModelAnnouncement
from stream_app.api import kept_bundle
from stream_app.api.kept_bundle import KeptBundle
from stream_app.tools.announced import ModelError
from tests.contract.tiny_model import TinyModel


def test_what_is_announced_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announced: list[ModelAnnouncement] = []
    kept = KeptBundle((str(tmp_path),), lambda: announced[-1] if announced else None, None)
    with pytest.raises(ModelError, match="no model is announced"):
        kept.opened()
    for version in ("v1", "v2"):
        folder = TinyModel().write(tmp_path, version)
        announced.append(ModelAnnouncement("champion", version, str(folder), manifest_digest(folder), 0, "test"))
        first = kept.opened()
        assert first.terms.model.version == version
        assert kept.opened() is first
    monkeypatch.setattr(kept_bundle, "MOST_KEPT_BYTES", first.size - 1)
    announced.append(announced[0])
    assert kept.opened() is not kept.opened(), "too large to be kept"


def test_a_bundle_from_elsewhere_is_not_opened(tmp_path: Path) -> None:
    folder = TinyModel().write(tmp_path)
    announced = ModelAnnouncement("champion", "v1", str(folder), manifest_digest(folder), 0, "test")
    with pytest.raises(ModelError, match=r"lies in none of worker\.bundle_locations"):
        KeptBundle((str(tmp_path / "registry"),), lambda: announced, None).opened()
