"""What the tests of Anthropic's dialect say to it, and what it is called in our own words."""

from __future__ import annotations

from gleitzeit_llm.dialects.anthropic_client import AnthropicClient

CLIENT = AnthropicClient(new_id=lambda: "7")
MESSAGES = CLIENT.endpoints["/v1/messages"]
HI = [{"role": "user", "content": "hi"}]
BASE = {"model": "m", "max_tokens": 9, "messages": HI}
USE = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}}
CALL = {"id": "toolu_1", "function": {"name": "f", "arguments": {"a": 1}}}
