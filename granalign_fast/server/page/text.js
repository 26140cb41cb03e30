// Numbers as people read them.

// 75.25 is 1:15.2; hours are shown where there are some.
export function clock(seconds, digits = 1) {
  const scale = 10 ** digits;
  // Rounded first: 59.96 is 1:00.0, not 0:60.0.
  const whole = Math.floor(seconds * scale + 1e-6);
  const total = Math.floor(whole / scale);
  const pad = (number) => String(number).padStart(2, "0");
  const [hours, minutes, rest] = [Math.floor(total / 3600), Math.floor(total / 60) % 60, total % 60];
  const text = hours ? `${hours}:${pad(minutes)}:${pad(rest)}` : `${minutes}:${pad(rest)}`;
  return digits ? `${text}.${String(whole % scale).padStart(digits, "0")}` : text;
}

// The start and the end of a stretch. A short one has more decimals, so that the two differ.
export function clocks(start, end, digits = 1) {
  while (digits < 3 && (end - start) * 10 ** digits < 1 - 1e-6) digits += 1;
  return [clock(start, digits), clock(end, digits)];
}

// A length is not shown as 0 unless it is.
export function length(seconds, digits = 1) {
  return seconds > 0 ? clocks(0, seconds, digits)[1] : clock(0, digits);
}

export function counted(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

export function bytes(count) {
  const units = ["bytes", "KB", "MB", "GB", "TB"];
  const power = count < 1000 ? 0 : Math.min(Math.floor(Math.log10(count) / 3), units.length - 1);
  return `${(count / 1000 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
}

export function duration(seconds) {
  return seconds < 1 ? `${Math.round(1000 * seconds)} ms` : `${seconds.toFixed(1)} s`;
}
