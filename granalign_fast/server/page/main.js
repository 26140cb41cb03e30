// The page: a search form, its answers, a player.

import { events, getJson, postJson, Problem } from "./api.js";
import { element, find } from "./elements.js";
import { Exports } from "./exports.js";
import { Player } from "./player.js";
import { Results } from "./results.js";
import { counted, duration } from "./text.js";
import { Uploads } from "./uploads.js";
import { Videos } from "./videos.js";

const form = find("search");
const exports = new Exports(fail, say);
const results = new Results((moment) => player.play(moment), (moments) => exports.take(moments, query));
const player = new Player((moment) => results.mark(moment));
const videos = new Videos({ play: playWhole, fail, say });
const uploads = new Uploads({ done: added, fail });
let query = "";
let running = null;

function say(text) {
  find("status").textContent = text;
}

function fail(error) {
  if (error.name === "AbortError") return;
  find("problem").textContent = error instanceof Problem ? error.message : `The page has failed: ${error.message}`;
  if (!(error instanceof Problem)) console.error(error);
}

function request() {
  const values = new FormData(form);
  const text = (name) => values.get(name).trim();
  const filters = {
    videos: text("videos").split(",").map((part) => part.trim()).filter(Boolean),
    tags: text("tag") ? [text("tag")] : [],
    after: text("after") || null,
    before: text("before") || null,
    min_length: Number(text("min_length")) || 0,
  };
  return { query: text("query"), preset: text("preset") || null, filters, stream: true, saliency: true, top: 20 };
}

function countFilters() {
  const { filters, preset } = request();
  const used = [filters.videos.length, filters.tags.length, filters.after, filters.before, filters.min_length, preset];
  const count = used.filter(Boolean).length;
  find("filter-count").textContent = count ? `(${count} in use)` : "";
}

async function search() {
  const body = request();
  if (!body.query) return;
  running?.abort();
  const mine = new AbortController();
  running = mine;
  query = body.query;
  find("problem").textContent = "";
  results.clear();
  player.close();
  say("Searching …");
  history.replaceState(null, "", `?${new URLSearchParams({ q: query })}`);
  const begin = performance.now();
  try {
    const response = await postJson("v1/search", body, { signal: mine.signal });
    let ended = false;
    for await (const [name, data] of events(response)) {
      if (mine !== running) return;
      if (name === "error") throw new Problem(data.status, data.detail);
      show(data, name, (performance.now() - begin) / 1000);
      ended ||= name === "done";
    }
    if (!ended) throw new Problem(0, "The connection was cut before the answer was complete. Search again.");
  } catch (error) {
    if (mine !== running) return;
    say("");
    fail(error);
  }
}

function show(answer, stage, seconds) {
  const { moments, videos: found } = results.show(answer, player.moment);
  player.take(moments, found);
  const result = answer.results[0];
  if (stage !== "done") {
    say(`First look: ${counted(moments.length, "moment")}. Searching the best videos …`);
    return;
  }
  const none = result.searched ? "No moment was found" : "No video was searched: look at the filters";
  const count = moments.length ? counted(moments.length, "moment") : none;
  say(`${count} in ${counted(result.searched, "video")}, ${duration(seconds)}.`);
}

function playWhole(video) {
  player.take([], new Map([[video.vid, video]]));
  player.play({ vid: video.vid, start: 0, end: video.seconds, rank: null });
  find("player-title").focus();
}

async function added(job) {
  say(`${job.name} is in the library.`);
  await videos.refresh().catch(fail);
}

// Reads what the service can do; it answers 503 while its models are loaded.
async function begin() {
  for (;;) {
    try {
      return await getJson("v1");
    } catch (error) {
      if (error.status !== 503) throw error;
      say("The service loads its models …");
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

async function start() {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  form.addEventListener("input", countFilters);
  form.addEventListener("reset", countFilters);
  try {
    const service = await begin();
    say("");
    exports.offer(service.formats);
    for (const [name, unavailable] of Object.entries(service.presets)) {
      if (unavailable === null) form.preset.append(element("option", { value: name }, name));
    }
    form.query.maxLength = service.limits.query_characters;
    await uploads.offer(service);
    const { total } = await videos.more();
    if (total === 0) say("The library has no videos yet. Add some by the button Videos.");
    const asked = new URLSearchParams(location.search).get("q");
    if (asked) {
      form.query.value = asked;
      await search();
    } else {
      form.query.focus();
    }
  } catch (error) {
    say("");
    fail(error);
  }
}

start();
