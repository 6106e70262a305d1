// client.js against a server, a clock and a network that do as they are told. Run by tests/test_web.py: node --test
import assert from "node:assert/strict";
import test from "node:test";

import { Client } from "../../app/web/client.js";

const TOKENS = { accessToken: "a1", expiresIn: 600, refreshToken: "r1", refreshExpiresIn: 6000, sessionId: "s1", userId: "u1" };

/** Everything a client needs of a browser. */
class World {
  now = 1_000_000;
  timers = [];
  sockets = [];
  posts = [];
  listeners = {};
  isOnline = true;
  isVisible = true;
  mark = { seconds: 0, get: () => this.mark.seconds > 0, set: (seconds) => { this.mark.seconds = seconds; } };
  answerPost = () => { throw new TypeError("no network"); };

  parts() {
    return {
      open: (url) => { const socket = new Socket(url); this.sockets.push(socket); return socket; },
      fetch: async (url, init) => {
        const post = { event: new URL(url).pathname.slice(4), data: JSON.parse(init.body), key: init.headers["idempotency-key"] };
        this.posts.push(post);
        return { json: async () => this.answerPost(post, init.signal) };
      },
      after: (ms, then) => {
        const timer = { at: this.now + ms, then };
        this.timers.push(timer);
        return () => { this.timers = this.timers.filter((other) => other !== timer); };
      },
      now: () => this.now,
      random: () => 0.5,
      locks: undefined,
      channel: undefined,
      online: () => this.isOnline,
      listen: (type, then) => { this.listeners[type] = then; },
      visible: () => this.isVisible,
      mark: this.mark,
    };
  }

  client(options) { return new Client({ url: "https://login.test", world: this.parts(), ...options }); }

  /** Let time pass, timer by timer. */
  async pass(ms) {
    const until = this.now + ms;
    for (;;) {
      await settle();
      const next = this.timers.filter(({ at }) => at <= until).sort((one, other) => one.at - other.at)[0];
      if (!next) break;
      this.timers = this.timers.filter((other) => other !== next);
      this.now = Math.max(this.now, next.at);
      next.then();
    }
    this.now = until;
    await settle();
  }

  get socket() { return this.sockets.at(-1); }
}

class Socket {
  sent = [];
  constructor(url) { this.url = url; }
  send(text) { this.sent.push(JSON.parse(text)); }
  close() { this.isClosed = true; }
  say(event, data = {}, id = undefined) { this.onmessage({ data: JSON.stringify({ event, data, ...(id === undefined ? {} : { id }) }) }); }
  greet() { this.say("connected", { maxInFlight: 2 }); }
  answer(event, data = {}) { this.say(event, data, this.sent.at(-1).id); }
  end(code) { this.onclose({ code }); }
}

const settle = async () => { for (let n = 0; n < 20; n++) await null; };

test("a request goes out once the server has spoken, under a key, and its answer comes back", async () => {
  const world = new World();
  const progress = [];
  const asked = world.client().ask("login", { email: "a@b.c" }, { onProgress: ({ event, data }) => progress.push([event, data.position]) });
  assert.equal(world.socket.url, "wss://login.test/ws");
  assert.deepEqual(world.socket.sent, []);
  world.socket.greet();
  const [frame] = world.socket.sent;
  assert.match(frame.key, /^[A-Za-z0-9_-]{16,64}$/);
  assert.deepEqual([frame.event, frame.data], ["login", { email: "a@b.c" }]);
  world.socket.answer("queued", { position: 42, etaMs: 310 });
  world.socket.answer("login_failure", { code: "invalid_credentials", retryable: false });

  assert.equal((await asked).data.code, "invalid_credentials");
  assert.deepEqual(progress, [["queued", 42]]);
});

test("what had no answer when the connection was lost is sent again, under the same key", async () => {
  const world = new World();
  const told = [];
  const asked = world.client().ask("login", { email: "a@b.c" }, { onProgress: ({ event }) => told.push(event) });
  world.socket.greet();
  const [first] = world.socket.sent;
  world.socket.end(1006);
  await world.pass(1000);
  assert.equal(world.sockets.length, 2);
  world.socket.greet();
  const [second] = world.socket.sent;
  world.socket.answer("login_failure", { code: "invalid_credentials" });

  assert.deepEqual([second.key, second.data], [first.key, first.data]);
  assert.equal((await asked).event, "login_failure");
  assert.deepEqual(told, ["resending", "resent"]);
});

test("reconnects come ever more slowly, and again quickly after a connection that was good", async () => {
  const world = new World();
  const waits = [];
  const client = world.client();
  client.on("state", ({ name, retryInMs }) => name === "waiting" && waits.push(retryInMs));
  client.connect();
  for (let n = 0; n < 8; n++) {
    world.socket.end(1006);
    await world.pass(waits.at(-1));
  }
  world.socket.greet();
  await world.pass(6_000);
  world.socket.end(1001);

  assert.deepEqual(waits, [375, 750, 1500, 3000, 6000, 12_000, 15_000, 15_000, 188]);
});

for (const code of [1003, 1007, 1008, 1009]) {
  test(`a connection closed with ${code} is not opened again, and who waits is told`, async () => {
    const world = new World();
    const client = world.client();
    const asked = client.ask("login");
    world.socket.greet();
    world.socket.end(code);
    await world.pass(600_000);

    assert.equal((await asked).event, "error");
    assert.deepEqual([world.sockets.length, client.state.name], [1, "refused"]);
  });
}

test("after flooding it comes back only after a minute, whatever else happens", async () => {
  const world = new World();
  const client = world.client();
  client.connect();
  world.socket.greet();
  world.socket.end(4429);
  world.listeners.online();
  await world.pass(59_000);
  assert.equal(world.sockets.length, 1);
  await world.pass(8_000);
  assert.equal(world.sockets.length, 2);
});

test("after flooding, neither a request nor a resumed session brings it back sooner", async () => {
  const world = new World();
  world.mark.seconds = 60;
  world.answerPost = () => ({ event: "token_refreshed", data: { ...TOKENS, refreshToken: undefined } });
  const client = world.client();
  client.connect();
  world.socket.greet();
  world.socket.end(4429);
  client.ask("login", {}, { patienceMs: 90_000 });
  assert.equal(world.sockets.length, 1);
  assert.equal((await client.resume()).sessionId, "s1");
  assert.equal(world.sockets.length, 1);
  await world.pass(67_000);
  assert.equal(world.sockets.length, 2);
});

test("an idle connection that was closed is opened when it is needed", async () => {
  const world = new World();
  const client = world.client();
  client.connect();
  world.socket.greet();
  world.socket.end(4408);
  await world.pass(600_000);
  assert.deepEqual([world.sockets.length, client.state.name], [1, "asleep"]);
  client.ask("login");
  assert.equal(world.sockets.length, 2);
});

test("a server that goes away is left as slowly as it has asked", async () => {
  const world = new World();
  world.client().connect();
  world.socket.greet();
  world.socket.say("draining", { reconnectInMs: 3000 });
  world.socket.end(1001);
  await world.pass(2900);
  assert.equal(world.sockets.length, 1);
  await world.pass(200);
  assert.equal(world.sockets.length, 2);
});

test("offline it does not try; back online it does at once, and nothing asked meanwhile is lost", async () => {
  const world = new World();
  const client = world.client();
  client.connect();
  world.socket.greet();
  world.isOnline = false;
  world.listeners.offline();
  const asked = client.ask("request_password_reset", { email: "a@b.c" });
  await world.pass(20_000);
  assert.deepEqual([world.sockets.length, client.state.name], [1, "offline"]);
  world.isOnline = true;
  world.listeners.online();
  world.socket.greet();
  world.socket.answer("password_reset_requested");

  assert.equal((await asked).event, "password_reset_requested");
});

test("a page that was hidden for long takes a new connection when it is looked at", async () => {
  const world = new World();
  world.client().connect();
  world.socket.greet();
  for (const [hidden, sockets] of [[10_000, 1], [60_000, 2]]) {
    world.isVisible = false;
    world.listeners.visibilitychange();
    await world.pass(hidden);
    world.isVisible = true;
    world.listeners.visibilitychange();
    assert.equal(world.sockets.length, sockets);
  }
});

test("a full queue is asked again when it said so, within the patience and under the same key", async () => {
  const world = new World();
  const told = [];
  const asked = world.client().ask("login", {}, { patienceMs: 5000, onProgress: ({ event, data }) => told.push([event, data.code]) });
  world.socket.greet();
  world.socket.answer("error", { code: "overloaded", retryable: true, retryAfterMs: 1000 });
  await world.pass(1200);
  assert.equal(world.socket.sent.length, 2);
  assert.equal(world.socket.sent[1].key, world.socket.sent[0].key);
  world.socket.answer("error", { code: "overloaded", retryable: true, retryAfterMs: 60_000 });

  assert.equal((await asked).data.code, "overloaded");
  assert.deepEqual(told, [["retrying", "overloaded"]]);
});

test("a deadline without a word means that the connection is dead", async () => {
  const world = new World();
  world.client().ask("login", {}, { timeoutMs: 10_000 });
  world.socket.greet();
  await world.pass(14_000);
  assert.equal(world.sockets[0].isClosed, true);
  assert.equal(world.sockets.length, 2);
});

test("it never has more in flight than the server allows", async () => {
  const world = new World();
  const client = world.client();
  const asked = [1, 2, 3].map((n) => client.ask("login", { n }));
  world.socket.greet();
  assert.equal(world.socket.sent.length, 2);
  world.socket.say("login_failure", { code: "invalid_credentials" }, world.socket.sent[0].id);
  await asked[0];
  await settle();
  assert.equal(world.socket.sent.length, 3);
});

test("when its patience is over, a request is answered with an error, connected or not", async () => {
  const world = new World();
  const asked = world.client().ask("login", {}, { patienceMs: 3000 });
  await world.pass(3000);
  assert.equal((await asked).data.code, "deadline_exceeded");
});

/** Signed in, on a connection that is. */
async function signedIn(world, options) {
  world.answerPost = ({ event }) => (event === "claim" ? { event: "claimed", data: { sessionId: "s1" } } : { event, data: {} });
  const client = world.client(options);
  const asked = client.ask("login");
  world.socket.greet();
  world.socket.answer("login_success", TOKENS);
  return { client, answer: await asked };
}

test("a login's refresh token goes into the cookie, and to nobody else", async () => {
  const world = new World();
  const { client, answer } = await signedIn(world);
  assert.deepEqual(world.posts.map(({ event, data }) => [event, data]), [["claim", { refreshToken: "r1" }]]);
  assert.equal("refreshToken" in answer.data, false);
  assert.deepEqual(client.session, { userId: "u1", sessionId: "s1" });
  assert.equal(world.mark.seconds, 6000);
});

test("a claim that had no answer is sent again under its key: the token must not look as if it were used twice", async () => {
  const world = new World();
  let failures = 2;
  world.answerPost = () => {
    if (failures-- > 0) throw new TypeError("no network");
    return { event: "claimed", data: {} };
  };
  const asked = world.client().ask("login");
  world.socket.greet();
  world.socket.answer("login_success", TOKENS);
  await world.pass(5000);
  await asked;

  assert.equal(world.posts.length, 3);
  assert.equal(new Set(world.posts.map(({ key }) => key)).size, 1);
});

/** As fetch does with a server that says nothing. */
const silence = (_, signal) => new Promise((_, reject) => { signal?.addEventListener("abort", () => reject(signal.reason)); });

/** The signals' time is the world's. */
function keepTime(t, world) {
  t.mock.method(AbortSignal, "timeout", (ms) => {
    const controller = new AbortController();
    world.parts().after(ms, () => controller.abort());
    return controller.signal;
  });
}

test("a claim that stalls is sent again under its key, and the login is answered", async (t) => {
  const world = new World();
  keepTime(t, world);
  world.answerPost = (post, signal) => (world.posts.length < 3 ? silence(post, signal) : { event: "claimed", data: {} });
  let answer;
  world.client().ask("login").then((got) => { answer = got; });
  world.socket.greet();
  world.socket.answer("login_success", TOKENS);
  await world.pass(14_000);
  assert.equal(world.posts.length, 1);
  await world.pass(20_000);

  assert.equal(answer?.event, "login_success");
  assert.deepEqual([world.posts.length, new Set(world.posts.map(({ key }) => key)).size], [3, 1]);
});

test("a refresh that stalls does not keep the other tabs from theirs", async (t) => {
  const world = new World();
  keepTime(t, world);
  world.mark.seconds = 60;
  const { locks } = tabs();
  const pair = [1, 2].map(() => new Client({ url: "https://login.test", world: { ...world.parts(), locks } }));
  world.answerPost = silence;
  const sessions = [];
  pair[0].resume();
  await settle();
  world.answerPost = (post, signal) => (
    post.key === world.posts[0].key ? silence(post, signal) : { event: "token_refreshed", data: { ...TOKENS, refreshToken: undefined } }
  );
  pair[1].resume().then((session) => sessions.push(session.sessionId));
  await world.pass(70_000);

  assert.deepEqual(sessions, ["s1"]);
});

test("a refused claim leaves no mark: there is no cookie to resume with", async () => {
  const world = new World();
  world.mark.seconds = 60;
  world.answerPost = () => ({ event: "refresh_failed", data: { code: "token_invalid", retryable: false } });
  const client = world.client();
  const asked = client.ask("login");
  world.socket.greet();
  world.socket.answer("login_success", TOKENS);
  assert.equal((await asked).event, "login_success");
  assert.deepEqual([client.session.userId, world.mark.seconds], ["u1", 0]);
});

test("a cookie that is another user's does not take the page over: nobody is signed in then", async () => {
  const world = new World();
  const { client } = await signedIn(world);
  const told = [];
  client.on("session", ({ session }) => told.push(session));
  world.now += 590_000;
  const theirs = { ...TOKENS, userId: "u0", sessionId: "s0", accessToken: "a0", refreshToken: undefined };
  world.answerPost = () => ({ event: "token_refreshed", data: theirs });

  assert.equal(await client.accessToken(), null);
  assert.deepEqual([client.session, told, world.mark.seconds], [null, [null], 0]);
});

test("who signs in while an older cookie is asked for its user stays signed in", async () => {
  const world = new World();
  world.mark.seconds = 60;
  let answerRefresh;
  world.answerPost = ({ event }) => (
    event === "claim" ? { event: "claimed", data: {} } : new Promise((resolve) => { answerRefresh = resolve; })
  );
  const client = world.client();
  const resumed = client.resume();
  const asked = client.ask("login");
  world.socket.greet();
  world.socket.answer("login_success", TOKENS);
  await asked;
  const theirs = { ...TOKENS, userId: "u0", sessionId: "s0", accessToken: "a0", refreshToken: undefined };
  answerRefresh({ event: "token_refreshed", data: theirs });

  assert.equal((await resumed).userId, "u1");
});

test("a new connection is the session's before anything that needs it is sent", async () => {
  const world = new World();
  const { client } = await signedIn(world);
  world.socket.end(1006);
  await world.pass(1000);
  client.ask("sessions");
  world.socket.greet();
  await settle();
  assert.deepEqual(world.socket.sent.map(({ event }) => event), ["authenticate"]);
  world.socket.answer("authenticated", { sessionId: "s1" });
  await settle();
  assert.deepEqual(world.socket.sent.map(({ event }) => event), ["authenticate", "sessions"]);
});

test("however many need a new access token at once, one refresh brings it", async () => {
  const world = new World();
  const { client } = await signedIn(world);
  world.now += 590_000;
  world.answerPost = () => ({ event: "token_refreshed", data: { ...TOKENS, accessToken: "a2", refreshToken: undefined } });
  const tokens = await Promise.all([1, 2, 3].map(() => client.accessToken()));

  assert.deepEqual(tokens, ["a2", "a2", "a2"]);
  assert.deepEqual(world.posts.slice(1).map(({ event, data }) => [event, data]), [["refresh", {}]]);
});

test("a session that is ended elsewhere is over here, why is told, and the connection comes back as nobody's", async () => {
  const world = new World();
  const { client } = await signedIn(world);
  const told = [];
  client.on("session", ({ session, reason }) => told.push([session, reason]));
  const asked = client.ask("account");
  world.socket.say("session_ended", { sessionId: "s1", reason: "revoked" });
  world.socket.end(4401);
  await world.pass(1000);
  world.socket.greet();

  assert.deepEqual(told, [[null, "revoked"]]);
  assert.equal((await asked).data.code, "not_authenticated");
  assert.deepEqual([client.session, world.mark.seconds, world.socket.sent.length], [null, 0, 0]);
});

test("signing out is told once, whichever word of it comes first", async () => {
  for (const pushFirst of [true, false]) {
    const world = new World();
    const { client } = await signedIn(world);
    const told = [];
    client.on("session", ({ reason }) => told.push(reason));
    const push = () => {
      world.socket.say("session_ended", { sessionId: "s1", reason: "logout" });
      world.socket.end(4401);
    };
    world.answerPost = () => { if (pushFirst) push(); return { event: "logged_out", data: {} }; };
    await client.signOut();
    if (!pushFirst) push();
    await world.pass(1000);
    assert.deepEqual(told, ["logout"]);
  }
});

test("without the mark of an earlier visit, nobody is asked whether there is a session", async () => {
  const world = new World();
  assert.equal(await world.client().resume(), null);
  assert.deepEqual(world.posts, []);
});

test("a mark that stays although there is no cookie has it asked for once", async () => {
  const world = new World();
  let asked = 0;
  world.mark = { get: () => asked < 5, set: () => {} };
  world.answerPost = () => { asked++; return { event: "error", data: { code: "bad_request", retryable: false } }; };
  assert.equal(await world.client().resume(), null);
  assert.equal(asked, 1);
});

test("an earlier visit's session is resumed, also when the server is away at first", async () => {
  const world = new World();
  world.mark.seconds = 60;
  const client = world.client();
  const resumed = client.resume();
  await world.pass(10_000);
  world.answerPost = () => ({ event: "token_refreshed", data: { ...TOKENS, refreshToken: undefined } });
  await world.pass(30_000);
  assert.deepEqual(await resumed, { userId: "u1", sessionId: "s1" });
});

test("a cookie that is good for nothing any more ends it, with the reason", async () => {
  const world = new World();
  world.mark.seconds = 60;
  world.answerPost = () => ({ event: "refresh_failed", data: { code: "token_expired", retryable: false } });
  const client = world.client();
  const told = [];
  client.on("session", ({ reason }) => told.push(reason));
  assert.equal(await client.resume(), null);
  assert.deepEqual([told, world.mark.seconds], [["token_expired"], 0]);
});

test("a token that the server's clock finds expired is renewed once", async () => {
  const world = new World();
  await signedIn(world);
  world.answerPost = () => ({ event: "token_refreshed", data: { ...TOKENS, accessToken: "a2", refreshToken: undefined } });
  world.socket.end(1006);
  await world.pass(1000);
  world.socket.greet();
  await settle();
  world.socket.answer("authentication_failed", { code: "token_expired", retryable: false });
  await settle();
  assert.deepEqual(world.socket.sent.map(({ data }) => data.accessToken), ["a1", "a2"]);
});

test("on another host's page the refresh token stays in the object and is used over the socket", async () => {
  const world = new World();
  const { client } = await signedIn(world, { cookie: false });
  world.now += 590_000;
  const token = client.accessToken();
  await settle();
  assert.deepEqual(world.socket.sent.at(-1).data, { refreshToken: "r1" });
  world.socket.answer("token_refreshed", { ...TOKENS, accessToken: "a2", refreshToken: "r2" });
  assert.equal(await token, "a2");
  assert.deepEqual([world.posts, world.mark.seconds], [[], 0]);
});

/** Two tabs of one browser: what one holds or says, the other knows. */
function tabs() {
  const channels = new Set();
  const held = [];
  const queue = new Map();
  const channel = () => {
    const listeners = [];
    const self = {
      addEventListener: (_, listener) => listeners.push(listener),
      postMessage: (data) => channels.forEach((other) => other !== self && queueMicrotask(() => other.tell(data))),
      close: () => channels.delete(self),
      tell: (data) => listeners.forEach((listener) => listener({ data })),
    };
    channels.add(self);
    return self;
  };
  const locks = {
    query: async () => ({ held }),
    request: async (name, ...rest) => {
      const then = rest.at(-1);
      if (rest.length > 1) { held.push({ name }); return then(); }
      const before = queue.get(name);
      const mine = (async () => { await before; return then(); })();
      queue.set(name, mine.catch(() => {}));
      return mine;
    },
  };
  return { channel, locks };
}

test("two tabs that need a token at once refresh once, and both have it", async () => {
  const world = new World();
  world.mark.seconds = 60;
  world.answerPost = () => ({ event: "token_refreshed", data: { ...TOKENS, refreshToken: undefined } });
  const shared = tabs();
  const pair = [1, 2].map(() => new Client({ url: "https://login.test", world: { ...world.parts(), ...shared } }));
  const both = Promise.all(pair.map((client) => client.resume()));
  await world.pass(2000);

  assert.deepEqual((await both).map((session) => session.sessionId), ["s1", "s1"]);
  assert.equal(world.posts.length, 1);
});

test("a tab that nobody answers refreshes by itself", async () => {
  const world = new World();
  world.mark.seconds = 60;
  world.answerPost = () => ({ event: "token_refreshed", data: { ...TOKENS, refreshToken: undefined } });
  const { channel, locks } = tabs();
  locks.request("finthenticate-page", { mode: "shared" }, async () => {}); // a frozen one
  const client = new Client({ url: "https://login.test", world: { ...world.parts(), channel, locks } });
  const resumed = client.resume();
  await world.pass(1100);
  assert.equal((await resumed).sessionId, "s1");
});

test("a login that waits for a code moves to the next connection before its code is sent there", async () => {
  const world = new World();
  const client = world.client();
  const moved = [];
  client.on("moved", () => moved.push(world.sockets.length));
  const asked = client.ask("login", { email: "a@b.c" });
  world.socket.greet();
  const [login] = world.socket.sent;
  world.socket.answer("new_device_detected", { challenge: "c1", expiresIn: 600 });
  await asked;
  world.socket.end(1006);
  await world.pass(1000);
  const proof = client.ask("verify_device", { challenge: "c1", code: "123456" });
  world.socket.greet();
  await settle();
  assert.deepEqual(world.socket.sent.map(({ event, key }) => [event, key]), [["login", login.key]]);
  world.socket.answer("new_device_detected", { challenge: "c1" });
  await settle();
  assert.equal(world.socket.sent.at(-1).event, "verify_device");
  world.socket.answer("login_success", TOKENS);
  world.answerPost = () => ({ event: "claimed", data: {} });
  await world.pass(5000);

  assert.equal((await proof).event, "login_success");
  assert.deepEqual(moved, [2]);
});

for (const [why, then] of [
  ["that was given up", async (world, client) => client.abandon()],
  ["whose code is too old", async (world) => world.pass(600_000)],
]) {
  test(`a login ${why} is not sent again`, async () => {
    const world = new World();
    const client = world.client();
    const asked = client.ask("login", { email: "a@b.c" });
    world.socket.greet();
    world.socket.answer("new_device_detected", { challenge: "c1", expiresIn: 600 });
    await asked;
    await then(world, client);
    world.socket.end(1006);
    await world.pass(1000);
    world.socket.greet();
    await settle();
    assert.deepEqual(world.socket.sent, []);
  });
}
