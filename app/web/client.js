// @ts-check
/**
 * A client for pages: one WebSocket that comes back by itself, requests that survive it, one session for all tabs.
 *
 *     import { Client } from "https://login.example/web/client.js";
 *
 *     const client = new Client({ url: "https://login.example" });
 *     const answer = await client.ask("login", { email, password }, { onProgress: (event) => … });
 *     if (answer.event === "login_success") …
 *     fetch("/api/…", { headers: { authorization: `Bearer ${await client.accessToken()}` } });
 *
 * What it promises:
 * - A request is sent under one random `key` until it is answered or its patience is over, whatever becomes of the
 *   connection, so it is evaluated once.
 * - A login that waits for a code moves along to the next connection. What the client tells of it: `moved`.
 * - The access token stays in memory. On the gateway's own pages the refresh token goes into a cookie that no script
 *   can read, and all tabs together refresh once; elsewhere (`cookie: false`) it stays in this object.
 * - Close codes are obeyed: some are not answered with a reconnect, and none at once by everybody.
 */

/** @typedef {{event: string, data: any}} Answer A request's terminal event; `data.code` says why it was refused. */
/** @typedef {{userId: string, sessionId: string}} Session */
/** @typedef {Session & {accessToken: string, expiresAt: number}} Token `expiresAt` by this machine's clock, in ms. */
/**
 * @typedef {object} State What the connection is doing.
 * @property {"connecting"|"open"|"waiting"|"offline"|"asleep"|"refused"|"closed"} name
 *   `waiting` tries again in `retryInMs`; `asleep` comes back when it is needed; `refused` does not come back.
 * @property {number} [retryInMs]
 * @property {number} [code] the close code that led here
 */
/**
 * @typedef {object} Options
 * @property {number} [timeoutMs] how long the server may take, each time it is asked (100–30000; 10000)
 * @property {number} [patienceMs] how long to ask again, after lost connections and passing errors (30000)
 * @property {(progress: Answer) => void} [onProgress] `queued` and the like; `retrying {code, inMs}`, `resending {}`
 *   (its connection is lost) and `resent {}` are this client's own
 */
/**
 * @typedef {object} World What it needs of a browser; tests bring their own.
 * @property {(url: string) => WebSocket} open
 * @property {(path: string, init: RequestInit) => Promise<Response>} fetch
 * @property {(ms: number, then: () => void) => () => void} after starts a timer, returns what stops it
 * @property {() => number} now
 * @property {() => number} random
 * @property {LockManager | undefined} locks
 * @property {((name: string) => BroadcastChannel) | undefined} channel
 * @property {() => boolean} online
 * @property {(type: string, then: () => void) => void} listen
 * @property {() => boolean} visible
 * @property {{get(): boolean, set(seconds: number): void}} mark whether there may be a cookie to resume with
 */

const PROGRESS = new Set(["queued", "device_verified", "2fa_verified"]);
const NEEDS_SESSION = new Set(
  `logout sessions revoke_session revoke_other_sessions change_password enroll_2fa confirm_2fa disable_2fa account
   forget_device new_recovery_codes approve_login`.split(/\s+/),
);
const CHALLENGES = new Set(["new_device_detected", "2fa_required"]);
const PROOFS = new Set(["verify_device", "verify_2fa"]);
const SIGNED_IN = new Set(["login_success", "token_refreshed"]);
const ENDED = 4401, IDLE = 4408, FLOODING = 4429;
const NEVER_AGAIN = new Set([1003, 1007, 1008, 1009]);
const FIRST_RETRY_MS = 250, LONGEST_RETRY_MS = 20_000, AFTER_FLOODING_MS = 60_000;
const STEADY_MS = 5_000; // open for so long, a connection counts as good
const HANDSHAKE_MS = 10_000;
const POST_MS = 15_000; // a request over HTTP without an answer: all tabs may be waiting for it
const OVERDUE_MS = 3_000; // past a deadline without a word: the connection is dead
const MARGIN_MS = 30_000; // a token with less life than that is renewed
const LONG_HIDDEN_MS = 30_000; // after that a connection may be dead without anybody having told it
const OTHERS_MS = 1000; // for another tab to say what it has

/** The server could not be asked now. */
class Away extends Error {}

export class Client {
  /** @type {WebSocket | null} */ #socket = null;
  /** @type {State} */ #state = { name: "asleep" };
  /** @type {Map<string, Ask>} */ #asks = new Map();
  /** @type {Map<string, Set<(data: any) => void>>} */ #listeners = new Map();
  /** @type {Token | null} */ #token = null;
  /** @type {string | null} */ #refreshToken = null;
  /** @type {string | null} */ #as = null; // the session that this connection is authenticated as
  /** @type {Promise<void> | null} */ #identifying = null;
  /** @type {Ask | null} */ #step = null; // what brought the challenge that waits for its proof
  /** @type {"here" | "moving" | "elsewhere"} */ #stepIs = "elsewhere";
  /** @type {Promise<Token | null> | null} */ #renewing = null;
  /** @type {() => void} */ #stopTimer = () => {};
  /** @type {BroadcastChannel | undefined} */ #channel;
  #url; #cookie; #world;
  #greeted = false;
  #ids = 0;
  #failures = 0;
  #openedAt = 0;
  #hiddenAt = 0;
  #mostInFlight = 8;
  #returnInMs = 0; // as a server that goes away has asked
  #endReason = "";
  /** @type {() => void} */ #leave = () => {};
  /** @type {(message: any) => void} */ #told = () => {};

  /** @param {{url?: string, cookie?: boolean, world?: Partial<World>}} [options] */
  constructor({ url, cookie = true, world = {} } = {}) {
    this.#world = { ...browser(), ...world };
    this.#url = new URL("/", url ?? globalThis.location.href);
    this.#cookie = cookie;
    this.#channel = cookie ? this.#world.channel?.("finthenticate") : undefined;
    this.#channel?.addEventListener("message", (message) => this.#heard(message.data));
    // held as long as the page lives: how many hold it is how many tabs there are
    const here = new Promise((resolve) => { this.#leave = () => resolve(undefined); });
    if (cookie) this.#world.locks?.request("finthenticate-page", { mode: "shared" }, () => here);
    this.#world.listen("online", () => this.#wake());
    this.#world.listen("offline", () => (this.#socket ? this.#lost(1006) : this.#wake()));
    this.#world.listen("visibilitychange", () => this.#seen());
  }

  get state() { return this.#state; }

  /** Who is signed in here, or nobody. @returns {Session | null} */
  get session() { return this.#token && { userId: this.#token.userId, sessionId: this.#token.sessionId }; }

  /**
   * Be told of `state` (State), `session` ({session, reason}) and of every push by its name.
   * @param {string} name @param {(data: any) => void} listener @returns {() => void} ends it
   */
  on(name, listener) {
    const listeners = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, listeners.add(listener));
    return () => listeners.delete(listener);
  }

  /**
   * Ask, and wait for the one answer. It never rejects: what did not work out is an `error` with a code.
   * @param {string} event @param {object} [data] @param {Options} [options] @returns {Promise<Answer>}
   */
  ask(event, data = {}, { timeoutMs = 10_000, patienceMs = 30_000, onProgress = () => {} } = {}) {
    return new Promise((resolve) => {
      const until = this.#world.now() + patienceMs;
      const id = String(++this.#ids);
      const ask = new Ask(id, event, data, this.#key(), Math.min(timeoutMs, patienceMs), until, resolve, onProgress);
      ask.stopPatience = this.#world.after(patienceMs, () => this.#finish(ask, failure("deadline_exceeded")));
      this.#asks.set(id, ask);
      if (this.#greeted) this.#flush();
      else this.#wake();
    });
  }

  /** The session that the cookie of an earlier visit stands for; null when there is none. @returns {Promise<Session|null>} */
  async resume() {
    for (let failures = 0; !this.#token && this.#cookie && this.#world.mark.get(); failures++) {
      try {
        if (!(await this.#renew())) break; // whatever the mark says: a sibling host may have set it
      } catch (error) {
        if (!(error instanceof Away)) throw error;
        await this.#pause(this.#backoff(failures));
      }
    }
    if (this.#token) this.#wake(); // to be told when it ends
    return this.session;
  }

  /** An access token that is good for a while, for an application's own API; null when nobody is signed in. */
  async accessToken() {
    const token = await this.#fresh().catch(() => this.#token);
    return token && token.accessToken;
  }

  /** End the session, here and in every tab. */
  async signOut() {
    const answer = this.#cookie
      ? await this.#post("logout", {}).catch(() => failure("unavailable"))
      : await this.ask("logout");
    if (answer.data.code && this.#cookie) await this.ask("logout");
    this.#over("logout");
    return answer;
  }

  /** The login that waits for a code will not be gone on with. */
  abandon() {
    this.#step = null;
    this.#flush();
  }

  /** Open the connection ahead of the first request; also what "try now" does. */
  connect() {
    if (this.#socket || this.#state.name === "closed" || this.#state.name === "refused") return;
    this.#stopTimer();
    if (!this.#world.online()) return this.#enter({ name: "offline" });
    this.#enter({ name: "connecting" });
    const socket = this.#world.open(new URL("/ws", this.#url).href.replace(/^http/, "ws"));
    this.#socket = socket;
    this.#stopTimer = this.#world.after(HANDSHAKE_MS, () => this.#lost(1006));
    socket.onmessage = (message) => socket === this.#socket && this.#take(JSON.parse(message.data));
    socket.onclose = (close) => socket === this.#socket && this.#closed(close.code);
  }

  /** For good. Whatever waits is answered with an error. */
  close() {
    this.#enter({ name: "closed" });
    for (const ask of [...this.#asks.values()]) this.#finish(ask, failure("unavailable"));
    this.#lost(1000);
    this.#channel?.close();
    this.#leave();
  }

  // --- the connection ---------------------------------------------------------------------------------------------

  /** @param {any} frame */
  #take(frame) {
    const ask = this.#asks.get(frame.id);
    if (ask) {
      if (PROGRESS.has(frame.event)) ask.onProgress(frame);
      else this.#answered(ask, frame);
    } else if (frame.event === "connected") {
      this.#mostInFlight = frame.data.maxInFlight;
      this.#openedAt = this.#world.now();
      this.#returnInMs = 0;
      this.#stopTimer();
      this.#greeted = true;
      if (this.#token) this.#identify();
      if (this.#step && this.#world.now() > this.#step.until) this.#step = null;
      if (this.#step) this.#move(this.#step);
      this.#enter({ name: "open" });
      this.#flush();
    } else if (frame.id === undefined) {
      if (frame.event === "draining") this.#returnInMs = frame.data.reconnectInMs;
      if (frame.event === "session_ended" && frame.data.sessionId === this.#token?.sessionId) {
        this.#endReason = frame.data.reason;
      }
      this.#tell(frame.event, frame.data);
    }
  }

  /** Give the connection up, whatever the other side thinks of it. @param {number} code */
  #lost(code) {
    const socket = this.#socket;
    if (!socket) return;
    this.#closed(code);
    socket.close();
  }

  /** @param {number} code */
  #closed(code) {
    const steady = this.#greeted && this.#world.now() - this.#openedAt > STEADY_MS;
    const ended = code === ENDED && this.#token !== null && this.#token.sessionId === this.#as;
    this.#stopTimer();
    this.#socket = null;
    this.#greeted = false;
    this.#as = null;
    this.#identifying = null;
    this.#stepIs = "elsewhere";
    for (const ask of this.#asks.values()) {
      if (ask.sent) {
        ask.lost = true;
        ask.onProgress({ event: "resending", data: {} });
      }
      ask.rest();
      if (ask.event === "authenticate" || ask.moves) this.#finish(ask, failure("unavailable")); // it was about this connection
    }
    if (this.#state.name === "closed") return;
    if (ended) this.#over(this.#endReason || "ended");
    this.#failures = steady || code === ENDED ? 0 : this.#failures + 1;
    if (NEVER_AGAIN.has(code)) {
      this.#enter({ name: "refused", code });
      for (const ask of [...this.#asks.values()]) this.#finish(ask, failure("unavailable"));
    } else if (!this.#world.online()) {
      this.#enter({ name: "offline", code });
    } else if (code === IDLE && !this.#asks.size) {
      this.#enter({ name: "asleep", code });
    } else {
      const random = 1 + this.#world.random() / 5;
      const wait = code === FLOODING ? AFTER_FLOODING_MS * random : this.#returnInMs || this.#backoff(this.#failures);
      this.#enter({ name: "waiting", code, retryInMs: Math.round(wait) });
      this.#stopTimer = this.#world.after(wait, () => this.connect());
    }
  }

  /** Longer each time, and by chance, so that not all come back at once. @param {number} failures */
  #backoff(failures) {
    const most = Math.min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** Math.min(failures, 10));
    return most * (0.5 + this.#world.random() / 2);
  }

  /** There is a reason not to wait any longer; after flooding there is none. */
  #wake() {
    if (this.#state.name !== "waiting" || this.#state.code !== FLOODING) this.connect();
  }

  #seen() {
    if (!this.#world.visible()) {
      this.#hiddenAt = this.#world.now();
      return;
    }
    const long = this.#world.now() - this.#hiddenAt > LONG_HIDDEN_MS;
    if (this.#greeted && long && ![...this.#asks.values()].some((ask) => ask.sent)) {
      this.#openedAt = 0; // it was good while it was looked at
      this.#lost(1006);
    }
    this.#wake();
  }

  // --- requests ---------------------------------------------------------------------------------------------------

  #flush() {
    let inFlight = [...this.#asks.values()].filter((ask) => ask.sent).length;
    for (const ask of [...this.#asks.values()]) {
      if (!this.#greeted || inFlight >= this.#mostInFlight) return;
      if (ask.sent || ask.held) continue;
      if (NEEDS_SESSION.has(ask.event)) {
        if (!this.#token) {
          if (this.#renewing) continue;
          this.#finish(ask, failure("not_authenticated"));
          continue;
        }
        if (this.#as !== this.#token.sessionId) {
          this.#identify();
          continue;
        }
      }
      if (PROOFS.has(ask.event) && this.#step && this.#stepIs !== "here") continue;
      this.#send(ask);
      inFlight++;
    }
  }

  /** @param {Ask} ask */
  #send(ask) {
    const { id, event, key, data } = ask;
    const left = ask.until - this.#world.now();
    const timeoutMs = Math.round(Math.min(30_000, Math.max(100, Math.min(ask.timeoutMs, left))));
    if (ask.lost) ask.onProgress({ event: "resent", data: {} });
    ask.sent = true;
    ask.lost = false;
    ask.stopOverdue = this.#world.after(timeoutMs + OVERDUE_MS, () => this.#lost(1006));
    this.#socket?.send(JSON.stringify({ event, id, key, data, timeoutMs }));
  }

  /** @param {Ask} ask @param {Answer} answer */
  async #answered(ask, answer) {
    ask.rest();
    const { code, retryable, retryAfterMs = 500 } = answer.data;
    if (answer.event === "error" && retryable && this.#world.now() + retryAfterMs < ask.until) {
      const inMs = retryAfterMs * (1 + this.#world.random() / 4);
      ask.onProgress({ event: "retrying", data: { code, inMs } });
      ask.held = true;
      ask.stopOverdue = this.#world.after(inMs, () => {
        ask.held = false;
        this.#flush();
      });
    } else if (answer.event === "login_success") {
      this.#asks.delete(ask.id);
      ask.stopPatience();
      this.#as = answer.data.sessionId;
      this.#step = null;
      await this.#keep(answer.data);
      this.#finish(ask, { event: answer.event, data: shown(answer.data) });
    } else {
      if (CHALLENGES.has(answer.event) && !ask.moves) this.#waits(ask, answer.data.expiresIn);
      else if (answer.data.code === "challenge_expired" && PROOFS.has(ask.event)) this.#step = null;
      this.#finish(ask, answer);
    }
    this.#flush();
  }

  /** @param {Ask} ask @param {number} seconds */
  #waits(ask, seconds) {
    [this.#step, this.#stepIs] = [ask, "here"];
    ask.until = this.#world.now() + seconds * 1000 - MARGIN_MS; // later it would be another login
  }

  /** Sent again under its key, a login that waits for a proof belongs to this connection. @param {Ask} step */
  #move(step) {
    this.#stepIs = "moving";
    const until = this.#world.now() + 10_000;
    const ask = new Ask(String(++this.#ids), step.event, step.data, step.key, 10_000, until, () => {
      if (this.#stepIs !== "moving" || this.#step !== step) return;
      this.#stepIs = "here"; // or gone: then its proof is told so
      this.#tell("moved", {});
      this.#flush();
    }, () => {});
    ask.moves = true;
    this.#asks.set(ask.id, ask);
    this.#send(ask);
  }

  /** @param {Ask} ask @param {Answer} answer */
  #finish(ask, answer) {
    ask.rest();
    ask.stopPatience();
    this.#asks.delete(ask.id);
    ask.resolve(answer);
  }

  // --- the session ------------------------------------------------------------------------------------------------

  /** Make this connection the session's; one attempt at a time. */
  #identify() {
    const socket = this.#socket;
    this.#identifying ??= this.#authenticate(socket).then(
      () => {
        if (socket !== this.#socket) return;
        this.#identifying = null;
        if (this.#token && this.#token.sessionId !== this.#as) this.#identify(); // it has changed meanwhile
        this.#flush();
      },
      () => { if (socket === this.#socket) this.#lost(1013); }, // not now: by way of a reconnect
    );
  }

  /** @param {WebSocket | null} socket */
  async #authenticate(socket) {
    let stale;
    for (let tries = 0; tries < 2; tries++) {
      const token = await this.#fresh(stale);
      if (!token || socket !== this.#socket || this.#as === token.sessionId) return;
      const answer = await new Promise((resolve) => {
        const until = this.#world.now() + 10_000;
        const data = { accessToken: token.accessToken };
        const ask = new Ask(String(++this.#ids), "authenticate", data, undefined, 10_000, until, resolve, () => {});
        this.#asks.set(ask.id, ask);
        this.#send(ask);
      });
      if (answer.event === "authenticated") {
        if (socket === this.#socket) this.#as = answer.data.sessionId;
        return;
      }
      if (answer.event === "error") throw new Away();
      if (answer.data.code !== "token_expired") return this.#over(answer.data.code);
      stale = token.accessToken; // by the server's clock it is
    }
    throw new Away();
  }

  /** The token, renewed when it is at its end or known to be. @param {string} [stale] */
  async #fresh(stale) {
    const token = this.#token;
    const good = token && token.accessToken !== stale && token.expiresAt - this.#world.now() > MARGIN_MS;
    return good || !token ? token : this.#renew();
  }

  /** One refresh for all who need it, in this tab and in the others. Away when the server cannot be asked. */
  #renew() {
    const before = this.#token;
    this.#renewing ??= (this.#cookie ? this.#locked(() => this.#renewByCookie(before)) : this.#renewByToken())
      .finally(() => { this.#renewing = null; });
    return this.#renewing;
  }

  /** @param {Token | null} before */
  async #renewByCookie(before) {
    if (this.#token !== before) return this.#token; // another tab was first
    const theirs = await this.#askOthers();
    if (theirs) return this.#adopt(theirs);
    const answer = await this.#post("refresh", {});
    if (SIGNED_IN.has(answer.event)) {
      if (!this.#token || this.#token.userId === answer.data.userId) return this.#keep(answer.data);
      return this.#token === before ? this.#over("") : this.#token; // the cookie is somebody else's
    }
    if (answer.event === "error" && answer.data.code !== "bad_request") throw new Away();
    return this.#over(answer.event === "error" ? "" : answer.data.code); // bad_request: there was no cookie
  }

  async #renewByToken() {
    const answer = await this.ask("refresh", { refreshToken: this.#refreshToken });
    if (SIGNED_IN.has(answer.event)) return this.#keep(answer.data);
    if (answer.event === "error") throw new Away();
    return this.#over(answer.data.code);
  }

  /** New tokens from the server. @param {any} data @returns {Promise<Token>} */
  async #keep(data) {
    const expiresAt = this.#world.now() + data.expiresIn * 1000;
    const token = { userId: data.userId, sessionId: data.sessionId, accessToken: data.accessToken, expiresAt };
    if (this.#cookie) {
      this.#world.mark.set(data.refreshExpiresIn);
      if (data.refreshToken) {
        const claim = await this.#post("claim", { refreshToken: data.refreshToken }).catch(() => null);
        if (claim && claim.event !== "claimed") this.#world.mark.set(0); // without an answer there may be a cookie
      }
      this.#channel?.postMessage({ token });
    } else {
      this.#refreshToken = data.refreshToken;
    }
    return this.#adopt(token);
  }

  /** @param {Token} token */
  #adopt(token) {
    const before = this.#token?.sessionId;
    this.#token = token;
    this.#endReason = "";
    if (token.sessionId !== before) this.#tell("session", { session: this.session, reason: "" });
    if (this.#greeted && this.#as !== token.sessionId) this.#identify();
    return token;
  }

  /** The session is no more. @param {string} reason @returns {null} */
  #over(reason) {
    const before = this.#token;
    this.#token = this.#refreshToken = this.#as = null;
    if (this.#cookie) this.#world.mark.set(0);
    for (const ask of [...this.#asks.values()]) {
      if (NEEDS_SESSION.has(ask.event)) this.#finish(ask, failure("not_authenticated"));
    }
    if (before || reason !== "logout") this.#tell("session", { session: null, reason });
    return null;
  }

  /** A request that concerns the cookie; sent again, under the same key, while the server is away. */
  async #post(/** @type {string} */ event, /** @type {object} */ data) {
    const headers = { "content-type": "application/json", "idempotency-key": this.#key() };
    for (let failures = 0; failures < 4; failures++) {
      if (failures) await this.#pause(this.#backoff(failures));
      try {
        const response = await this.#world.fetch(new URL(`/v1/${event}`, this.#url).href, {
          method: "POST", headers, body: JSON.stringify(data), credentials: "same-origin", cache: "no-store",
          signal: AbortSignal.timeout(POST_MS),
        });
        /** @type {Answer} */ const answer = await response.json();
        if (!answer.data.retryable) return answer;
      } catch { /* no network, no answer in time, or a proxy's own error page */ }
    }
    throw new Away();
  }

  // --- other tabs -------------------------------------------------------------------------------------------------

  /** @template T @param {() => Promise<T>} then @returns {Promise<T>} */
  #locked(then) {
    const { locks } = this.#world;
    return locks ? /** @type {Promise<any>} */ (locks.request("finthenticate-refresh", then)) : then();
  }

  /** Whether another tab has a newer token than this one. @returns {Promise<Token | null>} */
  async #askOthers() {
    const { locks } = this.#world;
    const held = (await locks?.query())?.held ?? [];
    let others = held.filter((lock) => lock.name === "finthenticate-page").length - 1;
    if (!this.#channel || others < 1) return null;
    const nonce = this.#key();
    return new Promise((resolve) => {
      const stop = this.#world.after(OTHERS_MS, () => resolve(null));
      this.#told = (message) => {
        if (message.to !== nonce || (!message.token && --others > 0)) return;
        stop();
        resolve(message.token);
      };
      this.#channel?.postMessage({ ask: nonce, newerThan: this.#token?.expiresAt ?? 0 });
    });
  }

  /** @param {any} message */
  #heard(message) {
    const token = this.#token;
    if (message.ask) {
      const good = token && token.expiresAt > message.newerThan && token.expiresAt - this.#world.now() > MARGIN_MS;
      this.#channel?.postMessage({ to: message.ask, token: good ? token : null });
    } else if (message.to) {
      this.#told(message);
    } else if (message.token) {
      this.#adopt(message.token);
    }
  }

  // --- small things -----------------------------------------------------------------------------------------------

  #key() {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  /** @param {number} ms @returns {Promise<void>} */
  #pause(ms) { return new Promise((resolve) => { this.#world.after(ms, resolve); }); }

  /** @param {State} state */
  #enter(state) {
    this.#state = state;
    this.#tell("state", state);
  }

  /** @param {string} name @param {any} data */
  #tell(name, data) {
    for (const listener of [...(this.#listeners.get(name) ?? [])]) listener(data);
  }
}

/** A request that waits for its answer. */
class Ask {
  sent = false; // on this connection
  lost = false; // with the connection that it was sent on
  moves = false; // it only brings a step along
  held = false; // until the server has said to come again
  stopPatience = () => {};
  stopOverdue = () => {};

  /**
   * @param {string} id @param {string} event @param {object} data @param {string | undefined} key
   * @param {number} timeoutMs @param {number} until @param {(answer: Answer) => void} resolve
   * @param {(progress: Answer) => void} onProgress
   */
  constructor(id, event, data, key, timeoutMs, until, resolve, onProgress) {
    this.id = id;
    this.event = event;
    this.data = data;
    this.key = key;
    this.timeoutMs = timeoutMs;
    this.until = until;
    this.resolve = resolve;
    this.onProgress = onProgress;
  }

  /** Its connection is gone, or has answered. */
  rest() {
    this.sent = this.held = false;
    this.stopOverdue();
  }
}

/** An error in the server's shape. @param {string} code @returns {Answer} */
function failure(code) {
  return { event: "error", data: { code, message: "Answered by the client.", retryable: code !== "not_authenticated" } };
}

/** Tokens as a page may see them: not the one that lasts. @param {any} data */
function shown(data) {
  const { refreshToken, ...rest } = data;
  return rest;
}

/** @returns {World} */
function browser() {
  const { document: page, navigator: about } = globalThis;
  return {
    open: (url) => new WebSocket(url),
    fetch: (path, init) => fetch(path, init),
    after: (ms, then) => { const timer = setTimeout(then, ms); return () => clearTimeout(timer); },
    now: () => Date.now(),
    random: () => Math.random(),
    locks: about?.locks,
    channel: globalThis.BroadcastChannel && ((name) => new BroadcastChannel(name)),
    online: () => about?.onLine !== false,
    listen: (type, then) => (type === "visibilitychange" ? page : globalThis)?.addEventListener?.(type, then),
    visible: () => page?.visibilityState !== "hidden",
    mark: {
      get: () => /(^|; )fin_signed_in=1/.test(page?.cookie ?? ""),
      set: (seconds) => {
        const secure = globalThis.location?.protocol === "https:" ? "; secure" : "";
        if (page) page.cookie = `fin_signed_in=1; path=/; samesite=strict; max-age=${seconds}${secure}`;
      },
    },
  };
}

// --- the device token: what makes a browser a known one; the only thing that is kept in its storage --------------------

/** @param {string} email @returns {string | undefined} */
export function deviceTokenOf(email) {
  return localStorage.getItem(placeOf(email)) ?? undefined;
}

/** @param {string} email @param {string} token as `email_confirmed` or `device_verified` brings it */
export function keepDeviceToken(email, token) {
  localStorage.setItem(placeOf(email), token);
}

/** One for each account, under a name that does not show its address. FNV-1a. @param {string} email */
function placeOf(email) {
  let hash = 0x811c9dc5;
  for (const letter of email.trim().toLowerCase()) hash = Math.imul(hash ^ (letter.codePointAt(0) ?? 0), 0x01000193);
  return `fin_device_${(hash >>> 0).toString(16)}`;
}
