// @ts-check
/** The development mailbox: mails as plain text, whatever they hold; their code and their reset link at hand. */

import { $, copy, part, translate } from "./page.js";
import { locale, t } from "./strings.js";

/** @typedef {{id: string, to: string, subject: string, date: string, text: string}} Mail */

const LOOK_MS = 1000;
const place = $(document, "#mails");
let shown = "";

/** @param {Mail} mail */
function article({ to, subject, date, text }) {
  const root = part("part-mail");
  $(root, "h2").textContent = subject;
  $(root, ".detail").textContent = t("mailTo", { to, when: new Date(date).toLocaleString(locale) });
  $(root, "pre").textContent = text.trim();
  const code = text.match(/\b\d{6,8}\b/)?.[0];
  const link = text.match(/https?:\/\/\S+\/reset#\S+/)?.[0];
  if (link) {
    const open = document.createElement("a");
    open.className = "small";
    open.textContent = t("openLink");
    open.href = `/reset#${link.slice(link.indexOf("#") + 1)}`; // this host's page, whatever the mail says
    $(root, ".actions").append(open);
  } else if (code) {
    const button = document.createElement("button");
    button.className = "small";
    button.textContent = t("copyCode", { code });
    button.addEventListener("click", () => copy(code));
    $(root, ".actions").append(button);
  } else {
    $(root, ".actions").remove();
  }
  return root;
}

async function look() {
  if (document.visibilityState === "visible") {
    try {
      /** @type {{mails: Mail[]}} */ const { mails } = await (await fetch("/mailbox/mails")).json();
      const ids = mails.map(({ id }) => id).join();
      if (ids !== shown || !place.childElementCount) {
        shown = ids;
        const empty = document.createElement("p");
        empty.className = "mail";
        empty.textContent = t("mailboxEmpty");
        place.replaceChildren(...(mails.length ? mails.map(article) : [empty]));
      }
    } catch { /* the service is not there; it may come back */ }
  }
  setTimeout(look, LOOK_MS);
}

translate(document);
look();
