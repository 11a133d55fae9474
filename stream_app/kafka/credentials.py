"""The connection settings as Faust takes them, so that both Kafka clients of a worker log in alike."""

import base64
import logging
import re
import ssl
import time

import aiohttp
import faust
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError
from faust.types.auth import CredentialsT

from schemas.config.settings import KafkaConnection
from stream_app.errors import StreamError

_EXPIRY_MARGIN_SECONDS = 30.0
_LONGEST_SECONDS = 86_400.0
"""A token is asked for anew after that, however long it says that it lasts."""
_TOKEN = re.compile(r"[\x20-\x7e]+")


class TokenError(StreamError, KafkaConnectionError):
    """The OAuth token endpoint gave no token.

    To aiokafka a broker that cannot be reached for now, tried again like one. Any other error would end, unnoticed, its
    task that keeps up with the cluster; later connections would wait for that task for ever.
    """


class ClientCredentialsToken(AbstractTokenProvider):
    """OAUTHBEARER tokens by OAuth 2.0's client credentials grant (RFC 6749, 4.4), as librdkafka's OIDC method does."""

    def __init__(
        self, endpoint: str, client_id: str, client_secret: str, scope: str | None, authorities: str | None = None
    ) -> None:
        """`authorities`: a file of CA certificates for an https endpoint; else the system's."""
        self._endpoint = endpoint
        self._tls = ssl.create_default_context(cafile=authorities)
        basic = base64.b64encode(f"{client_id}:{client_secret}".encode()).decode()
        self._headers = {"Authorization": f"Basic {basic}"}
        self._form = {"grant_type": "client_credentials"} | ({"scope": scope} if scope else {})
        self._token, self._expires = "", 0.0

    async def token(self) -> str:
        """A token that is valid for a while yet. Raises TokenError.

        No lock: Faust's consumer asks from an event loop of its own beside the producer's. At worst both fetch one.
        """
        if time.monotonic() < self._expires:
            return self._token
        token, lifetime = await self._fetch()
        self._token, self._expires = token, time.monotonic() + max(0.0, lifetime - _EXPIRY_MARGIN_SECONDS)
        return token

    async def _fetch(self) -> tuple[str, float]:
        try:
            async with (
                aiohttp.ClientSession(headers=self._headers, timeout=aiohttp.ClientTimeout(total=10)) as session,
                session.post(self._endpoint, data=self._form, ssl=self._tls) as answer,
            ):
                answer.raise_for_status()
                body = await answer.json()
                token, lifetime = body["access_token"], float(body.get("expires_in", 0))
                if not isinstance(token, str) or not _TOKEN.fullmatch(token):
                    raise ValueError("its access_token is no token (RFC 6749, A.12)")
                return token, min(lifetime, _LONGEST_SECONDS)
        except (
            aiohttp.ClientError, TimeoutError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError,
            RecursionError,
        ) as error:  # fmt: skip
            raise TokenError(
                f"no token from kafka.oauth_token_endpoint {self._endpoint}: {type(error).__name__}: {error}"
            ) from error


def ssl_context(connection: KafkaConnection) -> ssl.SSLContext | None:
    """The TLS settings as Python has them; None without TLS."""
    if not connection.uses_tls:
        return None
    context = ssl.create_default_context(cafile=connection.ssl_ca_location)
    context.check_hostname = connection.ssl_check_hostname
    if connection.ssl_certificate_location:
        password = connection.ssl_key_password
        context.load_cert_chain(
            connection.ssl_certificate_location,
            connection.ssl_key_location,
            password.get_secret_value() if password else None,
        )
    return context


def faust_credentials(connection: KafkaConnection) -> CredentialsT | None:
    """Faust's `broker_credentials`; None for a plain connection."""
    context = ssl_context(connection)
    if not connection.uses_sasl:
        return None if context is None else faust.SSLCredentials(context=context)
    logging.getLogger("aiokafka.conn").addFilter(_holds_no_login)
    if connection.sasl_mechanism == "OAUTHBEARER":
        assert connection.oauth_token_endpoint
        assert connection.oauth_client_id
        assert connection.oauth_client_secret
        provider = ClientCredentialsToken(
            connection.oauth_token_endpoint,
            connection.oauth_client_id,
            connection.oauth_client_secret.get_secret_value(),
            connection.oauth_scope,
            connection.token_authorities,
        )
        return faust.OAuthCredentials(oauth_cb=provider, ssl_context=context)
    assert connection.sasl_password
    return faust.SASLCredentials(
        username=connection.sasl_username,
        password=connection.sasl_password.get_secret_value(),
        mechanism=connection.sasl_mechanism,
        ssl_context=context,
    )


def _holds_no_login(record: logging.LogRecord) -> bool:
    """At debug level aiokafka logs every request as it is, the login with its password or token among them."""
    return not any(type(argument).__name__.startswith("SaslAuthenticateRequest") for argument in record.args or ())
