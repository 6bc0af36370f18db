// Asks one question and checks the answer: `helm test`. A model that still loads is waited for, ASK_SECONDS at most.
import { readFileSync } from "node:fs";

const { ASK_URL, ASK_QUESTION, ASK_EXPECT, ASK_SECONDS, ASK_KEYS_FILE } = process.env;
const lines = ASK_KEYS_FILE ? readFileSync(ASK_KEYS_FILE, "utf8").split("\n") : [];
const key = lines.map((line) => line.trim()).find((line) => line !== "" && !line.startsWith("#"));
const deadlineMs = performance.now() + Number(ASK_SECONDS) * 1000;

async function ask() {
  const response = await fetch(`${ASK_URL}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) },
    body: JSON.stringify({
      messages: [{ role: "user", content: ASK_QUESTION }],
      temperature: 0,
      max_tokens: 64,
    }),
  });
  const body = await response.text();
  if (response.ok) return { answer: JSON.parse(body).choices[0].message.content };
  return { failure: `${response.status} ${body}`, retry: response.status === 503 };
}

for (;;) {
  const { answer, failure, retry } = await ask().catch((error) => ({ failure: String(error), retry: true }));
  if (answer !== undefined) {
    const right = ASK_EXPECT ? new RegExp(ASK_EXPECT).test(answer) : answer.trim() !== "";
    console.log(`> ${ASK_QUESTION}\n${answer}`);
    if (!right) console.log(`expected an answer that matches ${ASK_EXPECT || "anything"}`);
    process.exit(right ? 0 : 1);
  }
  console.log(failure);
  if (!retry || performance.now() > deadlineMs) process.exit(1);
  await new Promise((resolve) => setTimeout(resolve, 2_000));
}
