/** The process of a worker that computes nothing: `node null/worker.js COORDINATOR ID [BASE_MS ROW_MS]`. */
import { exitWithParent } from "../../cli/parent.js";
import { createLogger } from "../../common/log.js";
import { startWorker } from "../../worker/worker.js";
import { nullEngine } from "./engine.js";

/** Offered on paper: nothing of it is used. */
const memoryBytes = 64 * 2 ** 30;

exitWithParent();
const [coordinator, id, baseMs = "0", rowMs = "0"] = process.argv.slice(2);
if (coordinator === undefined || id === undefined) throw new Error("expected COORDINATOR ID");
const worker = await startWorker(
  { id, coordinator, listen: "127.0.0.1:0", memoryBytes, threads: 1, log: createLogger("worker") },
  nullEngine({ baseMs: Number(baseMs), rowMs: Number(rowMs) }),
);
process.on("SIGTERM", () => void worker.close("received SIGTERM"));
const { code } = await worker.closed;
process.exit(code);
