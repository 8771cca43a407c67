"""Ways to make a video for a sample, all with the same interface (ttopt/methods/base.py)."""

from __future__ import annotations

from ttopt.methods.base import Method, make_method
from ttopt.methods.existing import Existing
from ttopt.methods.pass_at_k import PassAtK
from ttopt.methods.prompt_rewrite import PromptRewrite
from ttopt.methods.seed_ensemble import SeedEnsemble
from ttopt.methods.single import Single
from ttopt.methods.static import Static
from ttopt.methods.teacher_lora import TeacherLora
from ttopt.methods.videotpo import VideoTPO
from ttopt.optimization.context import Context

__all__ = [
    "Context",
    "Existing",
    "Method",
    "PassAtK",
    "PromptRewrite",
    "SeedEnsemble",
    "Single",
    "Static",
    "TeacherLora",
    "VideoTPO",
    "make_method",
]
