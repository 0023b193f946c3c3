"""Asking a language model behind an OpenAI-compatible endpoint, with a log of every reply.

asking   an endpoint, questions, the model and its log
replies  the text of a message and the JSON in it
secrets  keeps keys out of logs and messages
"""

from launch.llm.asking import Endpoint, EndpointError, Llm, Parse, Question, RefusedError, ReplyError, from_config
from launch.llm.replies import strict_json

__all__ = [
    "Endpoint",
    "EndpointError",
    "Llm",
    "Parse",
    "Question",
    "RefusedError",
    "ReplyError",
    "from_config",
    "strict_json",
]
