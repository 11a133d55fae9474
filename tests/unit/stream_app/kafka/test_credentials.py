"""The same connection settings for Faust as for librdkafka: TLS, passwords and tokens."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import faust
import pytest
from aiohttp import web

from schemas.config.settings import KafkaConnection
from stream_app.kafka.credentials import ClientCredentialsToken, TokenError, faust_credentials, ssl_context

SECRET = "open sesame"


@dataclass(frozen=True)
class Certificate:
    certificate: str
    key: str


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate signed by itself, its key under a password."""
    folder = tmp_path_factory.mktemp("tls")
    files = Certificate(str(folder / "own.pem"), str(folder / "own.key"))
    subject = ["-subj", "/CN=localhost", "-days", "2", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command = ["openssl", "req", "-x509", *subject, "-passout", f"pass:{SECRET}"]
    try:
        subprocess.run([*command, "-keyout", files.key, "-out", files.certificate], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs the openssl command to make a certificate")
    return files


def test_a_plain_connection_has_no_credentials() -> None:
    assert faust_credentials(KafkaConnection()) is None


@pytest.mark.parametrize("checked", [True, False])
def test_tls_verifies_the_broker_and_its_name_unless_told_otherwise(checked: bool) -> None:
    credentials = faust_credentials(KafkaConnection(security_protocol="SSL", ssl_check_hostname=checked))
    assert isinstance(credentials, faust.SSLCredentials)
    assert credentials.context.check_hostname is checked
    assert credentials.context.verify_mode is ssl.CERT_REQUIRED  # the certificate is always verified
    assert credentials.context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_an_authority_of_ones_own(certificate: Certificate) -> None:
    context = ssl_context(KafkaConnection(security_protocol="SSL", ssl_ca_location=certificate.certificate))
    assert context is not None
    assert [one["subject"] for one in context.get_ca_certs()] == [((("commonName", "localhost"),),)]


def test_a_certificate_of_ones_own(certificate: Certificate) -> None:
    settings: dict[str, Any] = {
        "security_protocol": "SSL",
        "ssl_certificate_location": certificate.certificate,
        "ssl_key_location": certificate.key,
    }
    assert isinstance(ssl_context(KafkaConnection(**settings, ssl_key_password=SECRET)), ssl.SSLContext)
    with pytest.raises(ssl.SSLError):
        ssl_context(KafkaConnection(**settings, ssl_key_password="wrong"))


@pytest.mark.parametrize(("protocol", "tls"), [("SASL_SSL", True), ("SASL_PLAINTEXT", False)])
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_user_and_a_password(protocol: str, tls: bool, mechanism: str) -> None:
    connection = KafkaConnection.model_validate(
        {
            "security_protocol": protocol,
            "sasl_mechanism": mechanism,
            "sasl_username": "worker",
            "sasl_password": SECRET,
        }
    )
    credentials = faust_credentials(connection)
    assert isinstance(credentials, faust.SASLCredentials)
    assert (credentials.username, credentials.password) == ("worker", SECRET)
    assert credentials.mechanism.value == mechanism
    assert credentials.protocol.value == protocol
    assert (credentials.ssl_context is not None) is tls
    assert SECRET not in repr(credentials)
    assert SECRET not in repr(connection)


def test_tokens_are_fetched_by_a_provider() -> None:
    connection = KafkaConnection.model_validate(
        {
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "OAUTHBEARER",
            "oauth_token_endpoint": "https://login.example/token",
            "oauth_client_id": "worker",
            "oauth_client_secret": SECRET,
        }
    )
    credentials = faust_credentials(connection)
    assert isinstance(credentials, faust.OAuthCredentials)
    assert isinstance(credentials.oauth_cb, ClientCredentialsToken)
    assert credentials.ssl_context is not None


# -- tokens -----------------------------------------------------------------------------------------------------------


@dataclass
class TokenEndpoint:
    """An OAuth token endpoint that hands out token-1, token-2 and so on, or `answer`."""

    lifetime: float = 3600
    answer: web.Response | None = None
    asked: list[tuple[str | None, dict[str, Any]]] = field(default_factory=list)
    url: str = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append((request.headers.get("Authorization"), dict(await request.post())))
        if self.answer is not None:
            return self.answer
        return web.json_response({"access_token": f"token-{len(self.asked)}", "expires_in": self.lifetime})

    def provider(self, scope: str | None = None) -> ClientCredentialsToken:
        return ClientCredentialsToken(self.url, "worker", SECRET, scope)


@pytest.fixture
async def endpoint() -> AsyncIterator[TokenEndpoint]:
    endpoint = TokenEndpoint()
    app = web.Application()
    app.router.add_post("/token", endpoint.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    endpoint.url = f"http://127.0.0.1:{runner.addresses[0][1]}/token"
    yield endpoint
    await runner.cleanup()


async def test_a_token_is_asked_for_as_the_standard_says_and_kept(endpoint: TokenEndpoint) -> None:
    provider = endpoint.provider("kafka")
    assert [await provider.token(), await provider.token()] == ["token-1", "token-1"]
    assert endpoint.asked == [
        ("Basic d29ya2VyOm9wZW4gc2VzYW1l", {"grant_type": "client_credentials", "scope": "kafka"})
    ]


async def test_a_token_about_to_expire_is_replaced(endpoint: TokenEndpoint) -> None:
    endpoint.lifetime = 20  # within the margin: a connection must not be opened with it later
    provider = endpoint.provider()
    assert [await provider.token(), await provider.token()] == ["token-1", "token-2"]
    assert endpoint.asked[0][1] == {"grant_type": "client_credentials"}


async def test_event_loops_of_two_clients_share_a_provider(endpoint: TokenEndpoint) -> None:
    """Faust's consumer has an event loop of its own beside the producer's, and both ask at once."""
    endpoint.lifetime = 0
    provider = endpoint.provider()

    async def many() -> list[str]:
        return await asyncio.gather(*(provider.token() for _ in range(5)))

    tokens = await asyncio.gather(many(), asyncio.to_thread(asyncio.run, many()))
    assert all(token.startswith("token-") for tokens_of_one in tokens for token in tokens_of_one)


@pytest.mark.parametrize(
    "answer",
    [
        lambda: web.Response(status=401),
        lambda: web.Response(status=500, text="oops"),
        lambda: web.Response(text="<html>a proxy's page</html>", content_type="text/html"),
        lambda: web.Response(text="{", content_type="application/json"),
        lambda: web.json_response({"error": "invalid_client"}),
        lambda: web.json_response(["token"]),
        lambda: web.json_response({"access_token": "t", "expires_in": None}),
        lambda: web.json_response({"access_token": "t", "expires_in": "soon"}),
        lambda: web.json_response({"access_token": "t", "expires_in": 10**400}),
        lambda: web.json_response({"access_token": None, "expires_in": 300}),
        lambda: web.json_response({"access_token": "t\x01auth=", "expires_in": 300}),
        lambda: web.Response(text="[" * 20_000, content_type="application/json"),
    ],
)
async def test_no_token_names_the_setting_and_hides_the_secret(endpoint: TokenEndpoint, answer: Any) -> None:
    endpoint.answer = answer()
    with pytest.raises(TokenError, match=r"kafka\.oauth_token_endpoint http://127") as caught:
        await endpoint.provider().token()
    assert SECRET not in str(caught.value)


async def test_nobody_at_the_endpoint(unused_tcp_port: int) -> None:
    provider = ClientCredentialsToken(f"http://127.0.0.1:{unused_tcp_port}/token", "worker", SECRET, None)
    with pytest.raises(TokenError, match="Cannot connect"):
        await provider.token()
