// Server-sent events over fetch: an EventSource cannot send a token. Resumes where a stream broke off.

import { headers, path } from "./api.js";

const LONGEST_WAIT = 30_000;

/**
 * Follow a job until it has ended or `signal` aborts. `onEvent` gets {number, type, ...data} in order, each once:
 * the number of the last one is sent as Last-Event-ID when the stream is opened again. The service ends the stream
 * of a job that has ended, and answers 204 to the next request: only then is it known that it was not tried again.
 */
export async function followJob(job, { onEvent, after = 0, signal = new AbortController().signal }) {
  let [last, base, failures] = [after, 2000, 0];
  while (!signal.aborted) {
    try {
      const answer = await fetch(path("jobs", job, "events"), {
        signal, cache: "no-store", credentials: "omit",
        headers: headers({ Accept: "text/event-stream", ...(last ? { "Last-Event-ID": String(last) } : {}) }),
      });
      if (answer.status === 204 || answer.status === 404 || answer.status === 401) return;
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      for await (const frame of frames(answer.body)) {
        if (frame.retry !== undefined) base = frame.retry;
        if (frame.data === undefined || frame.id <= last) continue;
        [last, failures] = [frame.id, 0];
        onEvent({ number: frame.id, ...JSON.parse(frame.data) });
      }
    } catch (error) {
      if (signal.aborted) return;
      failures += 1;
    }
    await pause(Math.min(LONGEST_WAIT, base * 2 ** Math.min(failures, 5)) * (0.75 + Math.random() / 2), signal);
  }
}

/** Frames of an event stream, however its bytes are cut. */
export async function* frames(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let [held, frame] = ["", {}];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (held + value).split(/\r?\n/);
    held = lines.pop();
    for (const line of lines) {
      if (line === "") {
        yield frame;
        frame = {};
      } else if (!line.startsWith(":")) {
        read(line, frame);
      }
    }
  }
}

function read(line, frame) {
  const [, name, value] = /^([^:]*)(?:: ?(.*))?$/.exec(line);
  if (name === "id" || name === "retry") frame[name] = Number(value);
  else if (name === "data") frame.data = frame.data === undefined ? value : `${frame.data}\n${value}`;
}

const pause = (milliseconds, signal) =>
  new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, milliseconds);
    signal.addEventListener("abort", done);
  });
