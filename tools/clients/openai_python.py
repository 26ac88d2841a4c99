"""The official Python client of OpenAI's API against a node: what its users do, and what they do wrong.

Reads OPENAI_BASE_URL and OPENAI_API_KEY as the client does, and METRICS_URL: where the node's metrics are.
EMBEDDING_MODEL names a model for embeddings; without it they are left out, and that is said.
"""

import base64
import json
import os
import struct
import sys
import time
import urllib.request

import openai

client = openai.OpenAI(max_retries=0, timeout=120)
HELLO = [{"role": "user", "content": "Say hello."}]


def models():
    listed = list(client.models.list())
    assert listed, "no models"
    chat = listed[0]
    assert chat.context_length > 0 and chat.kind == "chat", chat
    assert client.models.retrieve(chat.id).id == chat.id
    return chat.id


MODEL = models()


def chat():
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=16, temperature=0)
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content, answer
    assert choice.finish_reason in ("stop", "length"), answer
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    again = client.chat.completions.create(model=MODEL, messages=HELLO, max_completion_tokens=16, temperature=0)
    assert again.choices[0].message.content == choice.message.content, "the likeliest answer changed"


def several():
    ask = dict(model=MODEL, messages=HELLO, max_tokens=12, n=3, seed=7, temperature=1.5)
    first, second = (client.chat.completions.create(**ask) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) > 1, texts
    assert texts == [choice.message.content for choice in second.choices], "a seed gives the same answers"


def stream():
    ask = dict(model=MODEL, messages=HELLO, max_tokens=16, temperature=0)
    whole = client.chat.completions.create(**ask)
    text, usage, reasons = "", None, []
    for chunk in client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert text == whole.choices[0].message.content, (text, whole)
    assert reasons == [whole.choices[0].finish_reason]
    assert usage.completion_tokens == whole.usage.completion_tokens, usage


def stop():
    ask = dict(model=MODEL, messages=HELLO, max_tokens=24, temperature=0)
    text = client.chat.completions.create(**ask).choices[0].message.content
    mark = text[3:5]
    for given in (mark, [mark]):
        choice = client.chat.completions.create(**ask, stop=given).choices[0]
        assert choice.finish_reason == "stop" and choice.message.content == text[: text.index(mark)], choice


def logprobs():
    ask = dict(model=MODEL, messages=HELLO, max_tokens=4, temperature=0)
    choice = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3).choices[0]
    told = choice.logprobs.content
    assert "".join(token.token for token in told) == choice.message.content, choice
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in told), told
    bias = {str(number): -100 for number in range(1)}
    client.chat.completions.create(**ask, logit_bias=bias, frequency_penalty=1, presence_penalty=1)
    completion = client.completions.create(model=MODEL, prompt="Once upon a", max_tokens=4, temperature=0, logprobs=2)
    told = completion.choices[0].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) > 0, told


def completion():
    ask = dict(model=MODEL, prompt=["Once upon a time", "The sky is"], temperature=0)
    answer = client.completions.create(**ask)
    assert len(answer.choices) == 2 and answer.usage.completion_tokens <= 32, answer
    streamed = ["", ""]
    for chunk in client.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == [choice.text for choice in answer.choices], (streamed, answer)


def metric(name):
    with urllib.request.urlopen(os.environ["METRICS_URL"], timeout=60) as metrics:
        lines = metrics.read().decode().splitlines()
    return sum(int(line.split()[-1]) for line in lines if line.startswith(name + "{"))


def until(what, is_so):
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end, f"waited 60 s: {what}"
        time.sleep(0.01)


def running():
    return metric("thalweg_generations_running")


def cancel():
    cancelled = metric("thalweg_model_generations_cancelled_total")
    asked = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Count to a million."}], max_tokens=4096, stream=True,
        logit_bias={"2": -100, "0": -100},
    )
    next(iter(asked))
    assert running() >= 1
    asked.close()
    until("the generation ends since nobody reads it", lambda: running() == 0)
    # The model counts by itself.
    until("it ended for that", lambda: metric("thalweg_model_generations_cancelled_total") == cancelled + 1)


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}


def tools():
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in ("required", named):
        ask = dict(model=MODEL, messages=question, tools=[WEATHER], tool_choice=choice, temperature=0, max_tokens=120)
        whole = client.chat.completions.create(**ask)
        assert whole.choices[0].finish_reason == "tool_calls", whole
        call = whole.choices[0].message.tool_calls[0]
        arguments = json.loads(call.function.arguments)
        assert call.function.name == "get_weather" and set(arguments) == {"city", "unit"}, call
        name, told = "", ""
        for chunk in client.chat.completions.create(**ask, stream=True):
            for delta in (piece for c in chunk.choices for piece in c.delta.tool_calls or []):
                name += delta.function.name or ""
                told += delta.function.arguments or ""
        assert name == "get_weather" and json.loads(told) == arguments, told
    # What came of the call goes back to the model, which may answer or call again.
    result = [
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "22 degrees and sunny"},
    ]
    ask = dict(model=MODEL, messages=question + result, tools=[WEATHER], temperature=0, max_tokens=60)
    choice = client.chat.completions.create(**ask).choices[0]
    assert choice.message.content or choice.message.tool_calls, choice
    off = client.chat.completions.create(**ask, tool_choice="none").choices[0]
    assert off.message.content and not off.message.tool_calls, off


def structured():
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 16}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    described = [{"role": "user", "content": "Describe a person as JSON."}]
    answer = client.chat.completions.create(
        model=MODEL, messages=described, temperature=0, max_tokens=100,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}},
    )
    person = json.loads(answer.choices[0].message.content)
    assert set(person) == {"name", "age"} and 0 <= person["age"] <= 120, person


def embeddings():
    model = os.environ.get("EMBEDDING_MODEL")
    if not model:
        return "left out: EMBEDDING_MODEL is not set"
    texts = ["A cat sits on the mat.", "A kitten is on the rug.", "Interest rates rose by a point."]
    answer = client.embeddings.create(model=model, input=texts, encoding_format="float")
    vectors = [row.embedding for row in answer.data]
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    assert all(abs(dot(vector, vector) - 1) < 1e-3 for vector in vectors)
    assert dot(vectors[0], vectors[1]) > dot(vectors[0], vectors[2]) + 0.1
    raw = client.embeddings.with_raw_response.create(model=model, input=texts[0], encoding_format="base64")
    encoded = json.loads(raw.text)["data"][0]["embedding"]
    numbers = struct.unpack(f"<{len(vectors[0])}f", base64.b64decode(encoded))
    assert dot(numbers, vectors[0]) > 0.999
    # The client asks for base64 by itself, and gives numbers.
    assert len(client.embeddings.create(model=model, input=texts[0]).data[0].embedding) == len(vectors[0])


def mistakes():
    def refused(error, status, call, says):
        try:
            call()
        except error as found:
            assert found.status_code == status, found
            assert says in str(found), found
            return found
        raise AssertionError(f"accepted, instead of {says!r}")

    ask = lambda **more: client.chat.completions.create(**{"model": MODEL, "messages": HELLO, "max_tokens": 1, **more})
    bad = openai.BadRequestError
    assert refused(bad, 400, lambda: ask(temperature=9), "temperature").param == "temperature"
    refused(bad, 400, lambda: ask(n=10**6), "between 1 and 16")
    refused(bad, 400, lambda: ask(max_tokens=10**9), "max_tokens")
    refused(bad, 400, lambda: ask(messages=[]), "at least one")
    refused(bad, 400, lambda: ask(functions=[{"name": "f"}]), "give them as tools")
    refused(bad, 400, lambda: ask(messages=[{"role": "user", "content": "word " * 60_000}]), "")
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "no such type"}}}
    refused(bad, 400, lambda: ask(response_format=schema), "")
    refused(openai.NotFoundError, 404, lambda: ask(model="no-such-model"), "no-such-model")
    stranger = openai.OpenAI(api_key="wrong", max_retries=0)
    refused(openai.AuthenticationError, 401, lambda: stranger.models.list(), "token")
    huge = [{"role": "user", "content": "x" * (100 << 20)}]
    try:
        refused(openai.APIStatusError, 413, lambda: ask(messages=huge), "longer than")
    except openai.APIConnectionError:
        pass  # It was told, and hung up on before it had sent everything.


if __name__ == "__main__":
    for check in (chat, several, stream, stop, logprobs, completion, cancel, tools, structured, embeddings, mistakes):
        if len(sys.argv) > 1 and check.__name__ not in sys.argv[1:]:
            continue
        began = time.monotonic()
        note = check()
        print(f"python {check.__name__}: {note or 'ok'} ({time.monotonic() - began:.1f} s)", flush=True)
