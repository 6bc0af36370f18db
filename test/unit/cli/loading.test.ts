import { createServer } from "node:http";
import { expect, it, onTestFinished } from "vitest";
import { watchLoading } from "../../../cli/loading.js";
import { silent } from "../../../cli/status-line.js";
import { eventually } from "./support.js";

it("tells once why nothing loads when all workers are there, and nothing while some are missing", async () => {
  let looks = 0;
  const server = createServer((_, response) => {
    looks++;
    const workers = looks === 1 ? [{ id: "worker-0" }] : [{ id: "worker-0" }, { id: "worker-1" }];
    const reason = looks === 1 ? "1 of 2 have joined" : "the model does not fit";
    response.end(JSON.stringify({ state: "waiting", reason, stageCount: 2, stages: [], workers }));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => void server.close());
  const { port } = server.address() as { port: number };
  const printed: string[] = [];
  const stop = watchLoading(`http://127.0.0.1:${port}`, { ...silent, print: (line) => printed.push(line) });
  onTestFinished(stop);
  await eventually(() => looks >= 4);
  stop();
  expect(printed).toEqual(["the model does not fit"]);
});
