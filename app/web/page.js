// @ts-check
/** What every view is made with: templates, forms, what is said beside a field, waiting in the queue. */

import { has, language, t } from "./strings.js";

export { t } from "./strings.js";

/** @typedef {import("./client.js").Answer} Answer */

/** @param {string} name */
const told = (name) => document.querySelector(`meta[name="fin-${name}"]`)?.getAttribute("content") ?? "";
export const LEAST = Number(told("min-password"));
export const HAS_MAILBOX = told("mailbox") === "on";

/** The first element that fits; it has to be there. @param {ParentNode} root @param {string} selector */
export function $(root, selector) {
  const found = root.querySelector(selector);
  if (!(found instanceof HTMLElement)) throw new Error(`no ${selector}`);
  return found;
}

/** A copy of a template, in the page's language. @param {string} id @returns {HTMLElement} */
export function part(id) {
  const template = /** @type {HTMLTemplateElement} */ (document.getElementById(id));
  const root = /** @type {HTMLElement} */ (template.content.firstElementChild?.cloneNode(true));
  translate(root);
  for (const link of root.querySelectorAll("[data-dev]")) /** @type {HTMLElement} */ (link).hidden = !HAS_MAILBOX;
  for (const field of root.querySelectorAll(".field")) equip(/** @type {HTMLElement} */ (field));
  return root;
}

/** @param {ParentNode} root */
export function translate(root) {
  document.documentElement.lang = language;
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.getAttribute("data-t") ?? "");
  for (const element of root.querySelectorAll("[data-t-alt]")) {
    element.setAttribute("alt", t(element.getAttribute("data-t-alt") ?? ""));
  }
}

/** A place for what is wrong with a field, and for a password a way to look at it. @param {HTMLElement} field */
function equip(field) {
  const input = $(field, "input");
  const error = document.createElement("p");
  error.className = "error";
  error.id = `${input.id}-error`;
  error.hidden = true;
  field.append(error);
  const hint = field.querySelector(".hint");
  input.setAttribute("aria-describedby", [hint?.id, error.id].filter(Boolean).join(" "));
  if (input.getAttribute("type") !== "password") return;
  const box = document.createElement("div");
  const button = document.createElement("button");
  box.className = "secretive";
  button.type = "button";
  input.replaceWith(box);
  box.append(input, button);
  const shown = (/** @type {boolean} */ shown) => {
    input.setAttribute("type", shown ? "text" : "password");
    button.textContent = t(shown ? "hide" : "show");
    button.setAttribute("aria-label", t(shown ? "hidePassword" : "showPassword"));
    button.setAttribute("aria-pressed", String(shown));
  };
  shown(false);
  button.addEventListener("click", () => shown(input.getAttribute("type") === "password"));
  if (hint && input.getAttribute("autocomplete") === "new-password") {
    const look = () => {
      const count = [.../** @type {HTMLInputElement} */ (input).value.normalize("NFKC")].length;
      const key = count === 0 ? "passwordHint" : count < LEAST ? "passwordHintCount" : "passwordHintMet";
      hint.textContent = t(key, { count, least: LEAST });
      hint.classList.toggle("met", count >= LEAST);
    };
    input.addEventListener("input", look);
    look();
  }
}

/** @type {(() => void)[]} */ let leaving = [];

/** What has to end when the view is left: listeners, timers. @param {() => void} end */
export const atLeave = (end) => { leaving.push(end); };

/**
 * Show a view instead of the present one; the focus goes to where a person goes on.
 * @param {string} name @param {{title?: string, focus?: boolean}} [options]
 */
export function show(name, { title, focus = true } = {}) {
  for (const end of leaving.splice(0)) end();
  const root = part(`view-${name}`);
  $(document, "#toasts").replaceChildren();
  $(document, "#main").replaceChildren(root);
  const heading = root.querySelector("h1");
  if (heading && title) heading.textContent = title;
  document.title = heading?.textContent ? `${heading.textContent} · Finthenticate` : "Finthenticate";
  if (focus) focusOn(root);
  return root;
}

/** @param {HTMLElement} root */
export function focusOn(root) {
  const inputs = [...root.querySelectorAll("input:not([readonly]):not([type=checkbox]):not(.unseen)")];
  const empty = inputs.find((input) => !(/** @type {HTMLInputElement} */ (input).value));
  const target = empty ?? root.querySelector("h1[tabindex]") ?? root;
  /** @type {HTMLElement} */ (target).focus();
}

/** To ears alone. @param {string} text */
export function announce(text) {
  const announcer = $(document, "#announcer");
  announcer.textContent = "";
  requestAnimationFrame(() => { announcer.textContent = text; });
}

/** A short word that goes away by itself; of many, the last two. @param {string} text */
export function toast(text) {
  const line = document.createElement("p");
  const toasts = $(document, "#toasts");
  line.textContent = text;
  toasts.append(line);
  while (toasts.childElementCount > 2) toasts.firstElementChild?.remove();
  setTimeout(() => line.remove(), 6000);
}

/** @param {number} ms */
export function span(ms) {
  const seconds = Math.max(1, Math.ceil(ms / 1000));
  return seconds < 100 ? t("seconds", { n: seconds }) : t("minutes", { n: Math.ceil(seconds / 60) });
}

/**
 * Say how long something still is, once a second, until the view is left or `over`.
 * @param {number} ms @param {(left: string) => void} say @param {() => void} [over] @returns {() => void} ends it
 */
export function countdown(ms, say, over) {
  const until = Date.now() + ms;
  const tick = () => {
    const left = until - Date.now();
    if (left <= 0) {
      stop();
      over?.();
    } else {
      say(span(left));
    }
  };
  const timer = setInterval(tick, 1000);
  const stop = () => clearInterval(timer);
  atLeave(stop);
  tick();
  return stop;
}

// --- forms ---------------------------------------------------------------------------------------------------------

/** @param {HTMLElement} root @param {string} name */
const inputOf = (root, name) => /** @type {HTMLInputElement | null} */ (root.querySelector(`input[name="${name}"]`));

/** Beside a field; without text, that it is right again. @param {HTMLElement} form @param {string} name @param {string} text */
export function fault(form, name, text) {
  const input = inputOf(form, name);
  if (!input) return complain(form, text);
  const error = $(form, `#${input.id}-error`);
  error.textContent = text;
  error.hidden = !text;
  if (text) input.setAttribute("aria-invalid", "true");
  else input.removeAttribute("aria-invalid");
}

/** About the form as a whole. @param {HTMLElement} form @param {string} text @param {boolean} [calm] */
export function complain(form, text, calm = false) {
  const message = $(form, ".message");
  message.textContent = text;
  message.hidden = !text;
  message.classList.toggle("calm", calm);
}

/** What a person can see is wrong without asking the server. @param {HTMLInputElement} input */
function look(input) {
  const { name, validity, value, inputMode } = input;
  const about = (/** @type {string} */ kind) => t(has(`${kind}_${name}`) ? `${kind}_${name}` : kind);
  if (validity.valueMissing || (input.required && !value.trim())) return about("missing");
  if (validity.typeMismatch) return about("bad");
  if (new TextEncoder().encode(value).length > 1024) return t("long");
  const digits = { code: /^\d{6,8}$/, matchNumber: /^\d{1,2}$/ }[inputMode === "numeric" ? name : ""];
  if (digits && !digits.test(value.replace(/\s/g, ""))) return about("bad");
  if (input.autocomplete === "new-password" && [...value.normalize("NFKC")].length < LEAST) {
    return t("code_password_too_short", { least: LEAST });
  }
  return "";
}

/**
 * A form that asks once at a time. `send` gets the values, trimmed but for passwords, and what shows progress.
 * @param {HTMLElement} form
 * @param {(values: Record<string, string>, onProgress: (progress: Answer) => void) => Promise<void>} send
 */
export function submits(form, send) {
  let busy = false;
  form.addEventListener("input", (event) => fault(form, /** @type {HTMLInputElement} */ (event.target).name, ""));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = $(form, "button:not([type=button])");
    if (busy || button.getAttribute("aria-disabled") === "true") return;
    complain(form, "");
    /** @type {Record<string, string>} */ const values = {};
    let first;
    for (const input of form.querySelectorAll("input")) {
      if (input.type !== "checkbox") {
        const wrong = look(input);
        if (!input.readOnly) fault(form, input.name, wrong);
        if (wrong) first ??= input;
      }
      const numeric = input.inputMode === "numeric";
      values[input.name] = input.type === "checkbox" ? (input.checked ? "yes" : "")
        : /assword/.test(input.name) ? input.value : numeric ? input.value.replace(/\s/g, "") : input.value.trim();
    }
    if (first) return first.focus();
    busy = true;
    const label = button.textContent;
    const spinner = document.createElement("span");
    spinner.className = "spinner";
    button.setAttribute("aria-disabled", "true");
    button.replaceChildren(spinner, label ?? "");
    const waiting = queue($(form, ".progress"));
    try {
      await send(values, waiting.onProgress);
    } finally {
      busy = false;
      waiting.end();
      button.removeAttribute("aria-disabled");
      button.textContent = label;
    }
  });
}

/** Where a refusal is said: these codes are about a field, everything else about the whole. */
/** @type {Record<string, string[]>} */
const FIELDS = {
  invalid_credentials: ["password", "currentPassword"],
  password_too_short: ["newPassword", "password"],
  password_common: ["newPassword", "password"],
  invalid_code: ["code", "recoveryCode", "matchNumber"],
  code_expired: ["code", "recoveryCode"],
  address_taken: ["email"],
};

/**
 * Say what a refusal means, beside the field it is about, with the next step.
 * @param {HTMLElement} form @param {Answer} answer @param {Record<string, string>} [texts] instead of the usual ones
 */
export function refused(form, answer, texts = {}) {
  const { code, field, retryAfterMs } = answer.data;
  const text = texts[code] ?? (has(`code_${code}`) ? t(`code_${code}`, { least: LEAST }) : t("code_unknown", { code }));
  const name = [...(FIELDS[code] ?? []), ...(code === "bad_request" && field ? [field] : [])]
    .find((name) => inputOf(form, name));
  if (name) {
    fault(form, name, code === "bad_request" ? t(has(`bad_${name}`) ? `bad_${name}` : "bad") : text);
    inputOf(form, name)?.focus();
    inputOf(form, name)?.select();
  } else if (code === "too_many_attempts" && retryAfterMs) {
    const stop = countdown(retryAfterMs, (time) => complain(form, t("code_too_many_attempts_for", { time })), () =>
      complain(form, ""));
    form.addEventListener("submit", stop, { once: true });
  } else {
    complain(form, text);
  }
}

/** The place in the queue, live; and why it takes longer. @param {HTMLElement} place */
function queue(place) {
  let first = 0, said = 0;
  let stop = () => {};
  /** @type {HTMLElement | undefined} */ let number;
  const say = () => { // to ears not four times a second
    if (Date.now() - said < 5000) return;
    said = Date.now();
    announce(place.innerText);
  };
  const plain = (/** @type {string} */ text) => {
    number = undefined;
    place.textContent = text;
    say();
  };
  const build = () => {
    const line = document.createElement("p");
    const bar = document.createElement("progress");
    const eta = document.createElement("p");
    line.className = "place";
    number = document.createElement("b");
    line.append(number, document.createElement("span"));
    bar.max = 1;
    bar.setAttribute("aria-hidden", "true");
    place.replaceChildren(line, bar, eta);
  };
  return {
    onProgress(/** @type {Answer} */ { event, data }) {
      stop();
      if (event === "queued") {
        if (!number) build();
        first = Math.max(first, data.position);
        if (number) number.textContent = data.position > 0 ? data.position.toLocaleString(language) : "";
        $(place, ".place span").textContent = t(data.position > 0 ? "place" : "placeNext");
        /** @type {HTMLProgressElement} */ ($(place, "progress")).value = 1 - data.position / (first + 1);
        $(place, "p:last-child").textContent = t("eta", { time: span(data.etaMs) });
        say();
      } else if (event === "retrying") {
        const why = t(`code_${data.code}`);
        stop = countdown(data.inMs, (time) => plain(t("retrying", { why, time })), () => plain(t("working")));
      } else if (event === "resending") {
        plain(t("resending"));
      } else if (event === "resent") {
        plain(t("working"));
      }
    },
    end() {
      stop();
      place.replaceChildren();
    },
  };
}

/** @param {string} text */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast(t("copied"));
  } catch { /* no permission: it can be selected */ }
}
