"""Replies of a model in this process that cannot but fit a schema: its next tokens are limited by xgrammar (an extra).

Helps models that write nearly the right JSON; one that was trained on the replies, as the embedded one, needs none.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from ttopt.errors import UserError


class Grammar:
    """Compiled schemas of one tokenizer. Raises UserError where xgrammar is missing."""

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        try:
            import xgrammar
        except ImportError as error:
            raise UserError("chat.constrained needs xgrammar; pip install -e '.[grammar]'") from error
        info = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=vocabulary, stop_token_ids=[tokenizer.convert_tokens_to_ids("<|im_end|>")]
        )
        self._compiler = xgrammar.GrammarCompiler(info)
        self._compiled: dict[type[BaseModel], Any] = {}

    def processor(self, schema: type[BaseModel]) -> Any:
        """A logits processor for one reply."""
        from xgrammar.contrib.hf import LogitsProcessor

        if schema not in self._compiled:
            self._compiled[schema] = self._compiler.compile_json_schema(json.dumps(schema.model_json_schema()))
        return LogitsProcessor(self._compiled[schema])
