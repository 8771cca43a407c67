"""CollabVR (arXiv 2605.08735): a vision-language model plans, checks and repairs a video clip by clip."""

from __future__ import annotations

from .chain import Chain
from .engine import StepLoop
from .rewrites import PromptRewrite, VideoTPO

__all__ = ["Chain", "PromptRewrite", "StepLoop", "VideoTPO"]
