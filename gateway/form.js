"use strict";

// What comes from the code, from a model or from the server is put in as text, never as HTML.
const MAX_BYTES = 262144;
const MAX_STREAM = 32 * 1024 * 1024;
const KEY = "api-key";
const STAGES = { syntax: "Syntax", lint: "Lint", complexity: "Complexity", llm: "Model" };
const LEVELS = ["error", "warning", "info"];

const $ = (id) => document.getElementById(id);
const code = $("code");
let waiting = null;

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function number(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

// --- the key: of this tab alone ---

function kept() {
  try { return sessionStorage.getItem(KEY) || ""; } catch { return ""; }
}

function keep(key) {
  try { sessionStorage.setItem(KEY, key); } catch { /* it is asked for again */ }
}

function askForKey() {
  $("key-row").hidden = false;
  $("key").focus();
}

// --- the code and its line numbers ---

function numberLines(marks = new Map()) {
  const total = code.value.split("\n").length;
  const parts = [];
  let plain = [];
  for (let line = 1; line <= total; line += 1) {
    if (marks.has(line)) {
      if (plain.length) parts.push(plain.join("\n") + "\n");
      parts.push(element("span", `● ${line}`, marks.get(line)), line < total ? "\n" : "");
      plain = [];
    } else {
      plain.push(line);
    }
  }
  $("gutter").replaceChildren(...parts, plain.join("\n"));
  $("gutter").scrollTop = code.scrollTop;
}

// Columns count characters, JavaScript's offsets halves of surrogate pairs.
function offset(lines, place) {
  const line = Math.min(Math.max(place.line, 1), lines.length);
  const before = lines.slice(0, line - 1).reduce((sum, text) => sum + text.length + 1, 0);
  return before + Array.from(lines[line - 1]).slice(0, place.column - 1).join("").length;
}

function show(finding) {
  const lines = code.value.split("\n");
  const start = offset(lines, finding.start);
  code.focus();
  code.setSelectionRange(start, Math.max(start, offset(lines, finding.end)));
  const height = parseFloat(getComputedStyle(code).lineHeight);
  code.scrollTop = Math.max(0, (finding.start.line - 4) * height);
}

async function take(file) {
  if (!file) return;
  if (file.size > MAX_BYTES) return complain("The file is larger than 256 KiB.");
  try {
    code.value = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    return complain("The file is not UTF-8 text.");
  }
  $("filename").value = file.name.slice(0, 200);
  forget();
  code.focus();
}

// --- what happens ---

function complain(text) {
  $("problem").textContent = text;
  $("problem").hidden = false;
}

function forget() {
  for (const id of ["problem", "result"]) $(id).hidden = true;
  $("stages").replaceChildren();
  $("findings").replaceChildren();
  numberLines();
}

function submission() {
  const options = { llm: $("llm").checked, min_severity: $("severity").value };
  if ($("target").value) options.target_version = $("target").value;
  return { code: code.value, filename: $("filename").value.trim() || "snippet.py", options };
}

async function review() {
  if (waiting) return;
  if (!code.value.trim()) return complain("There is no code yet.");
  if ($("key").value) keep($("key").value.trim());
  forget();
  $("empty").hidden = true;
  waiting = new AbortController();
  busy(true);
  try {
    await ask(waiting.signal);
  } catch (error) {
    if (error.name !== "AbortError") complain("The gateway does not answer. Is it running?");
  } finally {
    waiting = null;
    busy(false);
  }
}

function busy(yes) {
  $("review").setAttribute("aria-disabled", String(yes));
  $("stop").hidden = !yes;
}

async function ask(signal) {
  const headers = { "Content-Type": "application/json", Accept: "text/event-stream" };
  if (kept()) headers["X-API-Key"] = kept();
  const answer = await fetch("reviews", {
    method: "POST", headers, body: JSON.stringify(submission()), signal, credentials: "omit",
  });
  const type = answer.headers.get("Content-Type") || "";
  if (!answer.ok) return refused(answer.status, await document_of(answer));
  if (!type.startsWith("text/event-stream")) return showReview(await answer.json());
  let ended = false;
  for await (const [name, data] of eventsOf(answer.body)) {
    if (name === "stage") showStage(data);
    else if (name === "result") { ended = true; showReview(data); }
    else if (name === "problem") { ended = true; refused(data.status, data); }
  }
  if (!ended) complain("The answer broke off. The review may still be finished.");
}

async function document_of(answer) {
  try { return await answer.json(); } catch { return {}; }
}

async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", name = "message", data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    if (rest.length > MAX_STREAM) throw new Error("too long");
    for (const raw of lines) {
      const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
      if (line.startsWith("event:")) name = line.slice(6).trim();
      else if (line.startsWith("data:")) data.push(line.slice(5));
      else if (line === "") {
        if (data.length) yield [name, JSON.parse(data.join("\n"))];
        name = "message";
        data = [];
      }
    }
  }
}

function refused(status, problem) {
  const faults = (problem.errors || []).map((one) => `${[one.loc].flat().join(".")}: ${one.msg}`);
  const reason = faults.join("; ") || problem.detail || problem.title || `Answer ${status}.`;
  complain(reason);
  if (status === 401 || status === 403) askForKey();
}

// --- what is shown ---

function showStage({ stage, status, findings, duration_ms }) {
  const id = `stage-${Object.keys(STAGES).indexOf(stage)}`;
  let item = $(id);
  if (!item) {
    item = element("li");
    item.id = id;
    $("stages").append(item);
  }
  const took = typeof duration_ms === "number" ? `, ${Math.round(duration_ms)} ms` : "";
  const found = typeof findings === "number" ? `, ${number(findings, "finding")}` : "";
  const state = { started: "…", ok: " ✓" }[status] ?? ` ${status}`;
  item.textContent = `${STAGES[stage] ?? stage}${state}${found}${took}`;
}

function showReview(review) {
  $("verdict").textContent = review.verdict;
  $("verdict").className = review.verdict;
  const { error, warning, info } = review.counts;
  $("counts").textContent =
    `${number(error, "error")}, ${number(warning, "warning")}, ${info} info`;
  $("degraded").hidden = review.status === "completed";
  $("degraded").textContent = `${review.status}: ${review.degraded_reasons.join(", ")}`;
  $("summary").textContent = review.summary;
  $("findings").replaceChildren(...review.findings.map(findingItem));
  $("facts").textContent = factsOf(review);
  $("result").hidden = false;
  $("key-row").hidden = true;
  numberLines(marksOf(review.findings));
  $("outcome").focus();
}

function marksOf(findings) {
  const marks = new Map();
  for (const level of LEVELS.toReversed()) {
    for (const one of findings) if (one.severity === level) marks.set(one.start.line, level);
  }
  return marks;
}

function findingItem(finding) {
  const level = LEVELS.includes(finding.severity) ? finding.severity : "info";
  const item = element("li", undefined, `${level}${finding.suppressed ? " suppressed" : ""}`);
  const head = element("p", undefined, "head");
  const place = element("button", `line ${finding.start.line}, column ${finding.start.column}`);
  place.type = "button";
  place.addEventListener("click", () => show(finding));
  head.append(place, element("strong", level, `level ${level}`), ruleOf(finding));
  head.append(element("span", `${finding.category}, by ${finding.source}`, "quiet"));
  if (finding.suppressed) head.append(element("span", "suppressed in the code", "quiet"));
  item.append(head, element("p", finding.message));
  if (finding.fix) item.append(...fixOf(finding.fix));
  return item;
}

function ruleOf(finding) {
  if (!/^https:\/\//.test(finding.url || "")) return element("code", finding.rule);
  const link = element("a", finding.rule);
  link.href = finding.url;
  link.target = "_blank";
  link.rel = "noopener noreferrer";
  return link;
}

function fixOf(fix) {
  const parts = [];
  if (fix.message) parts.push(element("p", `Fix (${fix.applicability}): ${fix.message}`));
  const texts = (fix.edits || []).map((edit) => edit.text).filter((text) => text.trim());
  if (texts.length) parts.push(element("pre", texts.join("\n…\n")));
  return parts;
}

function factsOf({ llm, timings_ms, cached, metrics, session_id }) {
  const facts = [number(metrics.lines, "line"), `${timings_ms.total} ms${cached ? " (cached)" : ""}`];
  if (llm.attempts) {
    facts.push(`${llm.model || "model"}: ${llm.usage.input.toLocaleString("en")} tokens in, ` +
      `${llm.usage.output.toLocaleString("en")} out, ` +
      (llm.cost_usd == null ? "cost unknown" : `$${llm.cost_usd}`));
  } else {
    facts.push(`no model was asked${llm.status === "disabled" ? "" : ` (${llm.status})`}`);
  }
  return `${facts.join(" · ")} · session ${session_id}`;
}

// --- what a person does ---

$("form").addEventListener("submit", (event) => { event.preventDefault(); review(); });
$("stop").addEventListener("click", () => waiting?.abort());
$("file").addEventListener("change", (event) => take(event.target.files[0]));
code.addEventListener("input", () => numberLines());
code.addEventListener("scroll", () => { $("gutter").scrollTop = code.scrollTop; });
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); review(); }
});
for (const name of ["dragover", "dragleave", "drop"]) {
  $("editor").addEventListener(name, (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    $("editor").classList.toggle("dropping", name === "dragover");
    if (name === "drop") take(event.dataTransfer.files[0]);
  });
}
numberLines();
