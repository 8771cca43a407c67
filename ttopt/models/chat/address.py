"""Where a chat server is and which key it gets, checked before anything is loaded."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from ttopt.config.settings import ChatSettings
from ttopt.errors import UserError

SECRET = re.compile(r"(key|token|secret|password|signature|sig)=", re.IGNORECASE)  # in an address


def check_chat(settings: ChatSettings) -> None:
    """Raises UserError for an address that cannot be one or a key that is missing, before anything is loaded."""
    if settings.backend == "openai" and settings.base_url is not None:
        try:
            address = urlsplit(settings.base_url)
            fine = address.scheme in ("http", "https") and address.port != 0
        except ValueError:
            fine = False
        if not fine:
            shown = "" if "@" in settings.base_url else f" {settings.base_url!r}"  # no password in a message
            raise UserError(f"chat.base_url{shown} is no address; give e.g. http://127.0.0.1:8000/v1")
        if address.username or address.password:
            # Not quoted: addresses are written into configurations, traces and messages.
            raise UserError("chat.base_url holds a user or password; leave them out and name the key in chat.key_env")
        if SECRET.search(address.query):
            raise UserError("chat.base_url holds a key; leave it out and name it in chat.key_env")
    if settings.backend == "openai" and settings.key_env and not os.environ.get(settings.key_env):
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", settings.key_env):  # not quoted: it may be the key itself
            raise UserError(
                "chat.key_env names no environment variable that is set; it must be a variable's name, never the key "
                "itself, e.g. OPENAI_API_KEY"
            )
        raise UserError(
            f"chat.key_env: the environment variable {settings.key_env} is not set; put the server's key there, "
            "or give --chat.key_env '' for a server without keys"
        )
