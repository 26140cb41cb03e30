// The list of all videos, and their removal.

import { getJson, send, videoUrl } from "./api.js";
import { element, find } from "./elements.js";
import { length } from "./text.js";

const PAGE = 100;

export class Videos {
  // `play` is called with a video, `fail` with an error, `say` with a sentence.
  constructor({ play, fail, say }) {
    this.play = play;
    this.fail = fail;
    this.say = say;
    this.shown = 0;
    const dialog = find("library");
    find("open-library").addEventListener("click", () => {
      dialog.showModal();
      this.refresh().catch(fail);
    });
    dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
    find("more-videos").addEventListener("click", () => this.more().catch(fail));
  }

  // Reads the list anew.
  async refresh() {
    this.shown = 0;
    await this.more();
  }

  async more() {
    const page = await getJson(`v1/videos?${new URLSearchParams({ limit: PAGE, offset: this.shown })}`);
    const rows = page.videos.map((video) => this.row(video));
    if (this.shown === 0) find("videos").replaceChildren(...rows);
    else find("videos").append(...rows);
    this.shown += page.videos.length;
    find("more-videos").hidden = this.shown >= page.total;
    find("video-count").textContent = `(${page.total.toLocaleString("en")})`;
    this.takeTags(page.videos);
    return page;
  }

  takeTags(videos) {
    const select = find("search").tag;
    const known = new Set([...select.options].map((option) => option.value));
    for (const tag of new Set(videos.flatMap((video) => video.tags))) {
      if (!known.has(tag)) select.append(element("option", { value: tag }, tag));
    }
  }

  row(video) {
    const name = video.file ?? video.vid;
    return element(
      "tr",
      {},
      element("td", {}, element("button", { type: "button", onclick: () => this.open(video) }, name)),
      element("td", { class: "number" }, length(video.seconds, 0)),
      element("td", {}, video.date ? new Date(video.date).toLocaleDateString() : "–"),
      element("td", {}, video.tags.join(", ")),
      element(
        "td",
        {},
        element("button", { type: "button", class: "danger", "aria-label": `Remove ${name}`, onclick: () => this.remove(video) }, "Remove"),
      ),
    );
  }

  open(video) {
    find("library").close();
    this.play(video);
  }

  remove(video) {
    const dialog = find("removal");
    find("removal-title").textContent = `Remove ${video.file ?? video.vid}?`;
    dialog.returnValue = "";
    dialog.showModal();
    dialog.addEventListener("close", async () => {
      if (dialog.returnValue !== "remove") return;
      try {
        await send(videoUrl(video.vid), { method: "DELETE" });
        this.say(`${video.file ?? video.vid} is removed.`);
        await this.refresh();
      } catch (error) {
        this.fail(error);
      }
    }, { once: true });
  }
}
