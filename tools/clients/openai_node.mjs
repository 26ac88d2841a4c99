// The official JavaScript client of OpenAI's API against a node. Reads OPENAI_BASE_URL and OPENAI_API_KEY as the client
// does, METRICS_URL, and EMBEDDING_MODEL, as openai_python.py says.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const { default: OpenAI } = createRequire(process.env.NODE_MODULES + "/")("openai");
const client = new OpenAI({ maxRetries: 0, timeout: 120_000 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "Say hello." }];

async function running() {
  const text = await (await fetch(process.env.METRICS_URL)).text();
  const lines = text.split("\n").filter((line) => line.startsWith("thalweg_generations_running{"));
  return lines.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
}

const tool = {
  type: "function",
  function: {
    name: "get_time",
    parameters: {
      type: "object",
      properties: { zone: { type: "string", maxLength: 16 } },
      required: ["zone"],
      additionalProperties: false,
    },
  },
};

const checks = {
  async chat() {
    const answer = await client.chat.completions.create({ model, messages, max_tokens: 12, temperature: 0 });
    assert.ok(answer.choices[0].message.content);
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
  },
  async stream() {
    const ask = { model, messages, max_tokens: 12, temperature: 0 };
    const whole = (await client.chat.completions.create(ask)).choices[0].message.content;
    const runner = client.chat.completions.stream(ask);
    assert.equal(await runner.finalContent(), whole);
  },
  async cancel() {
    const ask = { model, messages, max_tokens: 4096, stream: true, logit_bias: { 2: -100, 0: -100 } };
    const stream = await client.chat.completions.create(ask);
    for await (const _ of stream) break; // leaving the loop aborts the request
    for (const end = Date.now() + 60_000; (await running()) > 0; ) {
      assert.ok(Date.now() < end, "the generation goes on although nobody reads it");
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  },
  async tools() {
    const ask = { model, messages, tools: [tool], tool_choice: "required", temperature: 0, max_tokens: 80 };
    const runner = client.chat.completions.stream(ask);
    const { choices } = await runner.finalChatCompletion();
    assert.equal(choices[0].finish_reason, "tool_calls");
    const call = choices[0].message.tool_calls[0].function;
    assert.equal(call.name, "get_time");
    assert.deepEqual(Object.keys(JSON.parse(call.arguments)), ["zone"]);
  },
  async structured() {
    const schema = {
      type: "object",
      properties: { ok: { type: "boolean" } },
      required: ["ok"],
      additionalProperties: false,
    };
    const response_format = { type: "json_schema", json_schema: { name: "s", schema } };
    const answer = await client.chat.completions.create({ model, messages, response_format, max_tokens: 40 });
    assert.equal(typeof JSON.parse(answer.choices[0].message.content).ok, "boolean");
  },
  async embeddings() {
    const model = process.env.EMBEDDING_MODEL;
    if (!model) return "left out: EMBEDDING_MODEL is not set";
    const { data } = await client.embeddings.create({ model, input: ["hello", "world"] });
    const length = Math.hypot(...data[1].embedding);
    assert.ok(Math.abs(length - 1) < 1e-3, `a vector of length ${length}`);
  },
  async mistakes() {
    const refused = (status, ask) =>
      assert.rejects(client.chat.completions.create({ model, messages, max_tokens: 1, ...ask }), (e) => e.status === status);
    await refused(400, { top_p: 2 });
    await refused(400, { messages: [{ role: "king", content: "x" }] });
    await refused(404, { model: "no-such-model" });
    const stranger = new OpenAI({ apiKey: "wrong", maxRetries: 0 });
    await assert.rejects(stranger.models.list(), (e) => e.status === 401);
  },
};

for (const [name, check] of Object.entries(checks)) {
  const began = performance.now();
  const note = (await check()) ?? "ok";
  console.log(`node ${name}: ${note} (${((performance.now() - began) / 1000).toFixed(1)} s)`);
}
