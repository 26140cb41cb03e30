// Saving chosen moments: as a file for another program, or as clips.

import { send, videoUrl } from "./api.js";
import { element, find } from "./elements.js";
import { counted } from "./text.js";

const NAMES = {
  srt: "Subtitles (SRT)",
  vtt: "Subtitles (WebVTT)",
  ffmetadata: "Chapters (FFmetadata)",
  edl: "Cut list (EDL)",
  otio: "OpenTimelineIO",
  fcpxml: "Final Cut Pro (FCPXML)",
  csv: "Table (CSV)",
};

export class Exports {
  // `fail` is called with an error, `say` with a sentence.
  constructor(fail, say) {
    this.fail = fail;
    this.say = say;
    this.moments = [];
    this.form = find("export");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.save().catch(fail);
    });
  }

  offer(formats) {
    const options = formats.map((name) => element("option", { value: name }, NAMES[name] ?? name));
    options.push(element("option", { value: "clip" }, "Video clips (MP4)"));
    this.form.format.replaceChildren(...options);
  }

  take(moments, query) {
    this.moments = moments;
    this.query = query;
    this.form.hidden = moments.length === 0;
    const videos = new Set(moments.map((moment) => moment.vid)).size;
    find("chosen-count").textContent = `${counted(moments.length, "moment")} of ${counted(videos, "video")} chosen`;
  }

  // A format holds the moments of one video, so there is a file for each video.
  async save() {
    const format = this.form.format.value;
    const urls = format === "clip" ? this.clips() : this.files(format);
    for (const [place, url] of urls.entries()) {
      this.say(`Saving file ${place + 1} of ${urls.length}`);
      await download(url);
    }
    this.say(`${counted(urls.length, "file")} saved`);
  }

  clips() {
    return this.moments.map(({ vid, start, end }) => videoUrl(vid, "clip", { start, end, exact: "true" }));
  }

  files(format) {
    const videos = Map.groupBy
      ? Map.groupBy(this.moments, (moment) => moment.vid)
      : groupByVideo(this.moments);
    return [...videos].map(([vid, moments]) => {
      const url = new URLSearchParams({ format, query: this.query });
      for (const { start, end, score } of moments) url.append("moment", `${start}-${end}-${score}`);
      return `${videoUrl(vid, "export")}?${url}`;
    });
  }
}

function groupByVideo(moments) {
  const videos = new Map();
  for (const moment of moments) videos.set(moment.vid, [...(videos.get(moment.vid) ?? []), moment]);
  return videos;
}

// Fetches first: a problem is then said on the page, and is not saved as a file.
async function download(url) {
  const response = await send(url);
  const content = URL.createObjectURL(await response.blob());
  const link = element("a", { href: content, download: nameOf(response) ?? "moments" });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(content), 60_000);
}

function nameOf(response) {
  const header = response.headers.get("content-disposition") ?? "";
  const encoded = header.match(/filename\*=UTF-8''([^;]+)/i);
  if (encoded) return decodeURIComponent(encoded[1]);
  return header.match(/filename="?([^";]+)"?/i)?.[1] ?? null;
}
