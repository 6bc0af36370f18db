/** The demo model's questions, and how its answers are judged. */
import { readFileSync } from "node:fs";
import type { ChatMessage } from "./api.js";
import { CommandError } from "./errors.js";

export interface Question {
  task: string;
  messages: ChatMessage[];
  /** The one right answer. */
  answer: string;
}

export type Verdict =
  | { kind: "right"; question: Question }
  | { kind: "wrong"; question: Question; text: string }
  /** The request itself failed: nothing can be said about the model. */
  | { kind: "failed"; question: Question; reason: string };

/** @throws CommandError naming the file, and the line where it is not what it should be. */
export function readQuestions(file: string): Question[] {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    throw new CommandError(`cannot read the demo questions: ${(error as Error).message}`);
  }
  const questions = text
    .split("\n")
    .map((line, index) => ({ line, number: index + 1 }))
    .filter(({ line }) => line.trim() !== "")
    .map(({ line, number }) => parseQuestion(line, `${file}:${number}`));
  if (questions.length === 0) throw new CommandError(`${file} holds no questions`);
  return questions;
}

function parseQuestion(line: string, where: string): Question {
  let question: Partial<Question>;
  try {
    question = JSON.parse(line) as Partial<Question>;
  } catch (error) {
    throw new CommandError(`${where} is not JSON: ${(error as Error).message}`);
  }
  const { task, messages, answer } = question;
  if (typeof task === "string" && Array.isArray(messages) && typeof answer === "string") {
    return { task, messages, answer };
  }
  throw new CommandError(`${where}: expected an object with task, messages and answer`);
}

/** Equal but for white space around it. */
export function judge(question: Question, text: string): Verdict {
  return text.trim() === question.answer.trim()
    ? { kind: "right", question }
    : { kind: "wrong", question, text };
}

/** Rows of task, right, wrong, failed in the order in which the tasks first appear, with a last row of sums. */
export function tally(verdicts: Verdict[]): string[][] {
  const tasks = [...new Set(verdicts.map((verdict) => verdict.question.task))];
  const row = (name: string, of: Verdict[]) => [
    name,
    ...(["right", "wrong", "failed"] as const).map((kind) =>
      String(of.filter((verdict) => verdict.kind === kind).length),
    ),
  ];
  return [
    ...tasks.map((task) =>
      row(
        task,
        verdicts.filter((verdict) => verdict.question.task === task),
      ),
    ),
    row("all", verdicts),
  ];
}
