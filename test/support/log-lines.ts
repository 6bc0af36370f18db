/** A logger whose lines a test can read, made as every process makes its own. */
import { createLogger, type Logger } from "../../common/log.js";

export type LogLine = Record<string, unknown> & { level: number; msg: string };

export class LogLines {
  readonly log: Logger;
  text = "";

  constructor(level = "debug") {
    this.log = createLogger("test", level, {
      write: (line) => {
        this.text += line;
      },
    });
  }

  get all(): LogLine[] {
    return this.text
      .split("\n")
      .filter((line) => line !== "")
      .map((line) => JSON.parse(line) as LogLine);
  }

  /** Lines with this message. */
  of(msg: string): LogLine[] {
    return this.all.filter((line) => line.msg === msg);
  }
}
