"""A broker that wants logins: certificates, listeners with TLS and SASL, users, and an endpoint for tokens."""

import base64
import json
import re
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from deploy.kafka import LocalKafka
from deploy.kafka.ports import free_ports
from deploy.kafka.properties import HOST
from deploy.strimzi.rights import Right
from tests.patience import PATIENCE

USER = "worker"
LEAVER = "leaver"
"""Another user, whose password is changed."""
PASSWORD = "open=sesame, %41 'twice'"
"""Signs that files, URLs and SCRAM's own messages give a meaning of their own."""
KEY_PASSWORD = "the-key-of-the-key"
CLIENT_ID = "worker"
CLIENT_SECRET = "a-client-secret"

LISTENERS: Mapping[str, str] = {
    "PLAINTEXT": "PLAINTEXT",  # the test's own way in, and the broker's
    "PASSWORD": "SASL_PLAINTEXT",
    "PASSWORD_TLS": "SASL_SSL",
    "MUTUAL_TLS": "SSL",
    "OTHER_NAME": "SASL_SSL",  # its certificate is for another host
    "TOKEN_TLS": "SASL_SSL",
}
"""Name and protocol of each listener of the broker."""
_MODULES = "org.apache.kafka.common.security"
_UPPER = re.compile(r"(?<!^)(?=[A-Z])")
_RESOURCES = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactionalId": ResourceType.TRANSACTIONAL_ID,
}


@dataclass(frozen=True)
class Identity:
    """A certificate and its private key, both in PEM."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Authority:
    """A certificate authority in a folder. Raises CalledProcessError when openssl refuses."""

    folder: Path
    name: str = "ca"

    def __post_init__(self) -> None:
        config = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(self.key))
        subject = ("-subj", f"/CN={self.name}", "-days", "2")
        _openssl("req", "-x509", *key, *subject, *config, "-out", str(self.certificate))

    @property
    def certificate(self) -> Path:
        return self.folder / f"{self.name}.pem"

    @property
    def key(self) -> Path:
        return self.folder / f"{self.name}.key"

    def issue(self, name: str, *, alternative: str, password: str | None = None) -> Identity:
        """A certificate for `alternative` (as in `IP:127.0.0.1`), its key under a password when there is one."""
        made = Identity(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.extensions"
        hidden = ("-passout", f"pass:{password}") if password else ("-nodes",)
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", *hidden, "-keyout", str(made.key))
        _openssl("req", *key, "-subj", f"/CN={name}", "-out", str(request))
        extensions.write_text(
            f"subjectAltName={alternative}\nextendedKeyUsage=serverAuth,clientAuth\n"
            "keyUsage=digitalSignature\nauthorityKeyIdentifier=keyid\n"
        )
        issuer = ("-CA", str(self.certificate), "-CAkey", str(self.key), "-CAcreateserial", "-days", "2")
        written = ("-extfile", str(extensions), "-out", str(made.certificate))
        _openssl("x509", "-req", "-in", str(request), *issuer, *written)
        return made


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)


@dataclass(frozen=True)
class SecureKafka:
    """A running broker with every listener of LISTENERS."""

    addresses: Mapping[str, str]
    """host:port of each listener."""
    authority: Authority
    login: Identity
    """Of a token endpoint on this machine."""
    client: Identity
    """Of a client that the broker trusts; its key is under KEY_PASSWORD."""

    def set_password(self, user: str, password: str) -> None:
        """SCRAM with both hashes. Connections that are open stay open."""
        admin = AdminClient({"bootstrap.servers": self.addresses["PLAINTEXT"]})
        for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):  # Kafka takes one a request
            change = UserScramCredentialUpsertion(user, ScramCredentialInfo(mechanism, 4096), password.encode())
            for changed in admin.alter_user_scram_credentials([change], request_timeout=PATIENCE).values():
                changed.result(PATIENCE)

    def allow(self, user: str, allowed: Iterable[Right]) -> None:
        """Give a user rights, on every broker before this returns."""
        rules = [
            AclBinding(
                _RESOURCES[right.kind],
                right.name,
                ResourcePatternType.PREFIXED if right.is_prefix else ResourcePatternType.LITERAL,
                f"User:{user}",
                "*",
                AclOperation[_UPPER.sub("_", operation).upper()],
                AclPermissionType.ALLOW,
            )
            for right in allowed
            for operation in right.operations
        ]
        admin = AdminClient({"bootstrap.servers": self.addresses["PLAINTEXT"]})
        for made in admin.create_acls(rules, request_timeout=PATIENCE).values():
            made.result(PATIENCE)


@contextmanager
def secure_kafka(folder: Path, log_dir: Path) -> Iterator[SecureKafka]:
    """One broker, its certificates and users."""
    authority = Authority(folder)
    server = authority.issue("broker", alternative=f"IP:{HOST}")
    other = authority.issue("elsewhere", alternative="DNS:elsewhere.example")
    client = authority.issue(USER, alternative="DNS:worker.example", password=KEY_PASSWORD)
    *ports, controller = free_ports(len(LISTENERS) + 1)
    addresses = {name: f"{HOST}:{port}" for name, port in zip(LISTENERS, ports, strict=True)}
    stores = {name: _key_store(folder / f"{name}.keystore", whose) for name, whose in _identities(server, other)}
    overrides = _listeners(addresses, controller) | _logins() | _tls(stores, authority.certificate) | _authorizer()
    with LocalKafka(ports=[ports[0]], overrides=overrides, log_dir=log_dir):
        kafka = SecureKafka(addresses, authority, server, client)
        kafka.set_password(USER, PASSWORD)
        yield kafka


def _identities(server: Identity, other: Identity) -> list[tuple[str, Identity]]:
    secured = [name for name, protocol in LISTENERS.items() if protocol.endswith("SSL")]
    return [(name, other if name == "OTHER_NAME" else server) for name in secured]


def _key_store(path: Path, identity: Identity) -> Path:
    path.write_text(identity.key.read_text() + identity.certificate.read_text())
    return path


def _listeners(addresses: Mapping[str, str], controller: int) -> dict[str, str]:
    clients = [f"{name}://{address}" for name, address in addresses.items()]
    protocols = {**LISTENERS, "CONTROLLER": "PLAINTEXT"}
    return {
        "listeners": ",".join([*clients, f"CONTROLLER://{HOST}:{controller}"]),
        "advertised.listeners": ",".join(clients),
        "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
        "controller.quorum.voters": f"0@{HOST}:{controller}",
    }


def _logins() -> dict[str, str]:
    plain = f'{_MODULES}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
    scram = f"{_MODULES}.scram.ScramLoginModule required;"
    # Without a validator of its own, Kafka takes tokens that nobody signed: the broker's half is not what is tested.
    bearer = f'{_MODULES}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";'
    settings = {"sasl.enabled.mechanisms": "PLAIN"}
    for name in ("password", "password_tls", "other_name"):
        prefix = f"listener.name.{name}"
        settings[f"{prefix}.sasl.enabled.mechanisms"] = "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512"
        settings[f"{prefix}.plain.sasl.jaas.config"] = plain
        for size in (256, 512):
            settings[f"{prefix}.scram-sha-{size}.sasl.jaas.config"] = scram
    settings["listener.name.token_tls.sasl.enabled.mechanisms"] = "OAUTHBEARER"
    settings["listener.name.token_tls.oauthbearer.sasl.jaas.config"] = bearer
    return settings


def _authorizer() -> dict[str, str]:
    """Whoever is not among these may do what rules allow, and nothing else."""
    everything = ("ANONYMOUS", USER, f"CN={USER}", LEAVER)
    return {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": ";".join(f"User:{name}" for name in everything),
    }


def _tls(stores: Mapping[str, Path], authority: Path) -> dict[str, str]:
    settings = {}
    for name, store in stores.items():
        prefix = f"listener.name.{name.lower()}"
        settings[f"{prefix}.ssl.keystore.type"] = settings[f"{prefix}.ssl.truststore.type"] = "PEM"
        settings[f"{prefix}.ssl.keystore.location"] = str(store)
        settings[f"{prefix}.ssl.truststore.location"] = str(authority)
        settings[f"{prefix}.ssl.client.auth"] = "required" if name == "MUTUAL_TLS" else "none"
    return settings


# -- tokens -----------------------------------------------------------------------------------------------------------


@dataclass
class TokenEndpoint:
    """Gives a token to who sends CLIENT_ID and CLIENT_SECRET as OAuth 2.0's client credentials grant wants them."""

    url: str
    tokens: dict[str, str] = field(default_factory=dict)
    """Every token given out, with the User-Agent that asked for it."""
    lifetime: float = 300
    """Seconds, as told to the client. To the broker every token is good for minutes."""
    refuses: bool = False

    def answer(self, headers: Mapping[str, str], form: Mapping[str, list[str]]) -> tuple[int, dict[str, object]]:
        basic = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        if self.refuses or headers.get("Authorization") != f"Basic {basic}":
            return 401, {"error": "invalid_client"}
        if form.get("grant_type") != ["client_credentials"]:
            return 400, {"error": "unsupported_grant_type"}
        now = int(time.time())
        claims = {"sub": USER, "iat": now, "exp": now + 300, "scope": " ".join(form.get("scope", []))}
        token = f"{_part({'alg': 'none'})}.{_part(claims | {'jti': len(self.tokens)})}."
        self.tokens[token] = headers.get("User-Agent", "")
        return 200, {"access_token": token, "token_type": "Bearer", "expires_in": self.lifetime}


def _part(content: Mapping[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


@contextmanager
def token_endpoint(identity: Identity) -> Iterator[TokenEndpoint]:
    """Listens, over TLS, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            status, content = endpoint.answer(dict(self.headers), urllib.parse.parse_qs(body))
            sent = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name for it
            """Nothing on standard error."""

    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(identity.certificate, identity.key)
    with ThreadingHTTPServer((HOST, 0), Handler) as server:
        # The handshake when a connection is read first, in its own thread: one that is broken off must not end others.
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        endpoint = TokenEndpoint(f"https://{HOST}:{server.server_address[1]}/token")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield endpoint
        finally:
            server.shutdown()
            thread.join()
