"""The backend protocol: `Backend`, and the requests and answers that it exchanges.

A backend runs forward passes of a language model. It implements one method, `Backend.next_token`,
and has two attributes, `identity` and `limits`. This package imports only the errors and images of
`blackbox`, so that a backend can be written against it alone.
"""

from blackbox.protocol.answers import (
    NO_TOKEN,
    AnswerParts,
    DrawParts,
    Draws,
    TokenLogProbs,
    TokenScores,
    TooLong,
    distinct_tokens,
    gather_draws,
    gather_parts,
    id_of_option,
)
from blackbox.protocol.backend import Backend
from blackbox.protocol.embeddings import EmbeddingParts, Embeddings, gather_embeddings
from blackbox.protocol.identity import BackendIdentity, request_digest, request_hasher
from blackbox.protocol.limits import Limits, check_served, require_images
from blackbox.protocol.requests import ClosedQuestion, Message, RenderedPrompt
from blackbox.protocol.usage import TimeEstimate, Usage

__all__ = [
    "NO_TOKEN",
    "AnswerParts",
    "Backend",
    "BackendIdentity",
    "ClosedQuestion",
    "DrawParts",
    "Draws",
    "EmbeddingParts",
    "Embeddings",
    "Limits",
    "Message",
    "RenderedPrompt",
    "TimeEstimate",
    "TokenLogProbs",
    "TokenScores",
    "TooLong",
    "Usage",
    "check_served",
    "distinct_tokens",
    "gather_draws",
    "gather_embeddings",
    "gather_parts",
    "id_of_option",
    "request_digest",
    "request_hasher",
    "require_images",
]
