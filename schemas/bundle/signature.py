"""Signatures of bundles: whoever has the private key vouches for a manifest, and the manifest for every other file.

`manifest.sig` holds the 64 bytes of an Ed25519 signature (RFC 8032) over `PREFIX` and the bytes of `manifest.json`.
Keys are PEM files, as OpenSSL writes them.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from schemas.bundle.manifest import SIGNATURE
from schemas.errors import BundleError, SettingsError

if TYPE_CHECKING:  # a tenth of a second, for those who have set a key
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PREFIX: Final = b"nextclick bundle\n"
"""Keeps a signature of something else by the same key from being one of a bundle."""
SIGNATURE_BYTES: Final = 64
_LARGEST_KEY_FILE: Final = 64 * 1024
_NOT_OF_A_SECRET: Final = stat.S_IWGRP | stat.S_IRWXO  # a group may read it: so Kubernetes mounts secrets
_NOT_OF_A_PUBLIC: Final = stat.S_IWGRP | stat.S_IWOTH


class TrustedKeys:
    """The public keys of which one must have signed a bundle."""

    def __init__(self, keys: Sequence["Ed25519PublicKey"]) -> None:
        self._keys = keys

    def check(self, manifest: bytes, signature: bytes) -> None:
        """Raise BundleError unless one of the keys signed this manifest."""
        from cryptography.exceptions import InvalidSignature

        for key in self._keys:
            try:
                key.verify(signature, PREFIX + manifest)
            except InvalidSignature:
                continue
            return
        raise BundleError(
            f"{SIGNATURE}: is no signature of this manifest by a key of bundles.trusted_keys; the bundle was changed "
            "or moved, or signed with another key"
        )

    def include(self, key: "SigningKey") -> bool:
        """Whether what the key signs is trusted."""
        return key.public in [one.public_bytes_raw() for one in self._keys]


class SigningKey:
    """The private key that signs bundles."""

    def __init__(self, key: "Ed25519PrivateKey") -> None:
        self._key = key

    @property
    def public(self) -> bytes:
        """The raw public key, 32 bytes."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, manifest: bytes) -> bytes:
        """What `manifest.sig` holds for a manifest of these bytes."""
        return self._key.sign(PREFIX + manifest)


def trusted_keys(paths: Sequence[Path]) -> TrustedKeys | None:
    """The keys of `bundles.trusted_keys`, None without any. Raises SettingsError for a file that cannot be used."""
    if not paths:
        return None
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    keys = []
    for path in paths:
        data = _read("bundles.trusted_keys", path, _NOT_OF_A_PUBLIC, "chmod go-w")
        try:
            key = load_pem_public_key(data)
        except (ValueError, UnsupportedAlgorithm) as error:  # the other: of a kind or curve that it does not know
            raise SettingsError(f"bundles.trusted_keys: {path} holds no public key in PEM: {error}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise SettingsError(f"bundles.trusted_keys: {path} holds a key that is not Ed25519")
        keys.append(key)
    return TrustedKeys(keys)


def signing_key(path: Path) -> SigningKey:
    """The key of `trainer.signing_key`. Raises SettingsError for a file that cannot be used or that others may read."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read("trainer.signing_key", path, _NOT_OF_A_SECRET, "chmod 600")
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError as error:
        raise SettingsError(f"trainer.signing_key: {path} is encrypted; use a key without a password") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        # The library's message is left out: it must not tell what a secret file holds.
        raise SettingsError(f"trainer.signing_key: {path} holds no private key in PEM") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError(f"trainer.signing_key: {path} holds a key that is not Ed25519")
    return SigningKey(key)


def _read(setting: str, path: Path, forbidden: int, mend: str) -> bytes:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(_LARGEST_KEY_FILE)
    except OSError as error:
        raise SettingsError(f"{setting}: {path} cannot be read: {error.strerror}") from error
    if mode & forbidden:
        raise SettingsError(f"{setting}: {path} has the mode {mode:04o}, which lets others at the key: `{mend} {path}`")
    return data
