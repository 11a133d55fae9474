// Numbers and times as people read them.

const whole = new Intl.NumberFormat("en");
const moment = new Intl.DateTimeFormat("en-GB", { dateStyle: "short", timeStyle: "medium" });
const ofDay = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });

export const count = (value) => whole.format(Math.round(value));
export const milliseconds = (value) => (value === null ? "–" : `${count(value)} ms`);
export const share = (value) => (value === null ? "–" : value.toFixed(3));
export const percent = (value) => `${(100 * value).toFixed(value < 0.1 && value > 0 ? 1 : 0)} %`;
export const time = (ms) => moment.format(ms);
export const clock = (seconds) => ofDay.format(seconds * 1000);
export const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;

// The part of a version that tells it from others: its last word.
export const shortVersion = (version) => version.split("-").at(-1);
