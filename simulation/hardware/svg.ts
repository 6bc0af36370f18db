/**
 * A timeline of the stages as a picture: one row per stage, one box per step. Prefill, decode and rows that are built
 * again have colours of their own, micro-batches shades of them; what is empty is a bubble.
 */
import type { Simulation } from "./simulate.js";
import type { Segment } from "./timeline.js";

const width = 1_400;
const left = 190;
const rowHeight = 22;
const boxHeight = 16;
const top = 64;
const bottom = 36;
/** Rows of a picture; a cluster may have more workers than one shows. */
const rowsMax = 100;
const ticks = 10;
/** Narrower boxes are drawn this wide, or nobody would see them. */
const narrowest = 0.3;

/** Hue and saturation; steps that follow each other differ in lightness. */
const kinds = {
  decode: { colour: "210, 60%", name: "decode" },
  prefill: { colour: "30, 85%", name: "prefill" },
  mixed: { colour: "150, 45%", name: "prefill and decode" },
  replay: { colour: "350, 70%", name: "rows built again" },
} as const;
const shades = [48, 60, 72] as const;

type Kind = keyof typeof kinds;

/** @param title Of the model. @returns An SVG document. */
export function timelineSvg({ timeline, workers, figures }: Simulation, title: string): string {
  const { originMs, fromMs, toMs } = timeline;
  const shown = workers.slice(0, rowsMax);
  const height = top + shown.length * rowHeight + bottom;
  const x = (ms: number) => left + ((ms - fromMs) / (toMs - fromMs)) * (width - left - 20);
  const parts = [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" font-family="sans-serif" font-size="11">`,
    `<rect width="${width}" height="${height}" fill="white"/>`,
    `<text x="10" y="20" font-size="14">${escaped(title)}: ${figures.tokensPerSecond.toFixed(1)} tokens/s, ` +
      `${(100 * figures.bubbleRatio).toFixed(1)} % bubbles</text>`,
    legend(),
  ];
  for (const [row, { index, id, device }] of shown.entries()) {
    const y = top + row * rowHeight;
    parts.push(
      `<text x="10" y="${y + 12}">${escaped(`${id} ${device.name}`)}</text>`,
      `<rect class="bubble" x="${left}" y="${y}" width="${width - left - 20}" height="${boxHeight}" fill="#f0f0f0"/>`,
    );
    for (const segment of timeline.of(index)) parts.push(box(segment, y, x, fromMs, toMs));
  }
  const axis = height - bottom + 4;
  for (let tick = 0; tick <= ticks; tick++) {
    const ms = fromMs + ((toMs - fromMs) * tick) / ticks;
    parts.push(
      `<text x="${x(ms).toFixed(1)}" y="${axis + 12}" text-anchor="middle">` +
        `${((ms - originMs) / 1_000).toFixed(2)} s</text>`,
    );
  }
  if (timeline.truncated)
    parts.push(`<text x="10" y="${axis + 28}">cut off: too many steps for a picture</text>`);
  parts.push("</svg>");
  return `${parts.join("\n")}\n`;
}

function legend(): string {
  const names = Object.entries(kinds).map(([kind, { colour, name }], index) => {
    const x = 10 + index * 150;
    return (
      `<rect class="${kind}" x="${x}" y="32" width="14" height="14" fill="hsl(${colour}, ${shades[1]}%)"/>` +
      `<text x="${x + 20}" y="43">${name}</text>`
    );
  });
  const x = 10 + names.length * 150;
  return `${names.join("")}<rect x="${x}" y="32" width="14" height="14" fill="#f0f0f0"/><text x="${x + 20}" y="43">bubble</text>`;
}

function box(segment: Segment, y: number, x: (ms: number) => number, fromMs: number, toMs: number): string {
  const from = x(Math.max(segment.startMs, fromMs));
  const wide = Math.max(narrowest, x(Math.min(segment.endMs, toMs)) - from);
  const kind = kindOf(segment);
  const { decodeRows, prefillRows, replayRows, step } = segment;
  return (
    `<rect class="${kind}" x="${from.toFixed(2)}" y="${y}" width="${wide.toFixed(2)}" height="${boxHeight}" ` +
    `fill="hsl(${kinds[kind].colour}, ${shades[step % shades.length]}%)"><title>step ${step}: ` +
    `${decodeRows} decode, ${prefillRows} prefill, ${replayRows} built again, ` +
    `${(segment.endMs - segment.startMs).toFixed(2)} ms</title></rect>`
  );
}

function kindOf({ decodeRows, prefillRows, replayRows }: Segment): Kind {
  if (replayRows > 0) return "replay";
  if (prefillRows === 0) return "decode";
  return decodeRows === 0 ? "prefill" : "mixed";
}

const escaped = (text: string): string =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
