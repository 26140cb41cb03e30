// Uploads: files that are dropped or chosen, and the jobs that index them.

import { getJson, Problem, send } from "./api.js";
import { element, find } from "./elements.js";
import { bytes } from "./text.js";

const LAST = new Set(["done", "failed", "cancelled"]);

export class Uploads {
  // `done` is called when a video has been added, `fail` with an error.
  constructor({ done, fail }) {
    this.done = done;
    this.fail = fail;
    this.most = Infinity;
    this.shown = new Set();
    this.queue = Promise.resolve();
    const input = find("files");
    input.addEventListener("change", () => {
      this.add(input.files);
      input.value = "";
    });
    for (const name of ["dragenter", "dragover"]) addEventListener(name, (event) => this.drag(event));
    addEventListener("dragleave", (event) => event.relatedTarget === null && this.endDrag());
    addEventListener("drop", (event) => this.drop(event));
  }

  // Offers uploads if the service takes them, and shows the jobs that it has in work.
  async offer(service) {
    this.allowed = service.uploads;
    this.most = service.limits.upload_bytes;
    find("uploading").hidden = !this.allowed;
    if (!this.allowed) return;
    const { jobs } = await getJson("v1/jobs?limit=20");
    for (const job of jobs.filter((job) => !LAST.has(job.state))) this.follow(job);
  }

  drag(event) {
    if (!this.allowed || !event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  }

  endDrag() {
    document.body.classList.remove("dropping");
  }

  drop(event) {
    this.endDrag();
    if (!this.allowed || !event.dataTransfer?.files.length) return;
    event.preventDefault();
    const dialog = find("library");
    if (!dialog.open) find("open-library").click();
    this.add(event.dataTransfer.files);
  }

  // Sends one file after another: the service indexes them one after another too.
  add(files) {
    for (const file of files) {
      const line = new Line(file.name, find("jobs"));
      if (file.size > this.most) {
        line.fail(`It has ${bytes(file.size)}; the service takes at most ${bytes(this.most)}.`);
        continue;
      }
      this.queue = this.queue.then(() => this.upload(file, line));
    }
  }

  async upload(file, line) {
    try {
      const job = await sendFile(file, find("new-tag").value.trim(), line);
      this.follow(job, line);
    } catch (error) {
      line.fail(error.message);
    }
  }

  // Shows the progress of a job until it ends.
  follow(job, line = null) {
    if (this.shown.has(job.id)) return;
    this.shown.add(job.id);
    line ??= new Line(job.name, find("jobs"));
    line.cancels(() => send(`v1/jobs/${job.id}`, { method: "DELETE" }).catch(this.fail));
    line.show(job);
    const source = new EventSource(`v1/jobs/${job.id}/events`);
    const take = (event) => {
      const now = JSON.parse(event.data);
      line.show(now);
      if (!LAST.has(now.state)) return;
      source.close();
      if (now.state === "done") this.done(now);
    };
    for (const name of ["progress", ...LAST]) source.addEventListener(name, take);
  }
}

// A line of the list of jobs.
class Line {
  constructor(name, list) {
    this.text = element("span", { class: "faint", role: "status" }, "waits");
    this.bar = element("progress", { "aria-label": `Progress of ${name}` });
    this.cancel = element("button", { type: "button", "aria-label": `Cancel ${name}`, hidden: true }, "Cancel");
    this.item = element("li", {}, element("span", {}, name), this.cancel, this.bar, this.text);
    list.prepend(this.item);
  }

  cancels(action) {
    this.cancel.hidden = false;
    this.cancel.onclick = action;
  }

  progress(done, total) {
    if (total) {
      this.bar.max = total;
      this.bar.value = done;
    } else {
      this.bar.removeAttribute("value");
    }
  }

  show(job) {
    const clips = job.total ? `${job.done} of ${job.total} clips` : `${job.done} clips`;
    const words = { receiving: "is being received", queued: "waits for its turn", indexing: `is being indexed: ${clips}`, done: "is in the library", cancelled: "was cancelled" };
    if (job.state === "failed") return this.fail(job.error ?? "It could not be indexed.");
    this.text.textContent = words[job.state] ?? job.state;
    this.progress(job.done, job.total);
    if (LAST.has(job.state)) this.end();
  }

  fail(reason) {
    this.text.textContent = reason;
    this.text.className = "failed";
    this.end();
  }

  end() {
    this.bar.hidden = true;
    this.cancel.remove();
  }
}

// `fetch` reports no progress of what is sent: XMLHttpRequest does.
async function sendFile(file, tag, line) {
  await getJson("v1"); // asks for a token first, where one is needed
  const values = new URLSearchParams({ name: file.name });
  if (tag) values.append("tag", tag);
  const request = new XMLHttpRequest();
  request.open("POST", `v1/videos?${values}`);
  request.setRequestHeader("content-type", file.type || "application/octet-stream");
  request.upload.addEventListener("progress", (event) => {
    line.progress(event.loaded, event.total);
    line.text.textContent = `${bytes(event.loaded)} of ${bytes(event.total)} sent`;
  });
  line.cancels(() => request.abort());
  return new Promise((resolve, reject) => {
    request.addEventListener("load", () => {
      const answer = parse(request.responseText);
      if (request.status === 202) resolve(answer);
      else reject(new Problem(request.status, answer?.detail ?? `The service answered ${request.status}.`));
    });
    request.addEventListener("error", () => reject(new Problem(0, "The connection was cut.")));
    request.addEventListener("abort", () => reject(new Problem(0, "It was cancelled.")));
    request.send(file);
  });
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
