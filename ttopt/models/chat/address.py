"""Where a chat server is, which key it gets and by which proxy it is reached, checked before anything is loaded."""

from __future__ import annotations

import importlib.util
import os
import re
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from ttopt.config.settings import ChatSettings
from ttopt.errors import UserError, one_line

OPENAI = "https://api.openai.com/v1"
# What looks like a key in an address: a name that says so, the beginning that providers give theirs, or twenty letters
# and digits as no word has them (account numbers, which some addresses hold, have no upper case).
NAMED_KEY = re.compile(r"(key|token|secret|password|signature|sig|auth)=", re.IGNORECASE)
KNOWN_KEY = re.compile(
    r"\bsk-\w[\w-]{10,}|\b(?:[pr]k|gsk|xai|nvapi|hf|r8|gh[pousr]|key|eyJ|AIza)[-_]?(?=[\w-]*\d)\w[\w-]{10,}"
)
RANDOM = re.compile(r"(?=[A-Za-z]*\d)(?=[a-z\d]*[A-Z])(?=[A-Z\d]*[a-z])[A-Za-z\d]{20,}")
PROXIES = ("http", "https", "socks5", "socks5h")


def check_chat(settings: ChatSettings) -> None:
    """Raises UserError for a server's address that cannot be one or that holds a key, for a key that is missing or
    cannot be sent, and for a proxy that cannot be used."""
    if settings.backend == "openai":
        url = address_of(settings)
        key_of(settings)
        proxy_to(url)


def address_of(settings: ChatSettings) -> httpx2.URL:
    """The address of the server's interface, without the call. Raises UserError.

    Addresses are written into configurations, traces and messages, so one that may hold a secret is refused, and not
    quoted.
    """
    address = settings.base_url or OPENAI
    shown = "" if "@" in address or _holds_key(address, settings) else f" {one_line(address)[:200]!r}"
    url = _parsed(address)
    if url is None or url.scheme not in ("http", "https"):
        raise UserError(f"chat.base_url{shown} is no address; give e.g. http://127.0.0.1:8000/v1")
    if url.userinfo:
        raise UserError("chat.base_url holds a user or password; leave them out and name the key in chat.key_env")
    if _holds_key(address, settings):
        raise UserError("chat.base_url holds a key; leave it out and name it in chat.key_env")
    return url


def key_of(settings: ChatSettings) -> str:
    """The server's key; empty for one that wants none. Raises UserError."""
    if not settings.key_env:
        return ""
    key = os.environ.get(settings.key_env, "")
    if not key and not re.fullmatch(r"[A-Z][A-Z0-9_]*", settings.key_env):  # not quoted: it may be the key itself
        raise UserError(
            "chat.key_env names no environment variable that is set; it must be a variable's name, never the key "
            "itself, e.g. OPENAI_API_KEY"
        )
    if not key:
        raise UserError(
            f"chat.key_env: the environment variable {settings.key_env} is not set; put the server's key there, "
            "or give --chat.key_env '' for a server without keys"
        )
    if wrong := re.search(r"[^!-~]", key):
        kind = "white space" if wrong[0].isspace() else "a letter that no key has"
        raise UserError(
            f"chat.key_env: the environment variable {settings.key_env} holds {kind} (character {wrong.start() + 1} of "
            f"{len(key)}), with which it cannot be sent; put nothing but the key there"
        )
    return key


def proxy_to(url: httpx2.URL) -> httpx2.URL | None:
    """The proxy that the environment names for this address. Raises UserError for one that cannot be used."""
    found = getproxies()
    address = found.get(url.scheme) or found.get("all")
    if not address or proxy_bypass(url.host):
        return None
    proxy = _parsed(address if "://" in address else f"http://{address}")
    cure = f"correct {url.scheme}_proxy or all_proxy in the environment, or name {url.host} in no_proxy"
    if proxy is None or proxy.scheme not in PROXIES:
        raise UserError(f"the proxy for {url.scheme} addresses is none that can be used; {cure}")
    if proxy.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise UserError(f"the SOCKS proxy {shown_proxy(proxy)} needs socksio; pip install socksio, or {cure}")
    return proxy


def shown_proxy(proxy: httpx2.URL) -> str:
    """Without its password."""
    return f"{proxy.scheme}://{proxy.host}" + (f":{proxy.port}" if proxy.port else "")


def _parsed(address: str) -> httpx2.URL | None:
    """None for what no connection can be made to."""
    try:
        parts, url = urlsplit(address), httpx2.URL(address)
        fine = parts.port != 0 and address.isprintable() and re.fullmatch(r"[^\s\[\]%]+", url.host)
    except (httpx2.InvalidURL, ValueError):
        return None
    return url if fine else None


def _holds_key(address: str, settings: ChatSettings) -> bool:
    rest = unquote(address.partition("://")[2].partition("/")[2] or address.partition("?")[2])
    key = os.environ.get(settings.key_env) if settings.key_env else None
    return bool((key and key in rest) or any(sign.search(rest) for sign in (NAMED_KEY, KNOWN_KEY, RANDOM)))
