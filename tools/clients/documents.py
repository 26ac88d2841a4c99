"""Stock editors of Yjs, clients of the JSON protocol and the node's own, in one document at once; and bad input.

Reads NODE_HTTP (HOST:PORT), NODE_TOKEN, NODE_DATA (the node's folder), THALWEG (the binary), and NODE_PROGRAM, which runs
documents.mjs. EDITS says how many edits each editor makes. Nothing is waited for without an end: not longer than PATIENCE
for anything, nor than CHECK_MAX for a whole check, in seconds; what was waited for is said.
"""

import asyncio
import base64
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import jsonschema_rs
import websockets
from pycrdt import Array, Doc, Map, Provider, Text
from websockets.asyncio.client import connect

HTTP = os.environ["NODE_HTTP"]
TOKEN = os.environ["NODE_TOKEN"]
HERE = Path(__file__).parent
EDITS = int(os.environ.get("EDITS", "150"))
PATIENCE = int(os.environ.setdefault("PATIENCE", "120"))
CHECK_MAX = 5 * PATIENCE
RUN = f"ci/{os.getpid()}"
SCHEMA = json.load(urllib.request.urlopen(f"http://{HTTP}/ws/schema.json", timeout=PATIENCE))
SAID, TOLD = (
    jsonschema_rs.validator_for({**SCHEMA, "anyOf": [{"$ref": f"#/$defs/{side}"}]}) for side in ("client", "server")
)


def thalweg(*arguments, **more):
    command = [os.environ["THALWEG"], *arguments, "--data", os.environ["NODE_DATA"]]
    environment = {name: value for name, value in os.environ.items() if name not in ("THALWEG_SERVER", "THALWEG_TOKEN")}
    return subprocess.run(command, check=True, capture_output=True, env=environment, timeout=PATIENCE, **more).stdout


READER = thalweg("admin", "token", "--user", "reader", "--allow", f"read:{RUN}*").decode().strip()
os.environ["READER_TOKEN"] = READER
KEEPER = thalweg("admin", "token", "--user", "keeper", "--allow", f"admin:{RUN}*").decode().strip()


async def javascript(*arguments):
    program = [os.environ["NODE_PROGRAM"], str(HERE / "documents.mjs"), *map(str, arguments)]
    process = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE)
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, f"documents.mjs {arguments} failed"
    return output


@contextlib.asynccontextmanager
async def within(what, seconds=PATIENCE):
    """Fails, saying what was waited for, if it takes longer, however much happens meanwhile."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise AssertionError(f"waited {seconds} s: {what}") from None


async def until(what, is_so):
    async with within(what):
        while not is_so():
            await asyncio.sleep(0.01)


async def together(*runs):
    """Runs all of them. When one fails, the others are ended."""
    tasks = [asyncio.ensure_future(run) for run in runs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def connected(url, **more):
    # The node pings, and what this library gives its own pings is less than a slow machine may need.
    return connect(url, max_size=None, ping_interval=None, open_timeout=PATIENCE, **more)


async def heard(socket, begin, what):
    """The next message that begins so; others are passed over."""
    async with within(what):
        while not (message := await socket.recv()).startswith(begin):
            pass
        return message


class Json:
    """A client of /ws. Every message, of both sides, is held to the schema."""

    def __init__(self, token=TOKEN, **hello):
        self.hello = {"token": token, **hello}

    async def __aenter__(self):
        self.socket = await connected(f"ws://{HTTP}/ws")
        self.answers, self.news, self.last, self.fault = {}, asyncio.Queue(), 0, None
        self.reads = asyncio.create_task(self.read())
        await self.ask("hello", **self.hello)
        return self

    async def __aexit__(self, *_):
        await self.socket.close()
        self.reads.cancel()

    async def read(self):
        fault = ConnectionError("the node closed /ws")
        try:
            async for text in self.socket:
                message = json.loads(text)
                TOLD.validate(message)
                answer = self.answers.pop(message.get("id"), None)
                if answer is None:
                    self.news.put_nowait(message)
                elif not answer.done():
                    answer.set_result(message)
        except Exception as error:
            fault = error
        # Whoever waits is told what is wrong, and not that it took too long.
        self.fault = fault
        for answer in self.answers.values():
            if not answer.done():
                answer.set_exception(fault)
        self.news.put_nowait(None)

    async def told(self, what, fits=lambda message: True):
        """The next news that fit; others are passed over."""
        async with within(what):
            while (message := await self.news.get()) is not None:
                if fits(message):
                    return message
        raise self.fault

    async def start(self, what, **fields):
        self.last += 1
        message = {"type": what, "id": self.last, **fields}
        SAID.validate(message)
        if self.fault:
            raise self.fault
        self.answers[self.last] = asyncio.get_running_loop().create_future()
        await self.socket.send(json.dumps(message))
        return self.last, self.answers[self.last]

    async def ask(self, what, fails=None, **fields):
        async with within(f"the answer to {what}"):
            _, answer = await self.start(what, **fields)
            answer = await answer
        assert answer.get("code") == fails, (what, fields, answer)
        return answer


class Channel:
    """A WebSocket as pycrdt's provider wants it."""

    def __init__(self, socket, path):
        self.socket, self.path = socket, path

    def __aiter__(self):
        return self

    async def __anext__(self):
        try:
            return await self.socket.recv()
        except websockets.ConnectionClosed:
            raise StopAsyncIteration from None

    async def send(self, message):
        try:
            await self.socket.send(message)
        except websockets.ConnectionClosed:
            pass

    async def recv(self):
        return await self.socket.recv()


def yjs_url(document, token=TOKEN):
    return f"ws://{HTTP}/yjs/{document}?token={token}"


async def edit_with_pycrdt(name, document, peers, out):
    doc = Doc()
    text, ledger = doc.get("content", type=Text), doc.get("ledger", type=Array)
    done, seen = doc.get("done", type=Map), doc.get("seen", type=Map)
    dice, rounds = random.Random(name), iter(range(EDITS))

    def once(number):
        with doc.transaction():
            if len(text) > 20 and dice.random() < 0.3:
                at = dice.randrange(len(text) - 3)
                del text[at : at + dice.randint(1, 3)]
            else:
                text.insert(dice.randint(0, len(text)), f"{name}{number} ")
            ledger.append(f"{name}:{number}")

    for part in range(4):
        async with connected(yjs_url(document)) as socket, Provider(doc, Channel(socket, document)) as provider:
            async with within(f"{name} is synced"):
                await provider.synced.wait()
            for _, number in zip(range(EDITS // 4 - 5 if part < 3 else EDITS), rounds):
                once(number)
                await asyncio.sleep(dice.random() * 0.008)
            if part == 3:
                done[name] = EDITS
                await until("all are done", lambda: all(peer in done for peer in peers))
                seen[name] = True
                await until("all have seen it", lambda: all(peer in seen for peer in peers))
                out.write_bytes(doc.get_update())
                # The others wait for that, too; there are no answers to what it sent.
                async with Json() as client, within(f"the node has what {name} sent"):
                    while name not in (await client.ask("read", document=document, form="json"))["json"].get("seen", {}):
                        await asyncio.sleep(0.05)
        for _, number in zip(range(5), rounds):
            once(number)  # offline


def transformed(at, operations):
    """Where an offset lies after an edit; what is inserted at that very place comes before it."""
    before = after = 0
    for part in operations:
        (kind, length), = part.items()
        if before > at:
            break
        if kind == "insert":
            after += len(length)
        elif kind == "retain":
            if before + length > at:
                return after + at - before
            before, after = before + length, after + length
        else:
            if before + length > at:
                return after
            before += length
    return after + at - before


def applied(text, operations):
    edited, at = "", 0
    for part in operations:
        (kind, value), = part.items()
        if kind == "insert":
            edited += value
        else:
            edited += text[at : at + value] if kind == "retain" else ""
            at += value
    return edited + text[at:]


async def begin(client, document, **more):
    """Opens a document; gives the subscription, its text and its revision."""
    opened = await client.ask("open", document=document, **more)
    if opened["bytes"] == 0:
        return opened["id"], "", opened["revision"]
    state = await client.told("a state", lambda news: news.get("subscription") == opened["id"] and news["type"] == "state")
    return opened["id"], state["text"], state["revision"]


async def edit_with_operations(name, document, client):
    """A thin client: it has a text and a revision, and one edit under way. Once it is told that the others are done, it makes
    a last edit: when that is told, everything before it was."""
    dice, left, pending, answer, others, done = random.Random(name), EDITS // 2, None, None, True, False
    subscription, text, revision = await begin(client, document, make=True)
    while True:
        if pending is None and not done and (left > 0 or not others):
            left, done = left - 1, left == 0
            pending = (dice.randint(0, len(text)), f"{name}{left} ")
            operations = [{"retain": pending[0]}, {"insert": pending[1]}]
            _, answer = await client.start("edit", document=document, revision=revision, operations=operations)
        message = await client.told("an edit, or that all are done", lambda news: news.get("subscription") in (None, subscription))
        if message["type"] == "over":
            others = False
        elif message["type"] == "operations" and message.get("own") is not None:
            at, token = pending
            text, revision, pending = text[:at] + token + text[at:], message["to"], None
        elif message["type"] == "operations":
            text, revision = applied(text, message["operations"]), message["to"]
            if pending:
                pending = (transformed(pending[0], message["operations"]), pending[1])
        elif message["type"] == "state":
            text, revision = message["text"], message["revision"]
        if answer and (answer.done() or message["type"] == "state"):
            async with within("the answer to an edit"):
                written = await answer
            assert written["type"] == "published", written
            answer = None
            if message["type"] == "state" and written["position"] > revision:
                # Where its edit stands in this text it cannot know.
                await client.ask("unsubscribe", subscription=subscription)
                subscription, text, revision = await begin(client, document)
            if message["type"] == "state":
                pending = None
        if done and pending is None and answer is None:
            return text


async def edit_with_thalweg(name, document):
    """The node's own client, over QUIC."""
    for number in range(4):
        lines = "".join(json.dumps([{"insert": f"{name}{number}.{line} "}]) + "\n" for line in range(3))
        revisions = await asyncio.to_thread(thalweg, "doc", "apply", document, input=lines.encode())
        assert len(revisions.split()) == 3, revisions


async def all_at_once():
    document = f"{RUN}/together"
    peers = ["yjs", "yjs2", "hocus", "pycrdt"]
    with tempfile.TemporaryDirectory() as folder:
        out = {name: Path(folder) / name for name in [*peers, "node", "native"]}
        async with Json() as client:
            await client.ask("create", channel=document, kind="document")
            arguments = (document, EDITS, ",".join(peers))

            async def others():
                await together(
                    javascript("edit", "yjs", "yjs", *arguments, out["yjs"]),
                    javascript("edit", "yjs", "yjs2", *arguments, out["yjs2"]),
                    javascript("edit", "hocuspocus", "hocus", *arguments, out["hocus"]),
                    edit_with_pycrdt("pycrdt", document, peers, out["pycrdt"]),
                    edit_with_thalweg("native", document),
                )
                client.news.put_nowait({"type": "over"})

            text, _ = await together(edit_with_operations("thin", document, client), others())
        # The editors left when they agreed; the thin client and the command may have written after that.
        async with connected(yjs_url(document)) as socket:
            last = Doc()
            async with Provider(last, Channel(socket, document)) as provider, within("what was written at last"):
                await provider.synced.wait()
        for name in peers:
            doc = Doc()
            doc.apply_update(out[name].read_bytes())
            doc.apply_update(last.get_update(doc.get_state()))
            out[name].write_bytes(doc.get_update())
        async with Json() as client:
            state = (await client.ask("read", document=document, form="state"))["state"]
            out["node"].write_bytes(base64.b64decode(state))
            assert (await client.ask("read", document=document))["text"] == text, "the thin client's text is the node's"
        out["native"].write_bytes(thalweg("doc", "get", document, "--format", "update"))
        states = json.loads(await javascript("canon", *out.values()))
    first = states[0]
    for name, state in zip(out, states):
        assert state == first, f"{name} differs: {state} {first}"
    assert first["text"] == text
    expected = [f"{name}:{n}" for name in peers for n in range(EDITS)]
    assert sorted(first["ledger"]) == sorted(expected), "every edit is there, once"
    await javascript("roles", document)
    await javascript("large", f"{document}-large", f"{document}-small")
    return f"{len(expected)} edits, {len(text)} characters"


def number(value):
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(encoded + bytes([value]))


def sync(kind, update):
    return bytes([0, kind]) + number(len(update)) + update


class Bystander:
    """Reads a document and edits it while others misbehave."""

    def __init__(self, document):
        self.document, self.doc, self.count = document, Doc(), 0
        self.client = Json()

    async def __aenter__(self):
        await self.client.__aenter__()
        await self.client.ask("open", document=self.document, make=True)
        return self

    async def __aexit__(self, *_):
        await self.client.__aexit__()

    async def is_unaffected(self):
        """It makes an edit, and somebody who comes sees it."""
        self.count += 1
        doc = Doc()
        doc.get("log", type=Array).append(f"bystander {self.count}")
        update = base64.b64encode(doc.get_update()).decode()
        began = time.monotonic()
        await self.client.ask("edit", document=self.document, update=update)
        seen = (await self.client.ask("read", document=self.document, form="json"))["json"]
        assert len(seen["log"]) == self.count, seen
        return time.monotonic() - began


async def closing(socket):
    """The code and the reason that a socket is closed with."""
    try:
        async with within("the node closes"):
            while True:
                await socket.recv()
    except websockets.ConnectionClosed as closed:
        assert closed.rcvd, "it was cut off without a word"
        return closed.rcvd.code, closed.rcvd.reason


async def bad_input():
    document = f"{RUN}/bad"
    honest = Doc()
    honest.get("content", type=Text).insert(0, "some text")
    update = honest.get_update()
    async with Bystander(document) as bystander:
        await bystander.is_unaffected()

        async def parted(what, message, code, says):
            # Not closed by us: the node does, and this library stumbles over a connection that went while it was sending.
            socket = await connected(yjs_url(document))
            async with within(f"{what} is sent"):
                try:
                    await socket.send(sync(0, b"\0"))
                    await socket.send(message)
                except websockets.ConnectionClosed:
                    pass
            found = await closing(socket)
            assert found[0] == code and says in found[1], (what, found)
            await bystander.is_unaffected()

        for cut in (1, len(update) // 2, len(update) - 1):
            await parted("a truncated update", sync(2, update[:cut]), 4400, "update_invalid")
        await parted("a truncated message", bytes([0, 2, 200, 1]), 4400, "frame_invalid")
        await parted("a count of structs beyond memory", sync(2, b"\1" + number(2**52) + b"\1\0"), 4400, "update_invalid")
        nested = b"\1\1" + number(99) + b"\0" + b"\x08\1\3log\1" + b"\x75\1" * 200_000
        await parted("a value nested without end", sync(2, nested), 4400, "update_invalid")
        await parted("10 MB", sync(2, bytes(10 << 20)), 4413, "")
        await parted("more than an edit may be", sync(2, bytes(900 << 10)), 4413, "paste in pieces")
        await parted("far more than an edit may be", sync(1, bytes(5 << 20)), 4413, "in pieces")
        await parted("a text", "{}", 4400, "frame_invalid")
        await parted("an unknown type", bytes([99]), 4400, "operation_unknown")
        await parted("awareness that makes no sense", bytes([1, 3, 9, 9, 9]), 4400, "update_invalid")
        await incomplete(document, bystander)
        await flood(document, bystander)
        await strangers(document)
        async with Json() as client:
            operations = [{"insert": "x"}]
            await client.ask("edit", document=document, revision=10**9, operations=operations, fails="revision_unknown")
            operations = [{"retain": 10**6}, {"insert": "x"}]
            await client.ask("edit", document=document, revision=1, operations=operations, fails="operations_invalid")
        await bystander.is_unaffected()
    tiny = await million_tiny(f"{RUN}/tiny")
    await deleted(f"{RUN}/deleted")
    return tiny


async def incomplete(document, bystander):
    """An update that builds on what was never sent: the node asks for what it lacks, and parts with who does not say it."""
    doc = Doc()
    text = doc.get("content", type=Text)
    text.insert(0, "first ")
    state = doc.get_state()
    text.insert(6, "second ")
    async with connected(yjs_url(document)) as socket:
        await socket.send(sync(0, b"\0"))
        await heard(socket, b"\0\0", "what the node has")
        await socket.send(sync(2, doc.get_update(state)))
        await heard(socket, b"\0\0", "the node asks for what it lacks")
        await socket.send(sync(1, doc.get_update()))
        async with Json() as client, within("what was asked for is there"):
            while "first second" not in (await client.ask("read", document=document))["text"]:
                await asyncio.sleep(0.01)
    await bystander.is_unaffected()


async def flood(document, bystander):
    """Awareness without end: what is too much is dropped, and others go on."""
    state = json.dumps({"user": {"name": "x" * 500}}).encode()
    async with connected(yjs_url(document)) as socket, within("3000 updates of awareness are taken"):
        await socket.send(sync(0, b"\0"))
        for clock in range(1, 3_000):
            entry = b"\1" + number(4711) + number(clock) + number(len(state)) + state
            await socket.send(b"\1" + number(len(entry)) + entry)
            if clock % 1_000 == 0:
                await bystander.is_unaffected()


async def strangers(document):
    """Who has no token, a wrong one, or comes from a page of somebody else's."""
    async with connected(f"ws://{HTTP}/yjs/{document}") as socket:
        assert (await closing(socket))[0] == 4401
    async with connected(yjs_url(document, "wrong")) as socket:
        assert (await closing(socket))[0] == 4401
    async with connected(yjs_url("a%20b")) as socket:
        code, reason = await closing(socket)
        assert code == 4400 and "name_invalid" in reason, (code, reason)
    async with connected(yjs_url(f"{document}-none", READER)) as socket:
        await socket.send(sync(0, b"\0"))
        code, reason = await closing(socket)
        assert code in (4403, 4404), (code, reason)
    async with connected(f"ws://{HTTP}/yjs/{document}", subprotocols=["thalweg", f"bearer.{TOKEN}"]) as socket:
        assert socket.subprotocol == "thalweg"
        await socket.send(sync(0, b"\0"))
        await heard(socket, b"\0\1", "who shows a token as a subprotocol is served")
    try:
        await connected(yjs_url(document), origin="https://evil.example")
        raise AssertionError("a page of another origin was let in")
    except websockets.InvalidStatus as refused:
        assert refused.response.status_code == 403
    try:
        urllib.request.urlopen(f"http://{HTTP}/ws", timeout=PATIENCE)
        raise AssertionError("no upgrade")
    except urllib.error.HTTPError as refused:
        assert refused.code == 426 and json.load(refused)["error"]["code"] == "upgrade_required"


async def million_tiny(document):
    """A million tiny updates, scaled to what a check may take: all are kept, and told merged."""
    count = 30_000
    doc = Doc()
    text = doc.get("content", type=Text)
    updates = []
    subscription = doc.observe(lambda event: updates.append(event.update))
    for _ in range(count):
        text.insert(len(text), "x")
    doc.unobserve(subscription)
    began = time.monotonic()
    async with Json() as reader, connected(yjs_url(document)) as socket:
        await socket.send(sync(0, b"\0"))
        await heard(socket, b"\0\1", "the document")
        await reader.ask("open", document=document)

        async def send():
            for update in updates:
                await socket.send(sync(2, update))

        async def read():
            length, messages = 0, 0
            while length < count:
                message = await reader.told(f"{length} of {count} tiny updates were told")
                messages += 1
                if message["type"] == "state":
                    length = len(message["text"])
                elif message["type"] == "operations":
                    length += sum(len(part.get("insert", "")) for part in message["operations"])
            return messages

        async with within(f"{count} tiny updates", 2 * PATIENCE):
            _, messages = await together(send(), read())
    seconds = time.monotonic() - began
    return f"{count} tiny updates in {seconds:.1f} s, told in {messages} messages"


async def deleted(document):
    """A document is deleted while it is open: all who have it open are told, in their protocol."""
    async with Json() as client, Json(KEEPER) as keeper, connected(yjs_url(document)) as socket:
        await socket.send(sync(0, b"\0"))
        await heard(socket, b"\0\1", "the document")
        subscription = (await client.ask("open", document=document))["id"]
        await client.ask("delete", channel=document, fails="forbidden")
        await keeper.ask("delete", channel=document)
        code, reason = await closing(socket)
        assert code == 4410 and "channel_deleted" in reason, (code, reason)
        message = await client.told("the subscription is ended", lambda news: news["type"] == "ended")
        assert message["subscription"] == subscription and message["code"] == "channel_deleted", message
        await client.ask("ping")


async def everything_else():
    """Channels, generations and what is left of documents, over /ws."""
    channel, document = f"{RUN}/channel", f"{RUN}/else"
    async with Json() as client, Json() as other:
        subscription = (await client.ask("subscribe", channel=channel, make=True))["id"]
        first = await other.ask("publish", channel=channel, text="hello")
        message = await client.told("a message")
        assert message["text"] == "hello" and message["subscription"] == subscription, message
        again = await other.ask("publish", channel=channel, text="hello", sequence=first["sequence"], retry=True)
        assert again["duplicate"] and again["position"] == first["position"]
        page = await client.ask("history", channel=channel)
        assert [record["text"] for record in page["messages"]] == ["hello"]
        await client.ask("unsubscribe", subscription=subscription)
        await client.ask("publish", channel=f"{channel}-none", text="x", fails="channel_unknown")
        await client.ask("ping")
        opened = await client.ask("open", document=document, make=True)
        assert opened["made"] and opened["access"] == "write" and opened["bytes"] == 0, opened
        one = await client.ask("edit", document=document, revision=opened["revision"], operations=[{"insert": "one"}])
        await client.ask("version", document=document, name="first")
        await client.ask("edit", document=document, revision=one["position"], operations=[{"retain": 3}, {"insert": " two"}])
        assert (await client.ask("read", document=document))["text"] == "one two"
        assert (await client.ask("read", document=document, revision=one["position"]))["text"] == "one"
        await client.ask("restore", document=document, revision=one["position"])
        assert (await client.ask("read", document=document))["text"] == "one"
        assert (await begin(other, document))[1] == "one"
        await client.ask("open", document=channel, fails="kind_mismatch")
        await named(channel)
        asked = await client.ask("ask", prompt="Say hello.", max_tokens=8, temperature=0)
        text = ""
        while True:
            message = await client.told("an answer goes on", lambda news: news.get("watch") == asked["id"])
            if message["type"] == "finished":
                break
            text += message["text"]
        assert text and message["usage"]["completion_tokens"] > 0, (text, message)


async def named(channel):
    """A session that goes on over another socket: what is repeated there is known."""
    session = os.urandom(16).hex()
    async with Json(session=session) as client:
        await client.ask("publish", channel=channel, text="first", fails="parameter_invalid")
        first = await client.ask("publish", channel=channel, text="first", sequence=1)
    async with Json(session=session) as client:
        again = await client.ask("publish", channel=channel, text="first", sequence=1, retry=True)
        assert again["duplicate"] and again["position"] == first["position"], again
        second = await client.ask("publish", channel=channel, text="second", sequence=2)
        assert not second["duplicate"] and second["position"] > first["position"], second
        await client.ask("publish", channel=channel, text="x", sequence=2**53 - 1)


CHECKS = [everything_else, all_at_once, bad_input]


async def main():
    failed = []
    for check in CHECKS:
        if len(sys.argv) > 1 and check.__name__ not in sys.argv[1:]:
            continue
        began = time.monotonic()
        try:
            async with within(check.__name__, CHECK_MAX):
                said = await check()
            print(f"documents: {check.__name__} in {time.monotonic() - began:.1f} s{f': {said}' if said else ''}", flush=True)
        except Exception as error:  # All of them are tried.
            import traceback

            traceback.print_exc()
            failed.append(f"{check.__name__}: {type(error).__name__}: {error}")
    for line in failed:
        print(f"documents: {line}", file=sys.stderr)
    sys.exit(bool(failed))


asyncio.run(main())
