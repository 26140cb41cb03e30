// The player: a video, its timeline, and steps from moment to moment.

import { videoUrl } from "./api.js";
import { find } from "./elements.js";
import { clock, clocks } from "./text.js";
import { Timeline } from "./timeline.js";

export class Player {
  // `changed` is called with the moment that is played.
  constructor(changed) {
    this.changed = changed;
    this.video = find("video");
    this.still = find("still");
    this.moments = [];
    this.moment = null;
    this.vid = null;
    this.stopAt = null;
    this.timeline = new Timeline(find("timeline"), (to) => this.seek(to), (one) => this.play(one));
    this.video.addEventListener("timeupdate", () => this.tick());
    this.video.addEventListener("seeking", () => this.timeline.moveTo(this.video.currentTime));
    this.video.addEventListener("error", () => this.showStill());
    find("previous").addEventListener("click", () => this.step(-1));
    find("next").addEventListener("click", () => this.step(1));
    find("replay").addEventListener("click", () => this.moment && this.play(this.moment));
    document.addEventListener("keydown", (event) => this.key(event));
  }

  // Takes the moments of an answer, best first, and its videos by id.
  take(moments, videos) {
    this.moments = moments;
    this.videos = videos;
    if (this.moment === null) return;
    // The same place may have moved in the order, or be gone.
    const { vid, start, end } = this.moment;
    const same = moments.find((one) => one.vid === vid && one.start === start && one.end === end);
    this.moment = same ?? { ...this.moment, rank: null };
    this.draw(this.moment);
  }

  close() {
    this.video.pause();
    this.moments = [];
    this.moment = null;
    find("player").hidden = true;
  }

  play(moment) {
    this.moment = moment;
    find("player").hidden = false;
    this.draw(moment);
    if (this.vid !== moment.vid) this.load(moment.vid);
    this.stopAt = moment.end;
    this.seek(moment.start, true);
    this.changed(moment);
  }

  load(vid) {
    this.vid = vid;
    this.video.hidden = false;
    this.still.hidden = true;
    this.video.src = videoUrl(vid, "media");
    this.video.load();
  }

  draw(moment) {
    const video = this.videos.get(moment.vid);
    find("player-title").textContent = video?.file ?? moment.vid;
    find("player-note").textContent =
      `${moment.rank ? `Moment ${moment.rank}: ` : ""}${clocks(moment.start, moment.end).join(" to ")}`;
    const inside = this.moments.filter((one) => one.vid === moment.vid);
    this.timeline.show(video?.seconds ?? moment.end, inside, video?.saliency ?? null, video?.clip_seconds);
    this.timeline.moveTo(moment.start);
    this.timeline.mark(moment);
  }

  // Goes to a second. A choice of moment plays it to its end; a click on the timeline plays on.
  seek(seconds, within = false) {
    if (!within) this.stopAt = null;
    if (this.still.hidden) {
      const go = () => {
        this.video.currentTime = seconds;
        // A browser may refuse to play before the user has touched the page: then it waits.
        this.video.play().catch(() => {});
      };
      if (this.video.readyState > 0) go();
      else this.video.addEventListener("loadedmetadata", go, { once: true });
    } else {
      this.still.src = videoUrl(this.vid, "frame", { t: seconds.toFixed(3) });
    }
    this.timeline.moveTo(seconds);
  }

  tick() {
    this.timeline.moveTo(this.video.currentTime);
    if (this.stopAt !== null && this.video.currentTime >= this.stopAt) {
      this.stopAt = null;
      this.video.pause();
    }
  }

  // The browser cannot play the file: frames stand in for it.
  showStill() {
    if (!this.video.src || this.moment === null) return;
    this.video.hidden = true;
    this.still.hidden = false;
    this.still.alt = `Frame at ${clock(this.moment.start)}`;
    this.still.src = videoUrl(this.vid, "frame", { t: this.moment.start.toFixed(3) });
    find("player-note").textContent =
      "This browser cannot play the file, or it is gone. The picture is the frame at the moment's start.";
  }

  step(by) {
    if (!this.moments.length) return;
    const at = this.moments.indexOf(this.moment);
    const to = at < 0 ? 0 : (at + by + this.moments.length) % this.moments.length;
    this.play(this.moments[to]);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.target.closest("input, select, textarea")) return;
    const action = { n: () => this.step(1), p: () => this.step(-1), r: () => this.moment && this.play(this.moment) }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }
}
