/** The other process of hop.ts: sends every step back as it came. */
import { dialLink, serveLink } from "./hop.js";

const upstream = dialLink(process.argv[2]!, 1);
const { address, downstream } = await serveLink(1);
process.on("disconnect", () => process.exit(0));
process.send!(address);
await upstream.open();
for (let step = await upstream.next(); step !== null; step = await upstream.next()) {
  await downstream.send({ step });
  upstream.consumed();
}
