// Stock editors of Yjs in JavaScript against a node.
//
//   node documents.mjs edit yjs|hocuspocus NAME DOCUMENT EDITS PEER,… OUT   edits a document beside others, now and then offline
//   node documents.mjs roles DOCUMENT                                       reads with a token that may not write
//   node documents.mjs large DOCUMENT OTHER                                 sends too much to one of two documents of a socket
//   node documents.mjs canon FILE…                                          says what states are, in one and the same form
//
// Reads NODE_HTTP (HOST:PORT), NODE_TOKEN and READER_TOKEN, and PATIENCE: seconds that anything may take.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(process.env.NODE_MODULES + "/");
const Y = require("yjs");
const { WebsocketProvider } = require("y-websocket");
const { HocuspocusProvider, HocuspocusProviderWebsocket } = require("@hocuspocus/provider");

const http = process.env.NODE_HTTP;
const patience = Number(process.env.PATIENCE ?? 120);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits until something is so; fails, saying what was waited for, if it never is. */
async function until(what, isSo) {
  const end = Date.now() + patience * 1000;
  while (!isSo()) {
    assert.ok(Date.now() < end, `waited ${patience} s: ${what}`);
    await sleep(10);
  }
}

/** A document over y-websocket. */
function overYjs(name, document, token) {
  const doc = new Y.Doc();
  const options = { params: { token }, disableBc: true, maxBackoffTime: 200 };
  const provider = new WebsocketProvider(`ws://${http}/yjs`, name, doc, options);
  provider.awareness.setLocalStateField("user", { name: document });
  return {
    doc,
    awareness: provider.awareness,
    isSynced: () => provider.synced,
    connect: () => provider.connect(),
    disconnect: () => provider.disconnect(),
    // There are no answers to edits: that others have them is seen in the document.
    isSaved: () => provider.synced && provider.ws?.bufferedAmount === 0,
    destroy: () => provider.destroy(),
    provider,
  };
}

/** A socket of Hocuspocus's provider. */
function hocuspocusSocket() {
  return new HocuspocusProviderWebsocket({ url: `ws://${http}/hocuspocus`, delay: 50, minDelay: 50, maxDelay: 200 });
}

/** A document over Hocuspocus's provider. */
function overHocuspocus(name, document, token, socket = hocuspocusSocket()) {
  const said = { failed: null, scope: null, stateless: [], closed: null };
  const provider = new HocuspocusProvider({
    websocketProvider: socket,
    name,
    token,
    onAuthenticationFailed: ({ reason }) => (said.failed = reason),
    onAuthenticated: ({ scope }) => (said.scope = scope),
    onClose: ({ event }) => (said.closed = event),
    onStateless: ({ payload }) => said.stateless.push(payload),
  });
  provider.attach();
  provider.awareness.setLocalStateField("user", { name: document });
  return {
    doc: provider.document,
    awareness: provider.awareness,
    isSynced: () => provider.synced,
    // It takes no notice of a wish to connect while it is still disconnecting.
    connect: () => until("it is disconnected", () => socket.status === "disconnected").then(() => socket.connect()),
    disconnect: () => socket.disconnect(),
    isSaved: () => !provider.hasUnsyncedChanges,
    destroy: () => (provider.destroy(), socket.destroy()),
    provider,
    said,
  };
}

const kinds = { yjs: overYjs, hocuspocus: overHocuspocus };

/** A generator of numbers below n, the same at each run. */
function dice(seed) {
  let state = [...seed].reduce((sum, c) => (Math.imul(sum, 31) + c.charCodeAt(0)) | 0, 7) >>> 0;
  return (n) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * n);
  };
}

function editOnce(doc, name, round, roll) {
  const text = doc.getText("content");
  doc.transact(() => {
    if (text.length > 20 && roll(3) === 0) {
      text.delete(roll(text.length - 3), 1 + roll(3));
    } else {
      text.insert(roll(text.length + 1), `${name}${round} `);
    }
    doc.getArray("ledger").push([`${name}:${round}`]);
  });
}

async function edit(kind, name, document, edits, peers, out) {
  const client = kinds[kind](document, name, process.env.NODE_TOKEN);
  const { doc } = client;
  const roll = dice(name);
  await until("the first sync", client.isSynced);
  for (let round = 0; round < edits; round++) {
    if (round > 0 && round % Math.ceil(edits / 4) === 0) {
      client.disconnect();
      for (let offline = 0; offline < 5 && round < edits; offline++, round++) editOnce(doc, name, round, roll);
      await sleep(roll(50));
      await client.connect();
      round--;
      continue;
    }
    editOnce(doc, name, round, roll);
    await sleep(roll(8));
  }
  const [done, seen] = [doc.getMap("done"), doc.getMap("seen")];
  done.set(name, edits);
  await until("all are done", () => peers.every((peer) => done.has(peer)));
  seen.set(name, true);
  await until("all have seen it", () => peers.every((peer) => seen.has(peer)));
  await until("what it sent is kept", client.isSaved);
  writeFileSync(out, Y.encodeStateAsUpdate(doc));
  await sleep(100);
  client.destroy();
}

/** A token that may only read: what others write comes, what one writes oneself is refused, and that is said. */
async function roles(document) {
  const yjs = overYjs(document, "reader", process.env.READER_TOKEN);
  const denied = [];
  console.warn = (text) => denied.push(text);
  await until("a reader is synced", yjs.isSynced);
  yjs.doc.getText("content").insert(0, "not mine");
  await until("y-websocket's reader is denied", () => denied.some((text) => text.includes("forbidden")));
  yjs.destroy();
  const hocuspocus = overHocuspocus(document, "reader", process.env.READER_TOKEN);
  await until("the provider's reader is synced", () => hocuspocus.isSynced() && hocuspocus.isSaved());
  assert.equal(hocuspocus.said.scope, "readonly");
  assert.ok(!hocuspocus.doc.getText("content").toString().includes("not mine"));
  hocuspocus.doc.getText("content").insert(0, "nor mine");
  await sleep(300);
  assert.ok(hocuspocus.provider.hasUnsyncedChanges, "an edit that is refused is not confirmed");
  hocuspocus.provider.sendStateless("hello");
  await until("stateless messages are refused", () => hocuspocus.said.stateless.length > 0);
  assert.equal(JSON.parse(hocuspocus.said.stateless[0]).error.code, "operation_unknown");
  hocuspocus.destroy();
  const stranger = overHocuspocus(document, "stranger", "no token");
  await until("a stranger is denied", () => stranger.said.failed !== null);
  assert.match(stranger.said.failed, /token_invalid/);
  stranger.destroy();
}

/** One document of a socket is sent more than an edit may be: it is closed, nobody is logged out, and the other goes on. */
async function large(document, other) {
  const socket = hocuspocusSocket();
  let closings = 0;
  const [big, small] = [document, other].map((name) => overHocuspocus(name, "large", process.env.NODE_TOKEN, socket));
  await until("both are synced", () => big.isSynced() && small.isSynced() && big.isSaved() && small.isSaved());
  socket.on("close", () => closings++);
  big.doc.getText("content").insert(0, "x".repeat(3 << 20));
  await until("the large one is closed", () => big.said.closed !== null);
  assert.match(big.said.closed.reason, /body_too_large/);
  big.doc.getText("content").insert(0, "more");
  small.doc.getText("content").insert(0, "some");
  await until("the other is saved", small.isSaved);
  assert.equal(closings, 0, "the socket stays");
  assert.deepEqual([big.said.failed, small.said.failed, small.said.closed], [null, null, null]);
  [big, small].forEach((client) => client.provider.destroy());
  socket.destroy();
}

/** What a state is, whoever encoded it: text, the other roots, and Yjs's own snapshot of what was written and deleted. */
function canon(file) {
  const doc = new Y.Doc();
  Y.applyUpdate(doc, readFileSync(file));
  const roots = { text: doc.getText("content").toString(), ledger: doc.getArray("ledger").toJSON(), done: doc.getMap("done").toJSON() };
  const digest = (bytes) => createHash("sha256").update(bytes).digest("hex");
  const [vector, snapshot] = [Y.encodeStateVector(doc), Y.encodeSnapshot(Y.snapshot(doc))];
  return { ...roots, vector: digest(vector), snapshot: digest(snapshot), update: digest(Y.encodeStateAsUpdate(doc)) };
}

const [what, ...rest] = process.argv.slice(2);
if (what === "edit") {
  const [kind, name, document, edits, peers, out] = rest;
  await edit(kind, name, document, Number(edits), peers.split(","), out);
} else if (what === "roles") {
  await roles(rest[0]);
} else if (what === "large") {
  await large(...rest);
} else if (what === "canon") {
  await new Promise((resolve) => process.stdout.write(JSON.stringify(rest.map(canon)), resolve));
} else {
  assert.fail(`what is ${what}?`);
}
process.exit(0);
