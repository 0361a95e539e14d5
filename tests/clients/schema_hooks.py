"""Hooks of schemathesis: bodies that get past the first check.

A body with twenty drawn fields is refused for one of them, so that hardly any request would reach the engine. Three of four bodies are
therefore thinned out: a prompt that is one, at most two of the drawn fields, everything else left away. The fourth stays as it was drawn.
"""

import hashlib
import json

import schemathesis

PROMPTS = {
    "/v1/items": {"messages": [{"role": "user", "content": "Find an item.\nQuery: harbour"}]},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Describe the sea."}]},
    "/v1/completions": {"prompt": "The sea is"},
    "/tokenize": {"prompt": "The sea is"},
}
WAYS = ("messages", "prompt", "prompt_token_ids", "model")


@schemathesis.hook
def map_body(context, body):
    prompt = PROMPTS.get(context.operation.path)
    if prompt is None or not isinstance(body, dict):
        return body
    # Drawn from the body itself: a run is the same as the last one.
    digest = hashlib.sha256(json.dumps(body, sort_keys=True, default=str).encode()).digest()
    if digest[0] % 4 == 0:
        return body
    fields = sorted((name for name in body if name not in WAYS), key=lambda name: hashlib.sha256(digest + name.encode(errors="replace")).digest())
    return prompt | {name: body[name] for name in fields[: digest[1] % 3]}
