// @ts-check
/** The way in: sign up, confirm, sign in, a new device, the second factor, a forgotten password. */

import { deviceTokenOf, keepDeviceToken } from "./client.js";
import { $, atLeave, complain, countdown, refused, show, submits, t } from "./page.js";

/** @typedef {import("./client.js").Answer} Answer */
/** @typedef {{client: import("./client.js").Client, go: (path: string) => void}} App */

// Hashing waits its turn behind everybody else's: a person would rather wait than be sent away.
const PATIENT = { timeoutMs: 30_000, patienceMs: 120_000 };
const PENDING = "fin_pending"; // in this tab's sessionStorage, so that a look into the mail on a phone does not lose it

/** What this browser calls itself in lists of sessions and devices. */
export function deviceName() {
  const agent = navigator.userAgent;
  const browser = [["Edg/", "Edge"], ["OPR/", "Opera"], ["Firefox/", "Firefox"], ["Chrome/", "Chrome"], ["Safari/", "Safari"]]
    .find(([mark]) => agent.includes(mark))?.[1] ?? "Browser";
  const system = [["iPhone", "iPhone"], ["iPad", "iPad"], ["Android", "Android"], ["Windows", "Windows"], ["Mac OS", "Mac"],
    ["CrOS", "ChromeOS"], ["Linux", "Linux"]].find(([mark]) => agent.includes(mark))?.[1];
  return system ? `${browser} · ${system}` : browser;
}

/** @param {App} app @param {{email?: string, note?: string, calm?: boolean}} [given] */
export function signIn(app, { email = "", note = "", calm = true } = {}) {
  app.client.abandon();
  const form = show("signin", { focus: false });
  const input = /** @type {HTMLInputElement} */ ($(form, "#email"));
  input.value = email;
  if (note) complain(form, note, calm);
  submits(form, async (values, onProgress) => {
    await attempt(app, form, values.email, values.password, onProgress);
  });
  /** @type {HTMLElement} */ (email ? $(form, "#password") : input).focus();
}

/**
 * @param {App} app @param {HTMLElement} form @param {string} email @param {string} password
 * @param {(progress: Answer) => void} onProgress
 */
async function attempt(app, form, email, password, onProgress) {
  const data = { email, password, deviceToken: deviceTokenOf(email), deviceName: deviceName() };
  const answer = await app.client.ask("login", data, { ...PATIENT, onProgress });
  next(app, form, email, answer);
}

/**
 * Wherever an answer leads on the way in.
 * @param {App} app @param {HTMLElement} form @param {string} email @param {Answer} answer
 */
function next(app, form, email, answer) {
  if (answer.event === "login_success") app.go("/account");
  else if (answer.event === "new_device_detected") newDevice(app, email, answer.data);
  else if (answer.event === "2fa_required") secondFactor(app, email, answer.data);
  else if (answer.data.code === "challenge_expired") {
    signIn(app, { email, note: t("code_challenge_expired"), calm: false });
  } else {
    refused(form, answer, { code_expired: t("codeOver") });
  }
}

// --- a new device ---------------------------------------------------------------------------------------------------

/** @param {App} app @param {string} email @param {any} found */
function newDevice(app, email, { challenge, sentTo, matchNumber, expiresIn }) {
  const form = show("device");
  $(form, "[data-lead]").textContent = t("deviceLead", { sentTo });
  const hint = $(form, "[data-countdown]");
  countdown(expiresIn * 1000, (time) => { hint.textContent = t("codeGood", { time }); },
    () => { hint.textContent = t("codeOver"); });
  mailStatus(app, form);
  $(form, "[data-again]").addEventListener("click", () => signIn(app, { email }));

  const trusted = () => /** @type {HTMLInputElement} */ ($(form, "#trust")).checked;
  /** @param {Record<string, string>} proof @param {(progress: Answer) => void} [onProgress] @param {boolean} [quiet] */
  const verify = async (proof, onProgress, quiet = false) => {
    const answer = await app.client.ask("verify_device", { challenge, trust: trusted(), ...proof }, {
      ...PATIENT,
      onProgress: (progress) => {
        if (progress.event === "device_verified" && progress.data.deviceToken) {
          keepDeviceToken(email, progress.data.deviceToken);
        } else {
          onProgress?.(progress);
        }
      },
    });
    if (form.isConnected && !(quiet && answer.data.code === "invalid_code")) next(app, form, email, answer);
  };
  submits(form, (values, onProgress) => verify({ code: values.code }, onProgress));

  $(form, "[data-match]").hidden = false;
  $(form, "[data-number]").textContent = String(matchNumber);
  $(form, "[data-approved]").addEventListener("click", () => verify({}));
  atLeave(app.client.on("moved", () => verify({}, undefined, true))); // the approval may have come while it was away
  atLeave(app.client.on("login_decided", ({ approved }) => {
    if (approved) verify({});
    else signIn(app, { email, note: t("matchRefused"), calm: false });
  }));
}

/** What becomes of a mail that this connection caused. @param {App} app @param {HTMLElement} form */
function mailStatus(app, form) {
  let late = false;
  atLeave(app.client.on("mail_status", ({ kind, status }) => {
    if (kind !== "new_device") return;
    if (status !== "sent") complain(form, t(status === "failed" ? "mailFailed" : "mailRetrying"), status !== "failed");
    else if (late) complain(form, "");
    late = status !== "sent";
  }));
}

// --- the second factor ----------------------------------------------------------------------------------------------

/** @param {App} app @param {string} email @param {any} found @param {"second" | "recovery"} [by] */
function secondFactor(app, email, found, by = "second") {
  const form = show(by);
  $(form, "[data-other]").addEventListener("click", () => {
    secondFactor(app, email, found, by === "second" ? "recovery" : "second");
  });
  $(form, "[data-again]").addEventListener("click", () => signIn(app, { email }));
  submits(form, async ({ code, recoveryCode }, onProgress) => {
    const data = { challenge: found.challenge, ...(code ? { code } : { recoveryCode }) };
    next(app, form, email, await app.client.ask("verify_2fa", data, { ...PATIENT, onProgress }));
  });
}

// --- signing up -----------------------------------------------------------------------------------------------------

/** @param {App} app */
export function signUp(app) {
  const form = show("signup");
  submits(form, async ({ email, password }, onProgress) => {
    const data = { email, password, locale: navigator.language };
    const answer = await app.client.ask("register", data, { ...PATIENT, onProgress });
    if (answer.event !== "register_accepted") return refused(form, answer);
    const { challenge, next: then, expiresIn, deviceToken } = answer.data;
    if (deviceToken) keepDeviceToken(email, deviceToken);
    if (then === "login") return attempt(app, form, email, password, onProgress);
    sessionStorage.setItem(PENDING, JSON.stringify({ email, challenge, until: Date.now() + expiresIn * 1000 }));
    app.go("/confirm");
    confirm(app, password);
  });
}

/** @param {App} app @param {string} [password] while it is still known, so that confirming signs in too */
export function confirm(app, password) {
  const pending = JSON.parse(sessionStorage.getItem(PENDING) ?? "null");
  if (!pending) return app.go("/signup");
  const { email, challenge, until } = pending;
  const form = show("confirm");
  $(form, "[data-lead]").textContent = t("confirmLead", { email });
  countdown(until - Date.now(), () => {}, () => complain(form, t("code_challenge_expired")));

  const again = $(form, "[data-resend]");
  again.addEventListener("click", async () => {
    if (again.getAttribute("aria-disabled") === "true") return;
    again.setAttribute("aria-disabled", "true");
    const answer = await app.client.ask("resend_confirmation", { challenge });
    again.removeAttribute("aria-disabled");
    if (!form.isConnected) return;
    if (answer.data.code) refused(form, answer);
    else complain(form, t("resent"), true);
  });

  submits(form, async ({ code }, onProgress) => {
    const answer = await app.client.ask("confirm_email", { challenge, code }, { ...PATIENT, onProgress });
    if (answer.event !== "email_confirmed") return refused(form, answer);
    sessionStorage.removeItem(PENDING);
    keepDeviceToken(email, answer.data.deviceToken);
    app.go("/");
    if (!password) return signIn(app, { email, note: t("confirmed") });
    signIn(app, { email, note: t("confirmedSigningIn") });
    const entry = $(document, "form.card");
    /** @type {HTMLInputElement} */ ($(entry, "#password")).value = password;
    /** @type {HTMLFormElement} */ (entry).requestSubmit();
  });
}

// --- a forgotten password -------------------------------------------------------------------------------------------

/** @param {App} app */
export function forgot(app) {
  const form = show("forgot");
  submits(form, async ({ email }, onProgress) => {
    const answer = await app.client.ask("request_password_reset", { email }, { onProgress });
    if (answer.data.code) return refused(form, answer);
    tell(t("forgotDoneTitle"), t("forgotDone", { email }), t("backToSignin"), "/");
  });
}

/** @param {App} app @param {{email: string, code: string} | null} link what the mailed link brought */
export function reset(app, link) {
  const spent = () => tell(t("resetBadTitle"), t("resetBad"), t("askNewLink"), "/forgot");
  if (!link?.email || !link.code) return spent();
  const { email, code } = link;
  const form = show("reset", { focus: false });
  /** @type {HTMLInputElement} */ ($(form, "#email")).value = email;
  $(form, "#password").focus();
  submits(form, async ({ newPassword }, onProgress) => {
    const answer = await app.client.ask("reset_password", { email, code, newPassword }, { ...PATIENT, onProgress });
    if (answer.event === "password_reset") {
      tell(t("resetDoneTitle"), t("resetDone"), t("signinButton"), "/");
    } else if (["invalid_code", "code_expired", "challenge_expired"].includes(answer.data.code)) {
      spent();
    } else {
      refused(form, answer);
    }
  });
}

/** A word, and where it goes on. @param {string} title @param {string} lead @param {string} then @param {string} path */
function tell(title, lead, then, path) {
  const root = show("told", { title, focus: false });
  $(root, "[data-lead]").textContent = lead;
  const link = $(root, "[data-next]");
  link.textContent = then;
  link.setAttribute("href", path);
  $(root, "[data-dev]").hidden ||= path !== "/"; // a mail is on its way
  $(root, "h1").focus();
}
