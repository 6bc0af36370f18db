/** One logger per process, on standard error: standard output belongs to what people asked for. */
import { destination, type Logger, pino } from "pino";

export type { Logger };

export function createLogger(component: string, level = process.env["GLM_RELAY_LOG"] ?? "info"): Logger {
  return pino(
    { level, base: { component, pid: process.pid }, timestamp: pino.stdTimeFunctions.isoTime },
    destination({ dest: 2, sync: true }),
  );
}
