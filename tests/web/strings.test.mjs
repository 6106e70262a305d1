// The texts: the same ones in both languages, and one for every code of the wire. CODES is set by tests/test_web.py.
import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import test from "node:test";

import { STRINGS } from "../../app/web/strings.js";

const WEB = new URL("../../app/web/", import.meta.url);
const blanks = (text) => [...text.matchAll(/\{\w+\}/g)].map(String).sort();

test("both languages say the same things about the same things", () => {
  assert.deepEqual(Object.keys(STRINGS.pt), Object.keys(STRINGS.en));
  for (const [key, text] of Object.entries(STRINGS.en)) assert.deepEqual(blanks(STRINGS.pt[key]), blanks(text), key);
});

test("every code of the wire has a text", () => {
  const codes = (process.env.CODES ?? "").split(" ");
  assert.deepEqual(codes.filter((code) => !STRINGS.en[`code_${code}`]), []);
});

test("every text that a page names is there", () => {
  const files = readdirSync(WEB).filter((name) => /\.(js|html)$/.test(name)).map((name) => readFileSync(new URL(name, WEB), "utf8"));
  const named = files.flatMap((file) => [...file.matchAll(/data-t(?:-alt)?="(\w+)"|\bt\("(\w+)"/g)].map(([, one, other]) => one ?? other));
  assert.ok(named.length > 100);
  assert.deepEqual(named.filter((key) => !(key in STRINGS.en)), []);
});
