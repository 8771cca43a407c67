"""The chat model that the settings name."""

from __future__ import annotations

from ttopt.config.settings import ChatSettings
from ttopt.models.chat.local import LocalChat, Nobody
from ttopt.models.chat.messages import Chat
from ttopt.models.chat.server import OpenAIChat
from ttopt.models.load import weights_path
from ttopt.models.teacher import Teacher


def make_chat(settings: ChatSettings, teacher: Teacher | None) -> Chat:
    """The model that the settings name; "teacher" shares the teacher's weights. Raises UserError.

    Without a teacher, for methods that ask nothing, nothing is loaded in this process.
    """
    if settings.backend == "openai":
        return OpenAIChat(settings)
    if teacher is None:
        return Nobody()
    if settings.backend == "teacher":
        return LocalChat(teacher, settings.max_tokens, settings.constrained)
    path = weights_path(settings.model, "chat", "chat.model")
    model = Teacher.load(path, dtype=str(teacher.model.dtype).removeprefix("torch."), device=teacher.device)
    return LocalChat(model, settings.max_tokens, settings.constrained, f"the {settings.model} chat model")
