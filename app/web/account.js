// @ts-check
/** The page of somebody who is signed in: sessions, the second factor, the password, devices, who else wants in. */

import { $, announce, atLeave, copy, fault, focusOn, part, refused, show, submits, t, toast } from "./page.js";
import { has, locale } from "./strings.js";

/** @typedef {import("./enter.js").App} App */

const LOOK_MS = 5000; // presence of others is not pushed
const SLOW = { timeoutMs: 30_000, patienceMs: 60_000 };

/** @param {App} app */
export async function account(app) {
  const { client } = app;
  const root = show("account", { focus: false });
  $(root, "h1").focus();
  const own = await client.ask("account");
  if (!root.isConnected) return;
  if (own.event !== "account") {
    const sorry = part("part-sorry");
    sorry.textContent = t(`code_${own.data.code}`);
    $(root, "[data-attempt]").replaceChildren(sorry);
    const timer = setTimeout(() => account(app), LOOK_MS);
    return atLeave(() => clearTimeout(timer));
  }
  const about = own.data;
  $(root, "[data-whose]").textContent = about.email;

  sessions(app, root);
  devices(app, root, about.devices);
  atLeave(client.on("session_started", async () => { // perhaps a device that is trusted from here on
    const answer = await client.ask("account");
    if (answer.event === "account" && root.isConnected) devices(app, root, answer.data.devices);
  }));
  second(app, $(root, "[data-second]"), about);
  password(app, $(root, "[data-password]"), about.email);
  attempts(app, $(root, "[data-attempt]"));
  atLeave(client.on("security_alert", ({ kind }) => toast(t(has(`alert_${kind}`) ? `alert_${kind}` : "alert"))));
}

/** @param {string} iso */
function when(iso) {
  const minutes = (Date.parse(iso) - Date.now()) / 60_000;
  const words = new Intl.RelativeTimeFormat(locale, { numeric: "auto" });
  if (minutes > -1) return t("justNow");
  if (minutes > -60) return words.format(Math.round(minutes), "minute");
  if (minutes > -1440) return words.format(Math.round(minutes / 60), "hour");
  return new Date(iso).toLocaleDateString(locale, { day: "numeric", month: "long", year: "numeric" });
}

/**
 * Rows in place of those that are there; a row that stays keeps its element, and so the focus in it.
 * @param {HTMLElement} list @param {{id: string, name: string, detail: string, live?: boolean, button: string,
 *   label: string, act?: () => Promise<void>}[]} rows
 */
function fill(list, rows) {
  const before = new Map([...list.children].map((row) => [row.getAttribute("data-id"), /** @type {HTMLElement} */ (row)]));
  const wanted = rows.map(({ id, name, detail, live, button, label, act }) => {
    const row = before.get(id) ?? part("part-row");
    const press = $(row, "button");
    row.setAttribute("data-id", id);
    $(row, ".dot").hidden = live === undefined;
    $(row, ".dot").classList.toggle("live", live === true);
    $(row, ".name").textContent = name;
    $(row, ".detail").textContent = detail;
    press.hidden = !act;
    press.textContent = button;
    press.setAttribute("aria-label", label);
    press.onclick = async () => {
      if (press.getAttribute("aria-disabled") === "true") return;
      press.setAttribute("aria-disabled", "true");
      await act?.();
      press.removeAttribute("aria-disabled");
    };
    return row;
  });
  const focused = list.contains(document.activeElement);
  for (const row of before.values()) if (!wanted.includes(row)) row.remove();
  wanted.forEach((row, place) => list.children[place] === row || list.insertBefore(row, list.children[place] ?? null));
  if (focused && !list.contains(document.activeElement)) /** @type {HTMLElement} */ (list.querySelector("button"))?.focus();
}

// --- sessions and devices ---------------------------------------------------------------------------------------------

/** @param {App} app @param {HTMLElement} root */
function sessions({ client }, root) {
  const others = $(root, "[data-others]");
  const look = async () => {
    const answer = await client.ask("sessions");
    if (answer.event !== "sessions" || !root.isConnected) return;
    /** @type {any[]} */ const all = answer.data.sessions;
    all.sort((one, other) => Number(other.current) - Number(one.current) || Number(other.online) - Number(one.online)
      || other.lastSeenAt.localeCompare(one.lastSeenAt));
    others.hidden = all.length < 2;
    fill($(root, "[data-sessions]"), all.map((session) => {
      const name = session.deviceName ?? t("unknownDevice");
      const seen = session.online ? t("online") : t("lastSeen", { when: when(session.lastSeenAt) });
      return {
        id: session.sessionId,
        name,
        detail: [session.current ? t("thisDevice") : seen, session.ip, t("signedIn", { when: when(session.createdAt) })].join(" · "),
        live: session.online,
        button: t("revoke"),
        label: t("revokeOf", { name }),
        act: session.current ? undefined : async () => {
          const ended = await client.ask("revoke_session", { sessionId: session.sessionId });
          const gone = ended.event === "session_revoked" || ended.data.code === "not_found";
          toast(gone ? t("revoked") : t(`code_${ended.data.code}`));
          await look();
        },
      };
    }));
  };
  $(root, "[data-revoke-others]").addEventListener("click", async () => {
    const ended = await client.ask("revoke_other_sessions");
    if (ended.event === "sessions_revoked") toast(t("revokedOthers", { count: ended.data.count }));
    await look();
  });
  atLeave(client.on("session_started", ({ deviceName }) => {
    toast(t("sessionStarted", { name: deviceName ?? t("unknownDevice") }));
    look();
  }));
  atLeave(client.on("session_ended", () => client.session && look()));
  const timer = setInterval(() => document.visibilityState === "visible" && client.state.name === "open" && look(), LOOK_MS);
  atLeave(() => clearInterval(timer));
  look();
}

/** @param {App} app @param {HTMLElement} root @param {any[]} known */
function devices(app, root, known) {
  $(root, "[data-no-devices]").hidden = known.length > 0;
  fill($(root, "[data-devices]"), known.map(({ deviceRef, deviceName, lastSeenAt }) => {
    const name = deviceName ?? t("unknownDevice");
    return {
      id: deviceRef,
      name,
      detail: t("lastSeen", { when: when(lastSeenAt) }),
      button: t("forget"),
      label: t("forgetOf", { name }),
      act: async () => {
        const answer = await app.client.ask("forget_device", { deviceRef });
        const gone = answer.event === "device_forgotten" || answer.data.code === "not_found";
        toast(gone ? t("forgotten") : t(`code_${answer.data.code}`));
        if (gone) devices(app, root, known.filter((device) => device.deviceRef !== deviceRef));
      },
    };
  }));
}

// --- two steps --------------------------------------------------------------------------------------------------------

/** Instead of what a panel shows. @param {HTMLElement} panel @param {string} id */
function put(panel, id) {
  const had = panel.contains(document.activeElement);
  panel.replaceChildren(part(id));
  if (had) {
    const field = panel.querySelector("input:not(.unseen)");
    if (field) focusOn(panel);
    else /** @type {HTMLElement | null} */ (panel.querySelector("[tabindex], button"))?.focus();
  }
  return panel;
}

/** @param {App} app @param {HTMLElement} panel @param {any} about */
function second(app, panel, about) {
  const { client } = app;
  const renew = async () => {
    const answer = await client.ask("account");
    if (answer.event === "account" && panel.isConnected) second(app, panel, answer.data);
  };
  put(panel, about.has2fa ? "part-second-on" : "part-second-off");
  const left = panel.querySelector("[data-left]");
  if (left) left.textContent = t("codesLeft", { count: about.recoveryCodesLeft });
  const start = { enroll: () => enroll(client, panel, about, renew), renew: () => prove("renew"), disable: () => prove("disable") };
  for (const [name, then] of Object.entries(start)) panel.querySelector(`[data-go=${name}]`)?.addEventListener("click", then);

  /** Password and code, for what weakens the account. @param {"renew" | "disable"} what */
  function prove(what) {
    const form = $(put(panel, "part-prove"), "form");
    const disables = what === "disable";
    $(form, "[data-lead]").textContent = t(disables ? "disableLead" : "renewLead");
    $(form, "[data-label]").textContent = t(disables ? "codeOrRecovery" : "appCodeLabel");
    $(form, "[data-button]").textContent = t(disables ? "secondTurnOff" : "renewCodes");
    prepare(form, about.email, renew);
    submits(form, async ({ password, code }, onProgress) => {
      const by = /^\d{6,8}$/.test(code.replace(/\s/g, "")) ? { code: code.replace(/\s/g, "") } : { recoveryCode: code };
      const data = { password, ...(disables ? by : { code: code.replace(/\s/g, "") }) };
      const answer = await client.ask(disables ? "disable_2fa" : "new_recovery_codes", data, { ...SLOW, onProgress });
      if (answer.event === "recovery_codes") return codes(panel, answer.data.recoveryCodes, renew);
      if (answer.event !== "2fa_disabled") return refused(form, answer, { invalid_credentials: t("wrongPassword") });
      toast(t("secondOffNow"));
      await renew();
    });
  }
}

/** @param {HTMLElement} form @param {string} email @param {() => void} cancel */
function prepare(form, email, cancel) {
  const name = form.querySelector("[data-email]");
  if (name instanceof HTMLInputElement) name.value = email;
  $(form, "[data-cancel]").addEventListener("click", cancel);
}

/**
 * Password, QR code, a first code; then the recovery codes, once.
 * @param {App["client"]} client @param {HTMLElement} panel @param {any} about @param {() => Promise<void>} renew
 */
function enroll(client, panel, about, renew) {
  const form = $(put(panel, "part-enroll"), "form");
  prepare(form, about.email, renew);
  submits(form, async ({ password }, onProgress) => {
    const answer = await client.ask("enroll_2fa", { password }, { ...SLOW, onProgress });
    if (answer.event !== "2fa_enrollment") return refused(form, answer, { invalid_credentials: t("wrongPassword") });
    const next = $(put(panel, "part-qr"), "form");
    const { secret, qrSvg } = answer.data;
    prepare(next, about.email, renew);
    /** @type {HTMLImageElement} */ ($(next, "[data-qr]")).src = `data:image/svg+xml,${encodeURIComponent(qrSvg)}`;
    $(next, "[data-secret]").textContent = secret.replace(/(.{4})(?=.)/g, "$1 ");
    $(next, "[data-copy]").addEventListener("click", () => copy(secret));
    submits(next, async ({ code }, onProgress) => {
      const enabled = await client.ask("confirm_2fa", { code }, { onProgress });
      if (enabled.event !== "2fa_enabled") return refused(next, enabled);
      toast(t("secondOnNow"));
      codes(panel, enabled.data.recoveryCodes, renew);
    });
  });
}

/** @param {HTMLElement} panel @param {string[]} list @param {() => Promise<void>} done */
function codes(panel, list, done) {
  put(panel, "part-codes");
  $(panel, "[data-codes]").replaceChildren(...list.map((code) => {
    const item = document.createElement("li");
    item.textContent = code;
    return item;
  }));
  $(panel, "[data-copy]").addEventListener("click", () => copy(list.join("\n")));
  $(panel, "[data-save]").addEventListener("click", () => {
    const file = document.createElement("a");
    file.href = URL.createObjectURL(new Blob([`${list.join("\n")}\n`], { type: "text/plain" }));
    file.download = "recovery-codes.txt";
    file.click();
    URL.revokeObjectURL(file.href);
  });
  $(panel, "[data-done]").addEventListener("click", done);
  $(panel, ".codes").focus();
}

// --- password ---------------------------------------------------------------------------------------------------------

/** @param {App} app @param {HTMLElement} panel @param {string} email */
function password(app, panel, email) {
  const back = () => password(app, panel, email);
  put(panel, "part-password");
  $(panel, "[data-go]").addEventListener("click", () => {
    const form = $(put(panel, "part-password-form"), "form");
    prepare(form, email, back);
    submits(form, async ({ currentPassword, newPassword }, onProgress) => {
      const answer = await app.client.ask("change_password", { currentPassword, newPassword }, { ...SLOW, onProgress });
      if (answer.event !== "password_changed") return refused(form, answer, { invalid_credentials: t("wrongPassword") });
      toast(t("passwordChanged"));
      back();
    });
  });
}

// --- somebody is signing in -------------------------------------------------------------------------------------------

/** @param {App} app @param {HTMLElement} place */
function attempts({ client }, place) {
  const title = document.title;
  const over = (/** @type {string} */ text) => {
    device = "";
    place.replaceChildren();
    document.title = title;
    if (text) toast(text);
  };
  let device = ""; // that wants in
  atLeave(client.on("session_started", ({ deviceName, ip }) => { // by its code: there is nothing left to approve
    if (device === `${deviceName} ${ip}`) over("");
  }));
  atLeave(client.on("login_attempt", ({ loginId, deviceName, ip }) => {
    device = `${deviceName} ${ip}`;
    const form = part("part-attempt");
    const lead = t("attemptLead", { device: deviceName ?? t("unknownDevice"), ip });
    $(form, "[data-lead]").textContent = lead;
    place.replaceChildren(form);
    document.title = `● ${t("attemptTitle")}`;
    announce(`${t("attemptTitle")}. ${lead}`);
    place.scrollIntoView({ block: "nearest" });
    /** @param {boolean} approve @param {string} [matchNumber] @param {any} [onProgress] */
    const decide = async (approve, matchNumber, onProgress) => {
      const data = { loginId, approve, ...(matchNumber ? { matchNumber: Number(matchNumber) } : {}) };
      const answer = await client.ask("approve_login", data, { onProgress });
      if (!form.isConnected) return;
      if (answer.event === "login_decided") over(t(answer.data.approved ? "attemptApproved" : "attemptRefused"));
      else if (["not_found", "challenge_expired", "code_expired"].includes(answer.data.code)) over(t("attemptOver"));
      else if (answer.data.code === "invalid_code") fault(form, "matchNumber", t("attemptWrong"));
      else refused(form, answer);
    };
    submits(form, ({ matchNumber }, onProgress) => decide(true, matchNumber, onProgress));
    $(form, "[data-refuse]").addEventListener("click", () => decide(false));
  }));
}
