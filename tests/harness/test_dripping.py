"""A store that drips is slow, and gives what it has: else a scenario would not be what it says."""

import threading
import time
from contextlib import closing
from pathlib import Path

from schemas.bundle.files import open_bundle
from tests.harness.dripping import DrippingStore
from tests.harness.system import KINDS


def test_a_bundle_is_opened_as_late_as_the_store_is_slow(tmp_path: Path) -> None:
    bundle = KINDS["counts"](1).write(tmp_path / "registry", "v1")
    files = len(list(bundle.iterdir()))
    with closing(DrippingStore(bundle.parent, seconds=0.2)) as store:
        began = time.monotonic()
        assert open_bundle(store.uri(bundle), cache_dir=tmp_path / "cache").version == "v1"
        assert time.monotonic() - began >= files * 0.2


def test_what_stands_still_comes_once_it_is_told_to(tmp_path: Path) -> None:
    bundle = KINDS["counts"](1).write(tmp_path / "registry", "v1")
    came: list[str] = []
    with closing(DrippingStore(bundle.parent, seconds=3600)) as store:
        opening = threading.Thread(
            target=lambda: came.append(open_bundle(store.uri(bundle), cache_dir=tmp_path / "cache").version)
        )
        opening.start()
        opening.join(0.5)
        assert not came
        store.seconds = 0.0
        opening.join(60)
    assert came == ["v1"]
