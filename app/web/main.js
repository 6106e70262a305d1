// @ts-check
/** Which view for which address, and the state of the connection above all of them. */

import { Client } from "./client.js";
import { confirm, forgot, reset, signIn, signUp } from "./enter.js";
import { $, announce, show, span, t, translate } from "./page.js";
import { has } from "./strings.js";

// The mailed link's fragment is a key: out of the address bar, and out of the history, before anything else.
/** @type {{email: string, code: string} | null} */ let mailed = null;
function takeLink() {
  if (location.pathname !== "/reset" || !location.hash) return false;
  const link = new URLSearchParams(location.hash.slice(1));
  mailed = { email: link.get("email") ?? "", code: link.get("code") ?? "" };
  history.replaceState(null, "", "/reset");
  return true;
}
takeLink();

const client = new Client({ url: location.origin });
const app = { client, go };
const signOut = $(document, "#sign-out");
/** A path of this host that asked for a sign-in, and gets the visitor back. */
const wanted = (() => {
  const next = new URLSearchParams(location.search).get("next") ?? "";
  try {
    const url = new URL(next, location.origin);
    return /^\/[^/\\]/.test(next) && url.origin === location.origin ? url.href : "";
  } catch {
    return "";
  }
})();

let left = false;
function leave() {
  if (!left) location.assign(wanted);
  left = true;
}

/** @param {string} path */
function go(path) {
  if (path === "/account" && wanted) return leave();
  if (path !== location.pathname) history.pushState(null, "", path);
  route();
}

let ready = false;
let shownFor = ""; // the session whose account is on the page
let note = ""; // why a person is asked to sign in again

async function route() {
  const path = location.pathname;
  signOut.hidden = true;
  client.abandon();
  if (path === "/signup") return signUp(app);
  if (path === "/confirm") return confirm(app);
  if (path === "/forgot") return forgot(app);
  if (path === "/reset") return reset(app, mailed);
  if (!client.session) {
    if (path === "/account") history.replaceState(null, "", "/");
    shownFor = "";
    signIn(app, { note });
    note = "";
    return;
  }
  if (wanted) return leave();
  shownFor = client.session.sessionId;
  if (path !== "/account") history.replaceState(null, "", "/account");
  signOut.hidden = false;
  const { account } = await import("./account.js");
  if (location.pathname === "/account" && client.session) account(app);
}

// --- the session ------------------------------------------------------------------------------------------------------

client.on("session", ({ session, reason }) => {
  if (!ready) note = session || !reason ? "" : why(reason);
  else if (session) setTimeout(arrive);
  else if (location.pathname === "/account") {
    note = why(reason);
    route();
  }
});

/** @param {string} reason */
const why = (reason) => t([`ended_${reason}`, `code_${reason}`].find(has) ?? "ended");

/** Another tab has signed in, or this one as somebody else. */
function arrive() {
  const entrance = ["/", "/account"].includes(location.pathname);
  if (entrance && client.session && client.session.sessionId !== shownFor) route();
}

// --- the connection ---------------------------------------------------------------------------------------------------

const notice = $(document, "#notice");
const text = $(notice, "span");
const button = $(notice, "button");
button.addEventListener("click", () => client.connect());
let timer = 0;

client.on("state", ({ name, retryInMs = 0, code }) => {
  clearInterval(timer);
  const say = (/** @type {string} */ words, tryNow = false) => {
    text.textContent = words;
    notice.hidden = false;
    button.hidden = !tryNow;
  };
  if (name === "offline") say(t("netOffline"));
  else if (name === "refused") say(t("netRefused"));
  else if (name === "waiting" && (retryInMs > 400 || !notice.hidden)) { // a blink need not be told
    const until = Date.now() + retryInMs;
    const count = () => say(t("netWaiting", { time: span(until - Date.now()) }), code !== 4429);
    timer = window.setInterval(count, 1000);
    count();
  } else if (name === "connecting" && !notice.hidden) say(t("netConnecting"));
  else if (name === "open" || name === "asleep") notice.hidden = true;
});

// --- the page ---------------------------------------------------------------------------------------------------------

document.addEventListener("click", (event) => {
  const anchor = event.target instanceof Element ? event.target.closest("a[data-link]") : null;
  const plain = !event.defaultPrevented && event.button === 0 && !(event.metaKey || event.ctrlKey || event.shiftKey);
  if (!(anchor instanceof HTMLAnchorElement) || !plain) return;
  event.preventDefault();
  go(anchor.pathname);
});
addEventListener("popstate", () => { if (!takeLink()) route(); });
addEventListener("hashchange", () => { if (mailed) route(); });
signOut.addEventListener("click", async () => {
  await client.signOut();
  announce(t("ended_logout"));
});

translate(document);
client.connect();
if (location.pathname === "/" || location.pathname === "/account") {
  show("loading", { focus: false });
  await client.resume();
}
ready = true;
await route();
performance.mark("interactive");
