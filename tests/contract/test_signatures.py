"""Signed bundles: what a trusted key signed opens, and nothing else, here and behind a URL."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from schemas import durable
from schemas.bundle.files import manifest_digest, open_bundle
from schemas.bundle.signature import PREFIX, TrustedKeys, signing_key, trusted_keys
from schemas.errors import BundleError, SettingsError
from tests.bundle_keys import KeyPair, new_keys
from tests.contract.tiny_model import TinyModel, TinyNone, TinyWindow, seal
from tests.doc_pages import REPOSITORY, blocks

STORE = "memory://signed"
UNSIGNED = "missing in .*allows no unsigned bundle"
WRONG = "is no signature of this manifest by a key of bundles.trusted_keys"


@pytest.fixture
def keys(tmp_path: Path) -> KeyPair:
    return new_keys(tmp_path, "ours")


@pytest.fixture
def trusted(keys: KeyPair) -> TrustedKeys | None:
    return trusted_keys([keys.public])


@pytest.fixture
def bundle(tmp_path: Path, keys: KeyPair) -> Path:
    folder = TinyModel().write(tmp_path)
    keys.sign(folder)
    return folder


@pytest.fixture
def store() -> Iterator[Callable[[Path], str]]:
    """Uploads a folder as it is; returns its URL."""
    filesystem = fsspec.filesystem("memory")

    def upload(folder: Path) -> str:
        for path in folder.iterdir():
            filesystem.pipe_file(f"/signed/{folder.name}/{path.name}", path.read_bytes())
        return f"{STORE}/{folder.name}"

    yield upload
    filesystem.rm("/signed", recursive=True)


def test_a_signed_bundle_opens_with_keys_and_without(
    bundle: Path, trusted: TrustedKeys, store: Callable[[Path], str], tmp_path: Path
) -> None:
    (bundle / durable.unfinished("manifest.sig")).write_bytes(b"half")  # of a `trainer sign` that was killed
    for keys in (trusted, None):
        assert open_bundle(bundle, trusted=keys).version == "v1"
        assert open_bundle(store(bundle), trusted=keys, cache_dir=tmp_path / "cache").version == "v1"


@pytest.mark.parametrize("tiny", [TinyModel(), TinyWindow(), TinyNone()], ids=["recurrent", "window", "none"])
@pytest.mark.parametrize("sealed", [False, True], ids=["", "its checksum put right"])
def test_a_byte_of_any_file_is_refused(
    keys: KeyPair, trusted: TrustedKeys, tmp_path: Path, tiny: TinyModel, sealed: bool
) -> None:
    """Whoever can write to the registry can put the manifest's checksums right, too."""
    folder = tiny.write(tmp_path)
    keys.sign(folder)
    for path in sorted(folder.iterdir()):
        before = {file: file.read_bytes() for file in folder.iterdir()}
        data = bytearray(before[path])
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        if sealed and path.name not in ("manifest.json", "manifest.sig"):
            seal(folder)
        own = {"manifest.json": WRONG, "manifest.sig": WRONG}.get(path.name, f"^{path.name}: its SHA-256")
        with pytest.raises(BundleError, match=WRONG if sealed else own):
            open_bundle(folder, trusted=trusted)
        for file, content in before.items():
            file.write_bytes(content)
    assert open_bundle(folder, trusted=trusted).version == "v1"


def stripped(bundle: Path, _: Path) -> None:
    (bundle / "manifest.sig").unlink()


def emptied(bundle: Path, _: Path) -> None:
    (bundle / "manifest.sig").write_bytes(b"")


def of_another_key(bundle: Path, tmp_path: Path) -> None:
    new_keys(tmp_path, "theirs").sign(bundle)


def of_another_version(bundle: Path, tmp_path: Path) -> None:
    other = TinyModel().write(tmp_path, "v2")
    KeyPair(tmp_path / "ours.key.pem", tmp_path / "ours.pub.pem").sign(other)
    shutil.copy(other / "manifest.sig", bundle / "manifest.sig")


def of_the_manifest_alone(bundle: Path, tmp_path: Path) -> None:
    """What the same key signed for another purpose must not be taken for a bundle's signature."""
    key = signing_key(tmp_path / "ours.key.pem")._key
    (bundle / "manifest.sig").write_bytes(key.sign((bundle / "manifest.json").read_bytes()))


def too_long(bundle: Path, _: Path) -> None:
    with (bundle / "manifest.sig").open("ab") as file:
        file.write(b"\n")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (stripped, UNSIGNED),
        (emptied, WRONG),
        (of_another_key, WRONG),
        (of_another_version, WRONG),
        (of_the_manifest_alone, WRONG),
        (too_long, "more than 64 bytes"),
    ],
)
def test_no_other_signature_is_taken(
    *,
    bundle: Path,
    trusted: TrustedKeys,
    store: Callable[[Path], str],
    tmp_path: Path,
    change: Callable[[Path, Path], None],
    problem: str,
) -> None:
    change(bundle, tmp_path)
    with pytest.raises(BundleError, match=f"^manifest.sig: .*{problem}"):
        open_bundle(bundle, trusted=trusted)
    with pytest.raises(BundleError, match=f"^manifest.sig: .*{problem}"):
        open_bundle(store(bundle), trusted=trusted, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()  # nothing else was fetched


def test_a_key_is_replaced_by_trusting_both_for_a_while(bundle: Path, keys: KeyPair, tmp_path: Path) -> None:
    new = new_keys(tmp_path, "new")
    both, new_alone = trusted_keys([keys.public, new.public]), trusted_keys([new.public])
    assert open_bundle(bundle, trusted=both).version == "v1"
    with pytest.raises(BundleError, match=WRONG):
        open_bundle(bundle, trusted=new_alone)
    new.sign(bundle)
    for trusted in (both, new_alone):
        assert open_bundle(bundle, trusted=trusted).version == "v1"


def test_a_copy_from_before_there_were_keys_is_not_trusted(
    bundle: Path, keys: KeyPair, trusted: TrustedKeys, store: Callable[[Path], str], tmp_path: Path
) -> None:
    stripped(bundle, tmp_path)
    uri, cache, digest = store(bundle), tmp_path / "cache", manifest_digest(bundle)
    open_bundle(uri, manifest_sha256=digest, cache_dir=cache)
    with pytest.raises(BundleError, match=UNSIGNED):
        open_bundle(uri, manifest_sha256=digest, trusted=trusted, cache_dir=cache)
    keys.sign(bundle)
    store(bundle)
    for _ in range(2):
        assert open_bundle(uri, manifest_sha256=digest, trusted=trusted, cache_dir=cache).version == "v1"
        fsspec.filesystem("memory").rm("/signed/v1/rank.onnx", recursive=True)  # the cache has it, signed
        fsspec.filesystem("memory").pipe_file("/signed/v1/rank.onnx", b"")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_the_commands_of_the_page(tmp_path: Path) -> None:
    """Keys by OpenSSL sign here, and OpenSSL verifies what was signed."""
    make, verify = (
        block for page in ("security", "bundle") for block in blocks(REPOSITORY / "docs" / f"{page}.md", "sh")
        if "openssl" in block
    )  # fmt: skip
    subprocess.run(["sh", "-euc", make], cwd=tmp_path, check=True, capture_output=True)
    pair = KeyPair(tmp_path / "bundles.key.pem", tmp_path / "bundles.pub.pem")
    folder = TinyModel().write(tmp_path)
    pair.sign(folder)
    assert open_bundle(folder, trusted=trusted_keys([pair.public])).version == "v1"
    shown = subprocess.run(["sh", "-euc", verify], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "Signature Verified Successfully" in shown
    assert repr(PREFIX.decode())[1:-1] in verify


# -- key files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("private", "public"),
    [(0o644, None), (0o604, None), (0o620, None), (None, 0o666), (None, 0o664)],
    ids=lambda mode: "" if mode is None else f"{mode:04o}",
)
def test_keys_that_others_get_at_are_refused(keys: KeyPair, private: int | None, public: int | None) -> None:
    path, mode, read = (
        (keys.private, private, signing_key) if private else (keys.public, public, lambda path: trusted_keys([path]))
    )
    path.chmod(mode or 0)
    with pytest.raises(SettingsError, match=f"{path} has the mode {mode:04o}, .* `chmod .* {path}`"):
        read(path)


def test_a_group_may_read_a_private_key(keys: KeyPair) -> None:
    """So Kubernetes mounts a secret for a user that is not root."""
    keys.private.chmod(0o440)
    signing_key(keys.private)


def pem(key: Ed25519PrivateKey | X25519PrivateKey, password: bytes | None = None) -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "holds no private key in PEM"),
        (Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
         "holds no private key in PEM"),
        (pem(X25519PrivateKey.generate()), "holds a key that is not Ed25519"),
        (pem(Ed25519PrivateKey.generate(), b"secret"), "is encrypted; use a key without a password"),
    ],
    ids=["empty", "public", "x25519", "encrypted"],
)  # fmt: skip
def test_what_is_no_private_key_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(SettingsError, match=f"^trainer.signing_key: {re.escape(str(path))} {problem}"):
        signing_key(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"ours", "holds no public key in PEM"),
        (pem(Ed25519PrivateKey.generate()), "holds no public key in PEM"),
        (X25519PrivateKey.generate().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
         "holds a key that is not Ed25519"),
    ],
    ids=["text", "private", "x25519"],
)  # fmt: skip
def test_what_is_no_public_key_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    path.chmod(0o644)
    with pytest.raises(SettingsError, match=f"^bundles.trusted_keys: {re.escape(str(path))} {problem}"):
        trusted_keys([path])


def test_a_missing_key_is_refused(tmp_path: Path) -> None:
    for read in (signing_key, lambda path: trusted_keys([path])):
        with pytest.raises(SettingsError, match="cannot be read: No such file or directory"):
            read(tmp_path / "nowhere.pem")
