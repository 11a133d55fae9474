"""Keys that sign bundles in tests, as files."""

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from schemas.bundle.signature import SigningKey, signing_key


@dataclass(frozen=True)
class KeyPair:
    """The files of a private and a public key."""

    private: Path
    public: Path

    @property
    def signing(self) -> SigningKey:
        return signing_key(self.private)

    def sign(self, bundle: Path) -> None:
        """Sign a local bundle."""
        (bundle / "manifest.sig").write_bytes(self.signing.sign((bundle / "manifest.json").read_bytes()))


def new_keys(folder: Path, name: str) -> KeyPair:
    """A pair of that name, with the modes that are asked for."""
    pair = KeyPair(folder / f"{name}.key.pem", folder / f"{name}.pub.pem")
    key = Ed25519PrivateKey.generate()
    pair.private.touch(mode=0o600)
    pair.private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    pair.public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    pair.public.chmod(0o644)
    return pair
