"""Explanations rank with a bundle that is opened once, and one at a time."""

from pathlib import Path
from typing import Any

import pytest

from schemas.bundle.files import manifest_digest
from schemas.errors import BundleError
from schemas.messages.announcement import ModelAnnouncement
from stream_app.api import kept_bundle
from stream_app.api.kept_bundle import KeptBundle
from stream_app.settings import WorkerSettings
from stream_app.tools import announced as bundles
from stream_app.tools.announced import ModelError
from tests.contract.tiny_model import TinyModel


def test_what_is_announced_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announced: list[ModelAnnouncement] = []
    worker = WorkerSettings(bundle_locations=(str(tmp_path),))
    kept = KeptBundle(worker, lambda: announced[-1] if announced else None, None)
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
        KeptBundle(WorkerSettings(bundle_locations=(str(tmp_path / "registry"),)), lambda: announced, None).opened()


def test_a_bundle_is_tried_elsewhere_first_if_memory_is_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def try_bundle(uri: str, **limits: Any) -> None:
        assert (limits["memory_mb"], limits["seconds"]) == (300, 20.0)
        raise BundleError("rank.onnx: takes more")

    monkeypatch.setattr(bundles, "try_bundle", try_bundle)
    folder = TinyModel().write(tmp_path)
    announced = ModelAnnouncement("champion", "v1", str(folder), manifest_digest(folder), 0, "test")
    KeptBundle(WorkerSettings(), lambda: announced, None).opened()
    worker = WorkerSettings(bundle_memory_mb=300, bundle_timeout=20)
    with pytest.raises(ModelError, match=r"the bundle of v1 cannot be opened: rank\.onnx: takes more"):
        KeptBundle(worker, lambda: announced, None).opened()
