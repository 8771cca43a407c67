"""What goes wrong between us and a chat model."""

from __future__ import annotations

from ttopt.errors import UserError


class ChatError(UserError):
    """The model cannot be reached, or what it says cannot be read."""
