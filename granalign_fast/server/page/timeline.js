// The timeline of a video: the score of its clips as a curve, and its moments as buttons.

import { element, svgElement } from "./elements.js";
import { clock, clocks } from "./text.js";

const HEIGHT = 100;

export class Timeline {
  // `seek` is called with seconds, `choose` with a moment.
  constructor(parent, seek, choose) {
    this.parent = parent;
    this.seek = seek;
    this.choose = choose;
  }

  // `curve` has the score of each clip of `clipSeconds`, or is null.
  show(seconds, moments, curve, clipSeconds) {
    this.seconds = seconds;
    this.now = element("div", { class: "now" });
    const lanes = lanesOf(moments);
    this.buttons = moments.map((moment, place) => this.button(moment, lanes[place]));
    const bar = element("div", { class: "timeline" }, ...this.buttons, this.now);
    bar.style.setProperty("--lanes", Math.max(0, ...lanes) + 1);
    if (curve) bar.prepend(drawCurve(curve, clipSeconds, seconds));
    bar.addEventListener("click", (event) => {
      if (event.target.closest("button")) return;
      const box = bar.getBoundingClientRect();
      this.seek((seconds * (event.clientX - box.left)) / box.width);
    });
    const digits = seconds < 4 ? (seconds < 0.4 ? 3 : 1) : 0; // marks lie a quarter apart
    const marks = [0, 0.25, 0.5, 0.75, 1].map((part) => element("span", {}, clock(part * seconds, digits)));
    this.parent.replaceChildren(bar, element("div", { class: "ticks", "aria-hidden": "true" }, ...marks));
  }

  button(moment, lane) {
    const label = `Moment ${moment.rank}: ${clocks(moment.start, moment.end).join(" to ")}`;
    const button = element(
      "button",
      { type: "button", title: label, "aria-label": label, onclick: () => this.choose(moment) },
      String(moment.rank),
    );
    button.style.left = `${(100 * moment.start) / this.seconds}%`;
    button.style.width = `${(100 * (moment.end - moment.start)) / this.seconds}%`;
    button.style.setProperty("--lane", lane);
    button.dataset.rank = moment.rank;
    return button;
  }

  moveTo(seconds) {
    this.now.style.left = `${100 * Math.min(seconds / this.seconds, 1)}%`;
  }

  mark(moment) {
    for (const button of this.buttons) {
      const current = moment !== null && button.dataset.rank === String(moment.rank);
      if (current) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  }
}

// Moments that overlap lie in lanes below each other, so that each can be clicked. Better moments
// come first, and so lie higher.
function lanesOf(moments) {
  const lanes = [];
  return moments.map(({ start, end }) => {
    let lane = lanes.findIndex((taken) => taken.every((other) => end <= other.start || start >= other.end));
    if (lane < 0) lane = lanes.push([]) - 1;
    lanes[lane].push({ start, end });
    return lane;
  });
}

function drawCurve(curve, clipSeconds, seconds) {
  const points = curve.map((score, clip) => {
    const middle = Math.min((clip + 0.5) * clipSeconds, seconds);
    return `${middle},${(HEIGHT * (1 - 0.92 * score)).toFixed(1)}`;
  });
  const title = svgElement("title", {});
  title.textContent = "How well each clip of the video fits the query";
  return svgElement(
    "svg",
    { viewBox: `0 0 ${seconds} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" },
    title,
    svgElement("polygon", { points: `0,${HEIGHT} ${points.join(" ")} ${seconds},${HEIGHT}` }),
    svgElement("polyline", { points: points.join(" ") }),
  );
}
