"""What keeps the schema-driven tester's requests cheap: lengths that are fine become short, those that are not stay."""

import schemathesis

TOKENS = 4


@schemathesis.hook
def before_call(context, case, kwargs):
    body = case.body
    if not isinstance(body, dict) or not ("messages" in body or "prompt" in body):
        return
    for name, most, short in (("max_tokens", 8192, TOKENS), ("max_completion_tokens", 8192, TOKENS), ("n", 16, 2)):
        value = body.get(name)
        if type(value) is int and 1 <= value <= most:
            body[name] = min(value, short)
    tools = body.get("tools")
    if isinstance(tools, list) and 2 < len(tools) <= 128:
        # Each is described in the prompt.
        body["tools"] = tools[:2]
    body.setdefault("max_tokens", TOKENS)
