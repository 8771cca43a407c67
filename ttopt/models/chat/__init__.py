"""Vision-language models that answer in words, with a typed reply: a server, or a model in this process.

A reply that cannot be had or read is a ChatError, never an answer.
"""

from ttopt.models.chat.address import check_chat
from ttopt.models.chat.asking import ask
from ttopt.models.chat.errors import ChatError
from ttopt.models.chat.local import LocalChat, Nobody
from ttopt.models.chat.make import make_chat
from ttopt.models.chat.messages import Chat, Jpeg, Message, Mp4, Reply, fingerprint
from ttopt.models.chat.server import OpenAIChat

__all__ = [
    "Chat",
    "ChatError",
    "Jpeg",
    "LocalChat",
    "Message",
    "Mp4",
    "Nobody",
    "OpenAIChat",
    "Reply",
    "ask",
    "check_chat",
    "fingerprint",
    "make_chat",
]
