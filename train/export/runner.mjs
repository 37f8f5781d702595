// SPDX-License-Identifier: Apache-2.0
/* An exported model in Node, with onnxruntime-node and tokenizers; `polyhead export --bundle`.

    npm install onnxruntime-node tokenizers
    node runner.mjs --text "where is my parcel?" --task intent
    node runner.mjs < texts.jsonl > answers.jsonl
    import { Runner } from "./runner.mjs";
    const answers = await (await Runner.open(folder)).answer(["where is my parcel?"], ["intent"]);

Answers are those of Polyhead's pipeline, of its server's `/predict` and of `runner.py`, function by
function; what `start` and `end` count are code points of the text as it was given. `tokenizers` is
the Node build of the library that Python uses: others give no offsets, which entities need. */

import { readFileSync, realpathSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import ort from "onnxruntime-node";
import tokenizers from "tokenizers";

const BATCH_TOKENS = 1024; // of a pass, padding counted
const STRETCH = 1024; // lines that are read together
const FORMS = {
  text: "single texts",
  pair: "pairs (text, text)",
  choices: "(text, [text, text])",
};
const HALF = /\p{Surrogate}/gu; // of a surrogate pair

const range = (count) => [...Array(count).keys()];
const sum = (values) => values.reduce((a, b) => a + b, 0);
const argmax = (values) => values.reduce((best, v, i) => (v > values[best] ? i : best), 0);
const unique = (values) => [...new Set(values)];

/** A wrong argument; its message says what to give. */
export class ArgumentError extends Error {}

/** The model of a folder; calls may run at the same time. */
export class Runner {
  /** Open a folder (default: where this file lies); `threads` 0 leaves them to ONNX Runtime. */
  static async open(folder = dirname(fileURLToPath(import.meta.url)), { threads = 0 } = {}) {
    const read = (name) => JSON.parse(readFileSync(join(folder, name), "utf8"));
    const about = read("export.json");
    if (!about.bundle) {
      throw new ArgumentError(`${folder} is no bundle; export the model with --bundle`);
    }
    const options = { intraOpNumThreads: threads, logSeverityLevel: 3 };
    const session = await ort.InferenceSession.create(join(folder, "model.onnx"), options);
    return new Runner(folder, about, read("config.json").tasks, session);
  }

  constructor(folder, about, tasks, session) {
    Object.assign(this, { about, session, bundle: about.bundle });
    this.tasks = Object.fromEntries(about.tasks.map((name) => [name, tasks[name]]));
    this.windowed = new Set(this.bundle.windowed);
    this.word = new RegExp(this.bundle.word, "gu");
    this.letter = new RegExp(this.bundle.letter, "u");
    this.space = new RegExp(`^${this.bundle.space}`, "u");
    this.tokenizer = tokenizers.Tokenizer.fromFile(join(folder, "tokenizer.json"));
    this.tokenizer.disableTruncation(); // it loses windows after the second (0.23.2)
    this.tokenizer.disablePadding();
  }

  /** One object per text, keyed by task; options are those of `/predict`.
   *
   * A text is a string, [text, text] for pair tasks, [text, [text, text]] for tasks that choose, or
   * an object of `text` and `text_pair`. `tasks` null is all that read such texts, `top_k` null all
   * labels; `dimensions`, of `matryoshka`, cuts embeddings. ArgumentError says what is wrong. */
  async answer(texts, tasks = null, options = {}) {
    const asked = { top_k: 1, threshold: null, document: false, dimensions: null, ...options };
    if (!Array.isArray(texts)) {
      throw new ArgumentError("texts is one text; give a list of texts");
    }
    if (typeof tasks === "string") {
      throw new ArgumentError(`tasks is '${tasks}'; give a list of names: a bundle finds no tasks`);
    }
    const items = texts.map(readItem);
    if (!items.length) return [];
    const names = this.choose(unique(items.map((item) => item.form)), tasks);
    this.check(names, asked);
    const pairs = items[0].seconds[0] !== null;
    const groups = new Map(); // pairs are cut otherwise for windows
    for (const name of names) {
      const prompts = this.tasks[name].prompts ?? [""];
      const prompt = prompts[Math.min(Number(asked.document), prompts.length - 1)];
      const key = JSON.stringify([prompt, pairs && this.windowed.has(name)]);
      groups.set(key, { prompt, names: [...(groups.get(key)?.names ?? []), name] });
    }
    const answers = {};
    for (const { prompt, names: group } of groups.values()) {
      const rows = items.flatMap(({ first, seconds }) =>
        seconds.map((second) => [prompt + first, second]),
      );
      Object.assign(answers, await this.run(rows, group, asked));
    }
    if (items[0].form === "choices") {
      for (const name of names) {
        let at = 0;
        answers[name] = items.map(({ seconds }) =>
          ifSure(
            choice(answers[name].slice(at, (at += seconds.length)), seconds),
            this.tasks[name].abstain,
          ),
        );
      }
    }
    return items.map((_, row) => Object.fromEntries(names.map((n) => [n, answers[n][row]])));
  }

  choose(forms, tasks) {
    if (forms.length > 1) {
      throw new ArgumentError("texts and pairs of texts are mixed; give them in separate calls");
    }
    const [form] = forms;
    const { reads } = this.bundle;
    const known = Object.keys(this.tasks).join(", ");
    const names = tasks ?? Object.keys(reads).filter((name) => reads[name] === form);
    const unknown = names.filter((name) => !Object.hasOwn(reads, name)).map((name) => `'${name}'`);
    if (unknown.length) {
      throw new ArgumentError(`unknown task ${unknown.join(", ")}; this model has: ${known}`);
    }
    if (!names.length) {
      throw new ArgumentError(`no task for ${FORMS[form]}; this model has: ${known}`);
    }
    const wrong = names.find((name) => reads[name] !== form);
    if (wrong !== undefined) {
      throw new ArgumentError(`task '${wrong}' reads ${FORMS[reads[wrong]]}`);
    }
    return unique(names);
  }

  check(names, { top_k, threshold, dimensions }) {
    if (top_k !== null && !(Number.isInteger(top_k) && top_k >= 1)) {
      throw new ArgumentError(`top_k is ${top_k}; it must be at least 1, or null`);
    }
    if (threshold !== null && !(threshold >= 0 && threshold <= 1)) {
      throw new ArgumentError(`threshold is ${threshold}; it must lie in [0, 1], or be null`);
    }
    for (const name of dimensions === null ? [] : names) {
      const { shape } = this.session.outputMetadata.find((output) => output.name === name);
      const widths = unique([shape.at(-1), ...(this.tasks[name].matryoshka ?? [])]);
      const vector = this.bundle.how[name] === "vector";
      const allowed = vector ? widths.sort((a, b) => b - a) : [];
      if (!allowed.includes(dimensions)) {
        const has = `[${allowed.join(", ")}]`;
        throw new ArgumentError(`dimensions is ${dimensions}; task '${name}' has: ${has}`);
      }
    }
  }

  /** Answers of tasks to texts, or pairs, one for each row. */
  async run(rows, names, asked) {
    const { how, pools } = this.bundle;
    const tags = names.filter((name) => how[name] === "spans");
    const { units, entries } = await this.windows(rows, names, tags);
    const scores = {}; // (U, L) log-probabilities; a word without a token keeps even ones
    for (const name of tags) {
      const count = this.tasks[name].labels.length;
      const even = new Float32Array(count).fill(-Math.log(count));
      scores[name] = units.map((of) => of.map(() => even));
    }
    const parts = Object.fromEntries(names.map((name) => [name, rows.map(() => [])])); // by window
    for await (const [name, entry, value] of this.encode(entries, names)) {
      const { row, number, window, reads, masks } = entry;
      const windowed = this.windowed.has(name);
      if (name in scores) {
        for (const [unit, token] of reads) scores[name][row][unit] = logSoftmax(value(token));
      } else if (name in pools) {
        parts[name][row].push([Float32Array.from(value(0)), window.ids.length]);
      } else if (number === 0 || windowed) {
        const read = windowed ? masks : this.masks(window.ids);
        parts[name][row].push(...this.answers(name, value, window.ids, read, asked));
      }
    }
    for (const name of names) {
      if (name in pools) {
        parts[name] = parts[name].map((part) => {
          const values = pooled(part, pools[name]);
          return this.answers(name, () => values, [], [], asked);
        });
      } else if (name in scores) {
        parts[name] = rows.map(([text], row) =>
          this.entities(name, text, units[row], scores[name][row]),
        );
      }
      if (!["spans", "masks"].includes(how[name])) parts[name] = parts[name].map(([one]) => one);
    }
    return parts;
  }

  /** Units of each text; windows with what is read in them, longest first. */
  async windows(rows, names, tags) {
    const several = names.some((name) => this.windowed.has(name));
    const texts = rows.map(([first]) => first.replace(HALF, "\ufffd"));
    let encoded;
    if (rows[0][1] === null) {
      encoded = await Promise.all(texts.map((text) => this.ofText(text)));
    } else {
      const pairs = rows.map(([, second], n) => [texts[n], second.replace(HALF, "\ufffd")]);
      const encode = (pair) => (several ? this.windowsOf(...pair) : this.cut(...pair));
      encoded = await Promise.all(pairs.map(encode));
    }
    const units = [];
    const entries = [];
    const step = this.bundle.room.text - Math.floor(this.bundle.room.text / 4);
    encoded.forEach((all, row) => {
      const windows = (several ? all : all.slice(0, 1)).map((window) => ({
        ids: window.getIds(),
        types: window.getTypeIds(),
        skip: window.getSpecialTokensMask(),
        offsets: tags.length ? window.getOffsets() : [],
      }));
      const words = tags.length ? wordsOf(texts[row], this.word) : [];
      const [ofText, reads] = this.units([...texts[row]], words, windows);
      units.push(ofText);
      const masks = windows.map(({ ids }, n) => this.masks(ids).map((k) => [n * step + k, k]));
      const best = [...nearest(masks, windows).values()];
      windows.forEach((window, number) => {
        const own = best.filter(([at]) => at === number).map(([, token]) => token);
        entries.push({ row, number, window, reads: reads[number], masks: own });
      });
    });
    entries.sort((a, b) => b.window.ids.length - a.window.ids.length);
    return { units, entries };
  }

  masks(ids) {
    return range(ids.length).filter((token) => ids[token] === this.bundle.mask_id);
  }

  /** Tokens of a text without special ones. */
  bare(text) {
    return this.tokenizer.encode(text, null, { addSpecialTokens: false });
  }

  /** Windows of a text. */
  async ofText(text) {
    const { room, truncation_side } = this.bundle;
    const bare = await this.bare(text);
    bare.truncate(room.text, Math.floor(room.text / 4), truncation_side);
    return [bare, ...bare.getOverflowing()].map((part) =>
      this.tokenizer.postProcess(part, null, true),
    );
  }

  /** A pair in one window: the longer text is cut first. */
  async cut(first, second) {
    const room = this.bundle.room.pair;
    const two = [await this.bare(first), await this.bare(second)];
    const lengths = two.map((one) => one.getLength());
    const less = Math.min(...lengths);
    const least = Math.min(less, Math.floor(room / 2));
    const most = room - least;
    const longer = lengths[0] > lengths[1] ? 0 : 1;
    two[1 - longer].truncate(least, 0, this.bundle.truncation_side);
    two[longer].truncate(most, 0, this.bundle.truncation_side);
    return [this.tokenizer.postProcess(...two, true)];
  }

  /** Windows of a pair: its first text, up to half of the room, and a stretch of the other. */
  async windowsOf(first, second) {
    const whole = await this.tokenizer.encode(first, second);
    if (whole.getLength() <= this.bundle.window) return [whole];
    const room = this.bundle.room.pair;
    let one = await this.bare(first);
    const other = await this.bare(second);
    const most = Math.max(Math.floor(room / 2), room - other.getLength());
    while (one.getLength() > most) {
      // a text cut inside a word may have more tokens
      const points = [...first];
      const end = Math.min(one.getOffsets()[most - 1][1], points.length - 1);
      first = points.slice(0, end).join("");
      one = await this.bare(first);
    }
    const rest = room - one.getLength();
    other.truncate(rest, Math.floor(rest / 4), "right"); // its own default is left
    const stretches = [other, ...other.getOverflowing()];
    return stretches.map((part) => this.tokenizer.postProcess(one, part, true));
  }

  /** [task, entry, value]: `value(token)` is (L,), of heads of whole texts whatever the token.
   *
   * Windows of a length pass together, in a pass for each adapter. */
  async *encode(entries, names) {
    const { adapters, tasks, inputs } = this.about;
    for (let at = 0; at < entries.length; ) {
      const width = entries[at].window.ids.length;
      const batch = entries.slice(at, at + Math.max(1, Math.floor(BATCH_TOKENS / width)));
      at += batch.length;
      const size = batch.length * width;
      const feed = {
        input_ids: new BigInt64Array(size).fill(BigInt(this.bundle.pad_id)),
        attention_mask: new BigInt64Array(size),
        token_type_ids: new BigInt64Array(size),
      };
      batch.forEach(({ window: { ids, types } }, row) => {
        feed.input_ids.set(ids.map(BigInt), row * width);
        feed.attention_mask.fill(1n, row * width, row * width + ids.length);
        if (this.bundle.type_ids) feed.token_type_ids.set(types.map(BigInt), row * width);
      });
      for (const adapter of unique(names.map((name) => adapters[name]))) {
        const group = names.filter((name) => adapters[name] === adapter);
        feed.task_ids = new BigInt64Array(batch.length).fill(BigInt(tasks.indexOf(group[0])));
        const given = inputs.map((name) => {
          const dims = name === "task_ids" ? [batch.length] : [batch.length, width];
          return [name, new ort.Tensor("int64", feed[name], dims)];
        });
        const outputs = await this.session.run(Object.fromEntries(given), group);
        for (const name of group) {
          const { data, dims } = outputs[name];
          const last = dims.at(-1);
          const tokens = dims.length === 3 ? dims[1] : 1;
          for (const [row, entry] of batch.entries()) {
            const start = (token) => (row * tokens + (tokens === 1 ? 0 : token)) * last;
            yield [name, entry, (token) => data.subarray(start(token), start(token) + last)];
          }
        }
      }
    }
  }

  /** What is said of one text: of each of its masks, or once. */
  answers(name, value, ids, masks, { top_k, threshold, dimensions }) {
    const task = this.tasks[name];
    const how = this.bundle.how[name];
    if (how === "number") return [{ score: value(0)[0] }];
    if (how === "vector") {
      const cut = [...value(0).subarray(0, dimensions ?? undefined)];
      const length = task.normalize ? Math.max(Math.hypot(...cut), 1e-12) : 1;
      return [cut.map((one) => one / length)];
    }
    if (how === "masks" || how === "next") {
      const special = this.bundle.special_ids;
      const last = Math.max(0, ids.findLastIndex((token) => !special.includes(token)));
      const label = (token) => this.tokenizer.idToToken(token);
      const known = this.tokenizer.getVocabSize();
      return (how === "masks" ? masks : [last]).map((token) =>
        ranked(softmax(value(token).subarray(0, known)), label, top_k),
      );
    }
    const label = (number) => task.labels[number];
    if (how === "several") {
      const own = (threshold === null && top_k !== null && task.thresholds) || {};
      const least = threshold ?? (top_k === null ? 0 : task.threshold);
      const scores = Array.from(value(0), (one) => 1 / (1 + Math.exp(-one)));
      const from = (name) => (Object.hasOwn(own, name) ? own[name] : least);
      return [ranked(scores, label, null).filter((entry) => entry.score >= from(entry.label))];
    }
    const scores = softmax(value(0));
    const sure = (answer) => [top_k === 1 ? ifSure(answer, task.abstain) : answer];
    if (how === "branches") {
      return sure(branches(scores, task.labels, this.bundle.levels[name], top_k));
    }
    if (how === "middle" && top_k === 1) {
      let total = 0;
      const sums = scores.slice(0, -1).map((score) => (total += score));
      const middle = sums.filter((below) => below < 0.5).length;
      return sure({ label: label(middle), score: scores[middle] });
    }
    return sure(ranked(scores, label, top_k));
  }

  /** Entities in code points of one text, of (U, L) log-probabilities of its units. */
  entities(name, text, units, scores) {
    const { labels, signs = null, abstain = 0 } = this.tasks[name];
    const points = [...text];
    const written = ([start, end]) => points.slice(start, end).join("");
    // the first word that is no foreign sign
    const edge = (words) =>
      words.find((word) => {
        const read = written(word);
        return signs === null || signs.includes(read) || this.letter.test(read);
      }) ?? words[0];
    const spans = [];
    const tags = this.bundle.tags[name];
    const path = tags ? viterbi(scores, tags) : scores.map((of) => argmax(of));
    const chances = path.map((tag, unit) => Math.exp(scores[unit][tag]));
    if (!tags) {
      // each word by itself
      path.forEach((tag, n) => {
        for (const word of units[n]) spans.push([labels[tag], chances[n], ...word]);
      });
    }
    const outside = labels.length;
    let start = 0;
    let before = outside;
    for (const [number, tag] of (tags ? [...path, outside] : []).entries()) {
      const step = tags[before][tag]; // 2 goes on, 3 makes what was no entity
      const kind = before === outside ? "" : labels[before].split("-").slice(1).join("-");
      if (kind && step !== "2" && step !== "3") {
        const chance = sum(chances.slice(start, number)) / (number - start);
        const [begin] = edge(units[start]);
        const [, end] = edge([...units[number - 1]].reverse());
        spans.push([kind, chance, begin, end]);
      }
      if (step !== "2") start = number;
      before = tag;
    }
    const sure = spans.filter(([, score]) => score >= abstain);
    return sure.map(([entity_group, score, from, end]) => ({
      entity_group,
      score,
      word: written([from, end]),
      start: from,
      end,
    }));
  }

  /** Units: words that share their first token; [unit, token] read in each window. */
  units(points, words, windows) {
    const found = (words.length ? windows : []).map(({ offsets, skip }) => {
      const spans = offsets.map(([start, end], token) => {
        while (start < end && this.space.test(points[start])) start += 1;
        return [skip[token] ? end : start, end];
      });
      return wordsAt(spans, words);
    });
    const best = nearest(found, windows);
    const units = [];
    const reads = windows.map(() => []);
    let before = null;
    words.forEach((word, number) => {
      const place = best.get(number) ?? null;
      if (place && before && place[0] === before[0] && place[1] === before[1]) {
        units.at(-1).push(word);
        return;
      }
      if (place) reads[place[0]].push([units.length, place[1]]);
      units.push([word]);
      before = place;
    });
    return [units, reads];
  }
}

/** A key of `FORMS`, the text, and those that go with it. */
function readItem(value, number) {
  let item = value;
  const keys = value && typeof value === "object" && !Array.isArray(value) ? Object.keys(value) : [];
  if (keys.includes("text") && keys.every((key) => ["text", "text_pair"].includes(key))) {
    item = (value.text_pair ?? null) === null ? value.text : [value.text, value.text_pair];
  }
  if (typeof item === "string") return { form: "text", first: item, seconds: [null] };
  if (Array.isArray(item) && item.length === 2 && item[1]?.length) {
    const seconds = [item[1]].flat();
    if ([item[0], ...seconds].every((text) => typeof text === "string")) {
      return { form: Array.isArray(item[1]) ? "choices" : "pair", first: item[0], seconds };
    }
  }
  const shown = JSON.stringify(value)?.slice(0, 80);
  throw new ArgumentError(`text ${number} is ${shown}; give a text, a pair or a text with choices`);
}

/** Words of a text in code points. */
function wordsOf(text, pattern) {
  const words = [];
  let units = 0;
  let points = 0;
  for (const { 0: word, index } of text.matchAll(pattern)) {
    const start = points + [...text.slice(units, index)].length;
    points = start + [...word].length;
    units = index + word.length;
    words.push([start, points]);
  }
  return words;
}

/** [word, token]: the first token that starts in the word, else the one that reaches into it. */
function wordsAt(spans, words) {
  const pairs = [];
  let token = 0;
  words.forEach(([start, end], number) => {
    while (token < spans.length && spans[token][1] <= Math.max(start, spans[token][0])) token += 1;
    const over = (k) => k < spans.length && spans[k][0] < Math.min(end, spans[k][1]);
    if (!over(token)) return;
    const next = spans[token][0] < start && over(token + 1) && spans[token + 1][0] >= start;
    pairs.push([number, next ? token + 1 : token]);
  });
  return pairs;
}

/** [window, token] of each unit: in the window that shows most of its surroundings. */
function nearest(reads, windows) {
  const best = new Map();
  reads.forEach((pairs, number) => {
    const { skip } = windows[number];
    const first = skip.indexOf(0);
    const last = skip.lastIndexOf(0);
    for (const [unit, token] of pairs) {
      const left = number ? token - first : skip.length;
      const right = number < windows.length - 1 ? last - token : skip.length;
      const shown = Math.min(left, right);
      if (!best.has(unit) || shown > best.get(unit)[2]) best.set(unit, [number, token, shown]);
    }
  });
  return best;
}

/** (L,) or (D,) of a text, of its windows' [values, number of tokens]. */
function pooled(parts, pool) {
  const weights = parts.map(([, length]) => (pool === "tokens" ? length : 1));
  const total = sum(weights);
  return parts[0][0].map((_, k) => {
    const values = parts.map(([of]) => of[k]);
    if (pool === "max") return Math.max(...values);
    return sum(values.map((value, n) => (value * weights[n]) / total));
  });
}

function logSoftmax(values) {
  const top = values.reduce((a, b) => Math.max(a, b), -Infinity);
  let total = 0;
  for (const value of values) total += Math.exp(value - top);
  return Float32Array.from(values, (value) => value - top - Math.log(total));
}

const softmax = (values) => Array.from(logSoftmax(values), Math.exp);

function ranked(scores, label, top_k) {
  const entry = (number) => ({ label: label(number), score: scores[number] });
  if (top_k === 1) return entry(argmax(scores));
  const order = range(scores.length).sort((a, b) => scores[b] - scores[a] || a - b);
  return order.slice(0, top_k ?? undefined).map(entry);
}

/** Leaves of a tree, the best branch first; the score of a node is the sum of its leaves'.
 *
 * `levels` has the number of each leaf's node at each level. */
function branches(scores, labels, levels, top_k) {
  const sums = levels.map((level) =>
    level.map((node) => sum(scores.filter((_, leaf) => level[leaf] === node))),
  );
  const byBranch = (a, b) => {
    for (const [depth, of] of sums.entries()) {
      const sign = of[b] - of[a] || levels[depth][a] - levels[depth][b];
      if (sign) return sign;
    }
    return 0;
  };
  const best = range(labels.length).sort(byBranch).slice(0, top_k ?? undefined);
  const entries = best.map((leaf) => {
    const names = labels[leaf].split("/").map((_, n, all) => all.slice(0, n + 1).join("/"));
    const path = names.map((label, depth) => ({ label, score: sums[depth][leaf] }));
    return { ...path.at(-1), path: path.slice(0, -1) };
  });
  return top_k === 1 ? entries[0] : entries;
}

/** The answer; below this score without its label, and the number of its choice. */
function ifSure(answer, least = 0) {
  if (answer.score >= least) return answer;
  const kept = { ...answer };
  for (const key of ["label", "choice"]) if (key in kept) kept[key] = null;
  return kept;
}

function choice(answers, choices) {
  const scores = softmax(answers.map(({ score }) => score));
  const best = argmax(scores);
  return { label: choices[best], choice: best, score: scores[best] };
}

/** The best legal tags of (U, L) scores; `tags` ends with what is outside of the text. */
function viterbi(scores, tags) {
  const outside = tags.length - 1;
  const best = scores.map((of) => argmax(of));
  const path = [outside, ...best, outside];
  if (best.every((tag, n) => tags[path[n]][tag] !== "0") && tags[path.at(-2)][outside] !== "0") {
    return best;
  }
  const cost = (from, to) => (tags[from][to] === "0" ? -Infinity : 0);
  const all = range(outside);
  let total = all.map((tag) => scores[0][tag] + cost(outside, tag));
  const origins = scores.slice(1).map((emission) => {
    const from = all.map((tag) => argmax(all.map((before) => total[before] + cost(before, tag))));
    total = all.map((tag) => total[from[tag]] + cost(from[tag], tag) + emission[tag]);
    return from;
  });
  const chosen = [argmax(total.map((one, tag) => one + cost(tag, outside)))];
  for (const origin of origins.reverse()) chosen.unshift(origin[chosen[0]]);
  return chosen;
}

/** Lines end with a line feed alone; readline ends them at U+2028 too. */
async function* linesOf(stream) {
  let rest = "";
  for await (const chunk of stream.setEncoding("utf8")) {
    const lines = (rest + chunk).split("\n");
    rest = lines.pop();
    yield* lines;
  }
  if (rest) yield rest;
}

/** The command line: without --text, JSONL from stdin to stdout. */
async function main() {
  const one = { type: "string" };
  const several = { type: "string", multiple: true };
  const { values } = parseArgs({
    options: {
      text: several, // a text; may be repeated
      "text-pair": one, // the second text, for pair tasks
      task: several, // a task; may be repeated; default all
      "top-k": { type: "string", default: "1" }, // or all
      threshold: one, // of multi-label tasks
      document: { type: "boolean", default: false }, // texts are no queries
      dimensions: one, // width of embeddings, of matryoshka
    },
  });
  const number = (name) => (values[name] === undefined ? null : Number(values[name]));
  const options = {
    top_k: values["top-k"] === "all" ? null : number("top-k"),
    threshold: number("threshold"),
    document: values.document,
    dimensions: number("dimensions"),
  };
  const run = await Runner.open();
  const ask = (texts) => run.answer(texts, values.task ?? null, options);
  if (values.text) {
    const other = values["text-pair"];
    const texts = values.text.map((text) => (other === undefined ? text : [text, other]));
    console.log(JSON.stringify(await ask(texts), null, 2));
    return;
  }
  let lines = [];
  const flush = async () => {
    for (const answer of await ask(lines.map((line) => JSON.parse(line)))) {
      console.log(JSON.stringify(answer));
    }
    lines = [];
  };
  for await (const line of linesOf(process.stdin)) {
    if (lines.push(line) === STRETCH) await flush();
  }
  await flush();
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  try {
    await main();
  } catch (error) {
    const known = error instanceof ArgumentError || error instanceof SyntaxError;
    if (!known && !error.code?.startsWith("ERR_PARSE_ARGS")) throw error;
    console.error(error.message);
    process.exitCode = 2;
  }
}
