"""Whatever a key's or a signature's file holds: it is used, or refused with the name of the setting, untold."""

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.bundle.files import open_bundle
from schemas.bundle.signature import SigningKey, TrustedKeys, signing_key, trusted_keys
from schemas.errors import BundleError, SettingsError
from tests.bundle_keys import new_keys
from tests.contract.tiny_model import TinyNone
from tests.unit.test_decoders import damaged

# The same in every run, as the examples are.
KEYS: list[object] = [
    ed25519.Ed25519PrivateKey.from_private_bytes(b"k" * 32),
    ed448.Ed448PrivateKey.from_private_bytes(b"k" * 57),
    x25519.X25519PrivateKey.from_private_bytes(b"k" * 32),
    ec.derive_private_key(4711, ec.SECP256R1()),
]


def private(key: object, encryption: KeySerializationEncryption, encoding: Encoding = Encoding.PEM) -> bytes:
    return key.private_bytes(encoding, PrivateFormat.PKCS8, encryption)  # type: ignore[attr-defined,no-any-return]


def public(key: object, encoding: Encoding = Encoding.PEM) -> bytes:
    found = key.public_key()  # type: ignore[attr-defined]
    return bytes(found.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo))


PEMS = [
    *(private(key, NoEncryption()) for key in KEYS),
    *(public(key) for key in KEYS),
    private(KEYS[0], BestAvailableEncryption(b"x")),
    b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    b"",
]


def pem(label: bytes, der: bytes) -> bytes:
    return b"-----BEGIN %s-----\n%s-----END %s-----\n" % (label, base64.encodebytes(der), label)


ders = st.sampled_from(KEYS).flatmap(
    lambda key: (
        damaged(private(key, NoEncryption(), Encoding.DER)).map(lambda der: pem(b"PRIVATE KEY", der))
        | damaged(public(key, Encoding.DER)).map(lambda der: pem(b"PUBLIC KEY", der))
    )
)
pems = ders | st.sampled_from(PEMS).flatmap(lambda pem: st.just(pem) | damaged(pem)) | st.binary(max_size=80)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "key.pem"
    file.touch(mode=0o600)
    return file


def of_unknown_kind(der: bytes) -> bytes:
    """With another number in the place of Ed25519's, which nobody has given to a kind of keys."""
    return der.replace(b"\x2b\x65\x70", b"\x2b\x65\x7f")


@given(content=pems)
@example(content=pem(b"PUBLIC KEY", of_unknown_kind(public(KEYS[0], Encoding.DER))))
@example(content=pem(b"PRIVATE KEY", of_unknown_kind(private(KEYS[0], NoEncryption(), Encoding.DER))))
def test_any_key_is_used_or_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    try:
        assert isinstance(trusted_keys([file]), TrustedKeys)
    except SettingsError as error:
        assert "bundles.trusted_keys: " in str(error)  # noqa: PT017 - either is right
    try:
        assert isinstance(signing_key(file), SigningKey)
    except SettingsError as error:
        assert "trainer.signing_key: " in str(error)  # noqa: PT017 - either is right
    assert file.read_bytes() == content


@given(data=st.data())
def test_any_signature_but_the_right_one_is_refused(file: Path, data: st.DataObject) -> None:
    if not (bundle := file.parent / "v1").exists():
        new_keys(file.parent, "ours").sign(TinyNone().write(file.parent))
    right = (bundle / "manifest.sig").read_bytes()
    trusted = trusted_keys([file.parent / "ours.pub.pem"])
    signature = data.draw(damaged(right) | st.binary(max_size=100) | st.just(right + b"\n"))
    (bundle / "manifest.sig").write_bytes(signature)
    try:
        if signature != right:
            with pytest.raises(BundleError, match=r"^manifest\.sig: "):
                open_bundle(bundle, trusted=trusted)
    finally:
        (bundle / "manifest.sig").write_bytes(right)
