/**
 * Mistakes that a coordinator could have, put into the running code one at a time, to see that the fault simulator
 * finds them. Each changes one method and gives it back.
 */
import { Core } from "../../coordinator/core.js";
import { Deadlines } from "../../coordinator/deadlines.js";
import { Intake } from "../../coordinator/intake.js";
import { PipelinePlan } from "../../coordinator/membership/pipeline-plan.js";
import { DecodeRows } from "../../coordinator/pipeline/decode-rows.js";
import { Pipeline } from "../../coordinator/pipeline/pipeline.js";
import { RedisLedger } from "../../coordinator/queue/ledger.js";
import { LedgerKeys } from "../../coordinator/queue/ledger-keys.js";
import { BlockPool } from "../../coordinator/scheduler/block-pool.js";
import { Scheduler } from "../../coordinator/scheduler/scheduler.js";
import { SequenceBlocks } from "../../coordinator/scheduler/sequence-blocks.js";
import { StepDrafts } from "../../coordinator/scheduler/step-drafts.js";
import { WaitingSet } from "../../coordinator/scheduler/waiting-set.js";
import { Service } from "../../coordinator/service.js";
import { Serving } from "../../coordinator/serving.js";

export interface PlantedBug {
  name: string;
  /** @returns Takes it out again. */
  plant(): () => void;
}

type Method = (this: any, ...args: any[]) => any;

/** Puts `make(method)` in place of a method. */
function wrap(type: { prototype: any }, name: string, make: (original: Method) => Method): () => void {
  const original = type.prototype[name] as Method;
  if (typeof original !== "function") throw new Error(`there is no method ${name}`);
  type.prototype[name] = make(original);
  return () => {
    type.prototype[name] = original;
  };
}

function both(...undo: (() => void)[]): () => void {
  return () => {
    for (const step of undo) step();
  };
}

/** Headers never say anything in this field. */
function withoutInHeaders(field: "copies" | "ended"): () => void {
  return wrap(
    Pipeline,
    "submit",
    (submit) =>
      function (step, ...rest) {
        submit.call(this, { ...step, [field]: [] }, ...rest);
      },
  );
}

export const plantedBugs: readonly PlantedBug[] = [
  {
    name: "a draft counts as accepted without a check",
    plant: () => {
      const drafted = new WeakSet<object>();
      return both(
        wrap(
          StepDrafts,
          "plan",
          (plan) =>
            function (step) {
              const planned = plan.call(this, step);
              for (const { sequence } of planned.drafts) drafted.add(sequence);
              return planned;
            },
        ),
        wrap(
          StepDrafts,
          "settle",
          (settle) =>
            function (sequence, token) {
              const held = settle.call(this, sequence, token);
              return held || drafted.delete(sequence);
            },
        ),
      );
    },
  },
  {
    name: "the valid length is one too small",
    plant: () =>
      wrap(
        DecodeRows,
        "fill",
        (fill) =>
          function (rows) {
            const message = fill.call(this, rows);
            if (message !== null && message.validLength > 20) message.validLength--;
            return message;
          },
      ),
  },
  {
    name: "a step counts as finished when its only request is cancelled",
    plant: () => {
      const alone = new WeakMap<object, Map<number, number>>();
      return both(
        wrap(
          Scheduler,
          "next",
          (next) =>
            function () {
              const step = next.call(this);
              if (step === null || step.rows.length !== 1 || step.slice !== null) return step;
              if (!alone.has(this)) alone.set(this, new Map());
              alone.get(this)!.set(step.rows[0].sequence, step.step);
              return step;
            },
        ),
        wrap(
          Scheduler,
          "complete",
          (complete) =>
            function (step, measured) {
              const steps = alone.get(this);
              for (const [sequence, own] of steps ?? []) if (own === step) steps!.delete(sequence);
              if (!this.early?.has(step)) complete.call(this, step, measured);
            },
        ),
        wrap(
          Scheduler,
          "remove",
          (remove) =>
            function (sequence) {
              remove.call(this, sequence);
              const step = alone.get(this)?.get(sequence);
              if (step === undefined) return;
              this.complete(step);
              this.early ??= new Set();
              this.early.add(step);
            },
        ),
      );
    },
  },
  {
    name: "the result of an old epoch is accepted",
    plant: () =>
      wrap(
        Pipeline,
        "complete",
        (complete) =>
          function (result) {
            return complete.call(this, { ...result, epoch: this.epoch });
          },
      ),
  },
  {
    name: "a token is delivered twice after a recovery",
    plant: () =>
      both(
        wrap(
          Service,
          "recovered",
          (recovered) =>
            function (...args) {
              this.again = true;
              recovered.apply(this, args);
            },
        ),
        wrap(
          Service,
          "emit",
          (emit) =>
            function (id, event) {
              emit.call(this, id, event);
              if (event.type !== "tokens" || this.again !== true) return;
              this.again = false;
              emit.call(this, id, event);
            },
        ),
      ),
  },
  {
    name: "a ledger record is deleted with the first token",
    plant: () =>
      wrap(
        RedisLedger,
        "decided",
        (decided) =>
          function (id, choice, tokens) {
            decided.call(this, id, choice, tokens);
            this.ended(id);
          },
      ),
  },
  {
    name: "a preempted sequence loses its last token",
    plant: () =>
      wrap(
        WaitingSet,
        "putBack",
        (putBack) =>
          function (id, tab, order, what) {
            const lost = what.tokens.length > what.promptLength ? what.tokens.slice(0, -1) : what.tokens;
            return putBack.call(this, id, tab, order, { ...what, tokens: lost });
          },
      ),
  },
  {
    name: "a line of a batch is answered twice",
    plant: () =>
      wrap(
        Service,
        "emit",
        (emit) =>
          function (id, event) {
            emit.call(this, id, event);
            if (event.type === "finish" && id.startsWith("line-")) emit.call(this, id, event);
          },
      ),
  },
  {
    name: "the epoch is not raised after a loss",
    plant: () =>
      wrap(
        PipelinePlan,
        "form",
        (form) =>
          function (chosen, next) {
            form.call(this, chosen, () => {
              this.first ??= next();
              return this.first;
            });
          },
      ),
  },
  {
    name: "a block of a cancelled request is not given back",
    plant: () => {
      let cancelled = 0;
      return both(
        wrap(
          Core,
          "cancel",
          (cancel) =>
            function (id) {
              cancelled++;
              cancel.call(this, id);
            },
        ),
        wrap(
          BlockPool,
          "release",
          (release) =>
            function (blocks, unused) {
              const isLost = cancelled > 0 && blocks.length > 0;
              if (isLost) cancelled--;
              release.call(this, isLost ? blocks.slice(1) : blocks, unused);
            },
        ),
      );
    },
  },
  {
    name: "the copy of a shared prompt's last block is left out",
    plant: () => withoutInHeaders("copies"),
  },
  {
    name: "workers are not told which sequences have ended",
    plant: () => withoutInHeaders("ended"),
  },
  {
    name: "an interrupted sequence is built without its last token",
    plant: () =>
      wrap(
        Serving,
        "submit",
        (submit) =>
          function (choice) {
            const last = choice.generated.pop();
            submit.call(this, choice);
            if (last !== undefined) choice.generated.push(last);
          },
      ),
  },
  {
    name: "a block is shared before its last slot is written",
    plant: () =>
      wrap(
        SequenceBlocks,
        "makeKnown",
        (makeKnown) =>
          function (sequence) {
            sequence.computed++;
            try {
              if (sequence.computed <= sequence.tokens.length) makeKnown.call(this, sequence);
            } finally {
              sequence.computed--;
            }
          },
      ),
  },
  {
    name: "choices of a request share their tokens in the ledger",
    plant: () =>
      wrap(
        LedgerKeys,
        "tokens",
        (tokens) =>
          function (id) {
            return tokens.call(this, id, 0);
          },
      ),
  },
  {
    name: "the answer of a request whose client is gone is not kept",
    plant: () => wrap(Service, "keepAnswer", () => () => {}),
  },
  {
    name: "nobody looks at deadlines",
    plant: () => wrap(Deadlines, "watch", () => () => {}),
  },
  {
    name: "nobody looks at the queue limit",
    plant: () => wrap(Intake, "require", () => () => {}),
  },
  {
    name: "a client that left is not forgotten",
    plant: () => wrap(Core, "cancel", () => () => {}),
  },
];
