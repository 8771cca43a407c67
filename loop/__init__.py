"""CollabVR (arXiv 2605.08735): a vision-language model plans, checks and repairs a video clip by clip."""

from __future__ import annotations

from loop.chain import Chain
from loop.engine import StepLoop
from loop.rewrites import PromptRewrite, VideoTPO

__all__ = ["Chain", "PromptRewrite", "StepLoop", "VideoTPO"]
