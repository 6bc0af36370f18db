/** Who is answered first when there is more to do than the cluster can take on: and all get their own tokens. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { demoModel, memoryFor, TestCluster } from "../support/cluster.js";

const stages = 2;
/** Of the small cluster: about four sequences of these tests at a time. */
const fewBlocks = 30;

interface Asked {
  body: Record<string, unknown>;
  headers: Record<string, string>;
}

describe("a cluster that cannot run all at once", () => {
  let roomy: TestCluster;
  let tight: TestCluster;
  beforeAll(async () => {
    roomy = await TestCluster.start({ model: demoModel, stages });
    const memory = memoryFor(await roomy.view(), fewBlocks);
    tight = await TestCluster.start({ model: demoModel, stages, memory });
  });
  afterAll(async () => {
    await roomy?.stop();
    await tight?.stop();
  });

  /** Each with a prompt of its own. */
  const requests = (count: number, first: number, headers: Record<string, string>): Asked[] =>
    Array.from({ length: count }, (_, index) => {
      const n = first + index;
      const prompt = Array.from({ length: 20 }, (_, i) => 300 + ((n * 31 + i * 7) % 100));
      const body = { prompt, max_tokens: 80, ignore_eos: true, temperature: n % 2, seed: n };
      return { body, headers };
    });

  /** Their choices, and in `order` the number of each as it is answered. */
  function ask(cluster: TestCluster, asked: Asked[], order: number[] = []): Promise<unknown[]> {
    return Promise.all(
      asked.map(async ({ body, headers }) => {
        const answer = await cluster.post("/v1/completions", body, headers);
        expect(answer.status, JSON.stringify(answer.body)).toBe(200);
        order.push(body.seed as number);
        return answer.body.choices;
      }),
    );
  }

  const nothingRuns = () =>
    tight.until("nothing to run", ({ sequences, blocks }) => sequences.running === 0 && blocks.used === 0);

  it("answers interactive requests before a flood of batch ones that came first", async () => {
    const flood = requests(40, 0, { "x-glm-class": "batch" });
    const talk = requests(5, 100, {});
    const order: number[] = [];
    const flooded = ask(tight, flood, order);
    await tight.until(
      "the flood to wait",
      ({ classes }) => classes.batch.running > 0 && classes.batch.waiting > 20,
    );
    const before = order.length;
    const talked = await ask(tight, talk, order);
    const during = order.length - before - talk.length;
    const { classes } = await tight.view();
    expect(classes.interactive).toEqual({ running: 0, waiting: 0 });
    expect(classes.batch.waiting).toBeGreaterThan(0);
    // What ran beside them may have ended, and little more.
    expect(during).toBeLessThan(flood.length / 4);
    const answers = [...(await flooded), ...talked];
    expect(answers).toEqual(await ask(roomy, [...flood, ...talk]));
    await nothingRuns();
  });

  it("lets a tenant with few requests pass one with many", async () => {
    const many = requests(30, 200, { "x-glm-tenant": "many" });
    const few = requests(4, 300, { "x-glm-tenant": "few" });
    const order: number[] = [];
    const asked = ask(tight, many, order);
    await tight.until("them to wait", ({ classes }) => classes.interactive.waiting > 20);
    const answers = await ask(tight, few, order);
    // In turns: as many of the others' as of its own, and those that ran before.
    expect(order.length - few.length).toBeLessThan(many.length / 2 + 1);
    expect([...(await asked), ...answers]).toEqual(await ask(roomy, [...many, ...few]));
    await nothingRuns();
  });

  it("shares what was computed for a prompt within a tenant only", async () => {
    const prompt = Array.from({ length: 100 }, (_, i) => 300 + ((i * 13) % 100));
    const cached = async (headers: Record<string, string>) => {
      const { body } = await tight.post(
        "/v1/completions",
        { prompt, max_tokens: 1, temperature: 0 },
        headers,
      );
      return [body.usage.prompt_tokens_details.cached_tokens, body.choices[0].text];
    };
    const [first, text] = await cached({ "x-glm-tenant": "a" });
    expect(first).toBe(0);
    expect(await cached({ "x-glm-tenant": "a" })).toEqual([96, text]);
    expect(await cached({ "x-glm-tenant": "b" })).toEqual([0, text]);
    expect(await cached({})).toEqual([0, text]);
    expect(await cached({ "x-glm-tenant": "a", "x-glm-class": "batch" })).toEqual([96, text]);
  });

  it("ends what is not answered by its deadline, where it runs and where it waits", async () => {
    // Too hot to repeat itself, so that nothing is drafted and no machine is done in time.
    const long = { prompt: [301, 302], max_tokens: 400, n: 4, ignore_eos: true, temperature: 2 };
    const asked = Array.from({ length: 8 }, () =>
      tight.post("/v1/completions", long, { "x-request-timeout-ms": "250" }),
    );
    for (const { status, body, headers } of await Promise.all(asked)) {
      expect(status).toBe(408);
      expect(body.error).toMatchObject({ type: "timeout_error", code: "deadline_exceeded" });
      expect(headers.get("x-should-retry")).toBe("false");
    }
    await nothingRuns();
    const short = { ...long, n: 1, max_tokens: 4 };
    expect((await tight.post("/v1/completions", short, { "x-request-timeout-ms": "60000" })).status).toBe(
      200,
    );
  });

  it("ends a stream at its deadline with an error as its last event", async () => {
    const long = {
      prompt: [301, 302],
      max_tokens: 900,
      n: 32,
      ignore_eos: true,
      temperature: 2,
      stream: true,
    };
    // On a machine that is busy the first token may take longer than the deadline.
    let response: Response | null = null;
    for (let timeoutMs = 300; response?.status !== 200; timeoutMs *= 2) {
      expect(timeoutMs).toBeLessThan(5_000);
      response = await fetch(`${roomy.url}/v1/completions`, {
        method: "POST",
        headers: { "content-type": "application/json", "x-request-timeout-ms": `${timeoutMs}` },
        body: JSON.stringify(long),
      });
      if (response.status !== 200) expect(response.status).toBe(408);
    }
    const events = (await response.text()).trim().split("\n\n");
    expect(events.length).toBeGreaterThan(3);
    expect(JSON.parse(events.at(-2)!.slice("data: ".length)).error.code).toBe("deadline_exceeded");
    expect(events.at(-1)).toBe("data: [DONE]");
    await roomy.until(
      "nothing to run",
      ({ sequences, blocks }) => sequences.running === 0 && blocks.used === 0,
    );
  });
});
