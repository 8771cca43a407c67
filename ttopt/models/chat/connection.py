"""One request to a server: to that server only, with an end in time and size, and with the cause of every failure."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import httpx2
from anyio.from_thread import start_blocking_portal

from ttopt.errors import UserError, brief
from ttopt.models.chat.address import shown_proxy

LARGEST = 16 * 2**20  # bytes of an answer; a long reply has some hundred thousand
ENCODINGS = ("identity", "gzip", "deflate")


class NoAnswerError(Exception):
    """There is no answer. Its text says of the server what happened; ``passing``: it may be otherwise in a moment."""

    def __init__(self, text: str, passing: bool = False) -> None:
        super().__init__(text)
        self.passing = passing


@dataclass(frozen=True)
class Answer:
    """What the server sent, whatever that is."""

    status: int
    headers: Mapping[str, str]  # in any case
    body: bytes

    @property
    def fine(self) -> bool:
        return 200 <= self.status < 300

    @property
    def text(self) -> str:
        return self.body.decode("utf-8-sig", "replace")


class Connection:
    """Posts JSON to one address. Follows no redirects: prompts, images and the key go to nobody else."""

    def __init__(self, url: httpx2.URL, key: str, proxy: httpx2.URL | None, timeout: float) -> None:
        """``timeout``: seconds for a whole request. Raises UserError for certificates that cannot be read."""
        self.url, self.proxy, self.timeout = url, proxy, timeout
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": ", ".join(ENCODINGS)}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        try:  # once: it reads all certificates of the system
            self._trust = httpx2.create_ssl_context() if "https" in (url.scheme, proxy and proxy.scheme) else None
        except OSError as error:
            raise UserError(f"the certificates in SSL_CERT_FILE or SSL_CERT_DIR cannot be read ({error})") from error

    def post(self, content: Mapping[str, Any]) -> Answer:
        """Raises NoAnswerError.

        The request runs in an event loop, which alone can end it whatever the server does: the time limits of a
        blocking client begin again with every byte.
        """
        with start_blocking_portal() as portal:
            return portal.call(self._post, json.dumps(content).encode())

    async def _post(self, content: bytes) -> Answer:
        try:
            with anyio.fail_after(self.timeout):
                try:
                    return await self._exchange(content)
                except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
                    raise self._fault(error) from error
        except TimeoutError as error:
            raise NoAnswerError(
                f"did not answer within {self.timeout:g} s; raise chat.timeout", passing=True
            ) from error

    async def _exchange(self, content: bytes) -> Answer:
        # Without certificates nobody is trusted, which is right where no address is https.
        trust = self._trust or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        async with (
            httpx2.AsyncClient(proxy=self.proxy, verify=trust, trust_env=False, timeout=None) as client,
            client.stream("POST", self.url, content=content, headers=self._headers) as response,
        ):
            encoding = response.headers.get("content-encoding", "identity").strip().lower()
            if encoding not in ENCODINGS:
                raise NoAnswerError(
                    f"packs its answers in a way that was not asked for (Content-Encoding: {encoding[:40]!r})"
                )
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > LARGEST:
                    raise NoAnswerError(
                        f"sent more than {LARGEST // 2**20} MB, which is no reply; is chat.base_url right?"
                    )
            return Answer(response.status_code, response.headers, bytes(body))

    def _fault(self, error: Exception) -> NoAnswerError:
        by = f" through the proxy {shown_proxy(self.proxy)}" if self.proxy else ""
        check = "the proxy in the environment" if self.proxy else "chat.base_url and whether the server runs"
        for cause in _causes(error):
            match cause:
                case ssl.SSLCertVerificationError():
                    return NoAnswerError(
                        f"cannot be reached{by}: its certificate is not trusted ({cause.verify_message}); name a file "
                        "with the certificate of whoever signed it in the environment variable SSL_CERT_FILE"
                    )
                case ssl.SSLError():
                    why = cause.reason or brief(cause)
                    return NoAnswerError(
                        f"cannot be reached{by}: no TLS connection ({why}); http:// instead of https://?"
                    )
                case socket.gaierror():
                    name = self.proxy.host if self.proxy else self.url.host
                    why = f"the name {name} is not known ({cause.strerror})"
                    return NoAnswerError(f"cannot be reached{by}: {why}; check {check}", passing=True)
                case ConnectionRefusedError():
                    return NoAnswerError(f"cannot be reached{by}: connection refused; check {check}", passing=True)
                case httpx2.DecodingError():
                    return NoAnswerError(f"sent an answer that cannot be unpacked ({brief(cause)})", passing=True)
                case httpx2.ProxyError():
                    return NoAnswerError(f"cannot be reached{by}: it refuses ({brief(cause)}); check {check}")
                case httpx2.RemoteProtocolError():
                    return NoAnswerError(
                        f"sent something that is no HTTP{by} ({brief(cause)}); check {check}", passing=True
                    )
                case OSError() if cause.errno:
                    return NoAnswerError(f"cannot be reached{by}: {brief(cause)}; check {check}", passing=True)
        return NoAnswerError(f"cannot be reached{by}: {brief(error)}; check {check}", passing=True)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """What an exception comes from, the innermost first: libraries wrap the cause several times."""
    seen: list[BaseException] = []
    left = [error]
    while left:
        now = left.pop(0)
        if now not in seen:
            seen.append(now)
            left += [cause for cause in (now.__cause__, now.__context__) if cause is not None]
            left += now.exceptions if isinstance(now, BaseExceptionGroup) else ()
    return reversed(seen)
