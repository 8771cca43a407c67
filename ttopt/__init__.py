"""Test-time optimization of video generation models by a frozen vision-language teacher."""

from __future__ import annotations

__version__ = "0.1.0"
