// The moments of an answer as cards, and what stands beside them.

import { videoUrl } from "./api.js";
import { element, find } from "./elements.js";
import { clocks, counted, duration } from "./text.js";

export class Results {
  // `open` is called with a moment; `chosen` with all moments that are ticked.
  constructor(open, chosen) {
    this.open = open;
    this.chosen = chosen;
    this.ticked = new Map();
    this.moments = [];
    find("choose-none").addEventListener("click", () => this.chooseNone());
  }

  clear() {
    this.ticked.clear();
    this.moments = [];
    for (const id of ["moments", "warnings", "how-content"]) find(id).replaceChildren();
    for (const id of ["absent", "how"]) find(id).hidden = true;
    this.chosen([]);
  }

  // Shows an answer. A better answer to the same query keeps ticks and focus.
  show(answer, current) {
    const result = answer.results[0];
    const videos = new Map(result.videos.map((video) => [video.vid, video]));
    this.moments = result.moments.map((moment, place) => ({ ...moment, rank: place + 1 }));
    const focused = document.activeElement?.closest?.(".moment")?.dataset.key;
    const inside = document.activeElement?.className;
    find("moments").replaceChildren(...this.moments.map((moment) => this.card(moment, videos.get(moment.vid))));
    if (focused) document.querySelector(`[data-key="${CSS.escape(focused)}"] .${inside}`)?.focus();
    find("absent").hidden = !result.probably_absent;
    find("warnings").replaceChildren(...result.warnings.map((text) => element("li", {}, text)));
    find("how").hidden = false;
    find("how-content").replaceChildren(...explain(answer));
    this.mark(current);
    this.report();
    return { moments: this.moments, videos };
  }

  card(moment, video) {
    const name = video?.file ?? moment.vid;
    const middle = (moment.start + moment.end) / 2;
    const picture = element("img", {
      src: videoUrl(moment.vid, "thumbnail", { t: middle.toFixed(2), width: 320 }),
      alt: "",
      loading: "lazy",
    });
    picture.addEventListener("error", () => picture.remove());
    const words = element(
      "span",
      { class: "words" },
      element("span", {}, `${moment.rank}.`),
      element("span", { class: "times" }, clocks(moment.start, moment.end).join(" – ")),
      element("span", { class: "score", title: "Higher is better, also between videos" }, moment.score.toFixed(2)),
      element("span", { class: "name" }, name),
      moment.caption ? element("span", { class: "caption" }, moment.caption) : null,
      mark(moment, video),
    );
    const tick = element("input", {
      type: "checkbox",
      class: "tick",
      "aria-label": `Choose moment ${moment.rank} for export`,
      onchange: () => this.tick(moment, tick.checked),
    });
    tick.checked = this.ticked.has(keyOf(moment));
    const open = element(
      "button",
      { type: "button", class: "open", onclick: () => this.open(moment) },
      picture,
      words,
    );
    return element(
      "li",
      { class: "moment", "data-key": keyOf(moment) },
      open,
      element("label", { class: "choose" }, tick),
    );
  }

  mark(moment) {
    const key = moment && keyOf(moment);
    for (const card of find("moments").children) {
      const current = card.dataset.key === key;
      card.classList.toggle("current", current);
      card.querySelector(".open").setAttribute("aria-current", String(current));
    }
  }

  tick(moment, on) {
    if (on) this.ticked.set(keyOf(moment), moment);
    else this.ticked.delete(keyOf(moment));
    this.report();
  }

  chooseNone() {
    this.ticked.clear();
    for (const box of document.querySelectorAll("#moments .tick")) box.checked = false;
    this.report();
  }

  // A later answer may have moved the ends of a moment: what is chosen is what is shown.
  report() {
    const shown = this.moments.filter((moment) => this.ticked.has(keyOf(moment)));
    this.ticked = new Map(shown.map((moment) => [keyOf(moment), moment]));
    this.chosen(shown);
  }
}

function keyOf(moment) {
  return `${moment.vid} ${moment.start} ${moment.end}`;
}

// Says what is not known yet, or speaks against the moment.
function mark(moment, video) {
  if (!moment.refined) return element("span", { class: "mark" }, "first look only");
  if (video?.probably_absent) return element("span", { class: "mark" }, "probably not in this video");
  return null;
}

const STAGES = {
  rewrite: "Rewriting the query",
  embed: "Embedding the texts",
  first_stage: "First stage: all clips",
  refine: "Second stage: the best videos",
};

function explain(answer) {
  const result = answer.results[0];
  const { simplified, detailed } = result.rewrites;
  const rows = Object.entries(result.seconds).map(([stage, seconds]) =>
    element("tr", {}, element("th", { scope: "row" }, STAGES[stage] ?? stage), element("td", { class: "number" }, duration(seconds))));
  const models = Object.entries(answer.models).map(([kind, model]) =>
    element("tr", {}, element("th", { scope: "row" }, kind), element("td", {}, model.name)));
  const texts = [...simplified, ...detailed];
  const refined = result.videos.filter((video) => video.refined).length;
  return [
    element("p", {}, `${counted(result.searched, "video")} compared, the best ${refined} searched by the method; preset ${answer.preset}; ${answer.software}.`),
    ...(texts.length ? [element("h3", {}, "The query in other words"), element("ul", {}, ...texts.map((text) => element("li", {}, text)))] : []),
    element("h3", {}, "Time of each stage"),
    element("table", {}, element("tbody", {}, ...rows)),
    ...(models.length ? [element("h3", {}, "Models"), element("table", {}, element("tbody", {}, ...models))] : []),
  ];
}
