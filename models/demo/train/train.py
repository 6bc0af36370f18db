"""Trains the demo model.

    python train.py --out DIR [--resume] [--steps N]

Checkpoints, the log and the task weights go to DIR, outside the repository. A
resumed run continues exactly: every batch is drawn from a generator seeded
with the step number, and the schedule counts steps, not minutes. Memory that
the allocator keeps is faster than memory asked for again at every step: run with
    MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=17179869184
"""

import argparse
import json
import os
import random
import signal
import time

import torch
import torch.nn.functional as F

import batches
import model
import tasks
import tokenizer

SEED = 20
# About 2200 tokens and 95 answers per step. Of 20 steps 16 see short rows, 3 middle, 1 long.
SHORT_ROWS = 28
MIDDLE_ROWS = 9
LONG_ROWS = 2
WARM_UP = 200
FLAT = 0.45
FINAL_RATE = 0.02
CLIP = 1.0
# Fake quantization of the linears in the last part, so that INT4 rounding costs little.
INT4_FROM = 0.83
# A task's share is (floor + its error rate), so a task that is learned makes room.
WEIGHT_FLOOR = 0.22
ERROR_MEMORY = 0.995


def learning_rate_factor(step, steps):
    """Warm-up, a flat part, then a straight line down.

    Unlike a cosine, the flat part does not depend on `steps`, so a run on a busy
    machine can be resumed with a shorter schedule as long as it is still flat.
    """
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    flat = FLAT * steps
    if step < flat:
        return 1.0
    return 1 - (1 - FINAL_RATE) * (step - flat) / max(1, steps - flat)


class Muon:
    """Momentum whose update is orthogonalized, for the hidden matrices.

    Five Newton-Schulz steps bring the singular values of the momentum near 1 (Jordan
    et al., 2024). Matrices of equal shape are handled in one batched product.
    """

    def __init__(self, params, rate, momentum=0.95, decay=0.05):
        self.rate, self.momentum, self.decay = rate, momentum, decay
        self.by_shape = {}
        for p in params:
            self.by_shape.setdefault(tuple(p.shape), []).append(p)
        self.velocity = {s: torch.zeros(len(ps), *s) for s, ps in self.by_shape.items()}

    @staticmethod
    def orthogonalize(g):
        a, b, c = 3.4445, -4.7750, 2.0315
        tall = g.shape[1] > g.shape[2]
        x = g.transpose(1, 2) if tall else g
        x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
        for _ in range(5):
            s = x @ x.transpose(1, 2)
            x = a * x + (b * s + c * s @ s) @ x
        return x.transpose(1, 2) if tall else x

    @torch.no_grad()
    def step(self, factor):
        for shape, params in self.by_shape.items():
            g = torch.stack([p.grad for p in params])
            v = self.velocity[shape]
            v.lerp_(g, 1 - self.momentum)
            update = self.orthogonalize(g.lerp(v, self.momentum))
            rate = self.rate * factor
            scale = rate * max(1, shape[0] / shape[1]) ** 0.5
            for p, u in zip(params, update):
                p.mul_(1 - rate * self.decay).sub_(u, alpha=scale)

    def state_dict(self):
        return {"velocity": self.velocity}

    def load_state_dict(self, state):
        self.velocity = state["velocity"]


class Trainer:
    def __init__(self, args):
        self.args = args
        self.tok = tokenizer.build()
        start = model.initial_weights(self.tok.padded_vocab, SEED)
        self.weights = {n: w.requires_grad_() for n, w in start.items()}
        muon = [w for n, w in self.weights.items() if model.is_linear(n)] if args.muon else []
        rest = [w for n, w in self.weights.items() if not (args.muon and model.is_linear(n))]
        flat = [w for w in rest if w.dim() == 1]
        matrices = [w for w in rest if w.dim() == 2]
        self.muon = Muon(muon, args.muon) if muon else None
        self.adam = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.05}, {"params": flat, "weight_decay": 0.0}],
            lr=args.rate, betas=(0.9, 0.98), eps=1e-9,
        )
        self.errors = {t: 1.0 for t in tasks.TASKS}
        self.step, self.seconds = 0, 0.0
        self.cos, self.sin = model.rope_table(batches.LONG)
        self.validation = [
            [(t, *qa)] for t in tasks.TASKS for qa in tasks.questions(t, SEED, "val", 60)
        ]

    # ---- one step

    def task_weights(self):
        return {t: WEIGHT_FLOOR + e for t, e in self.errors.items()}

    def forward(self, weights, batch):
        cos, sin = self.cos[batch.positions], self.sin[batch.positions]
        h = model.hidden_states(weights, batch.ids, cos, sin, batch.mask, batch.index)
        return F.linear(h, weights[model.HEAD])

    def train_step(self):
        rng = random.Random(f"{SEED}/{self.step}")
        share = self.task_weights()
        if self.step % 20 == 19:
            batch = batches.long_batch(self.tok, rng, share, LONG_ROWS, batches.LONG)
        elif self.step % 5 == 4:
            batch = batches.long_batch(self.tok, rng, share, MIDDLE_ROWS, batches.MIDDLE)
        else:
            batch = batches.short_batch(self.tok, rng, share, SHORT_ROWS)
        int4 = self.step >= INT4_FROM * self.args.steps
        weights = model.fake_quantized(self.weights) if int4 else self.weights
        logits = self.forward(weights, batch)
        loss = F.cross_entropy(logits, batch.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), CLIP)
        factor = learning_rate_factor(self.step, self.args.steps)
        for group in self.adam.param_groups:
            group["lr"] = self.args.rate * factor
        self.adam.step()
        if self.muon:
            self.muon.step(factor)
        for w in self.weights.values():
            w.grad = None
        for task, right in zip(batch.tasks, batch.exact(logits.detach())):
            self.errors[task] = ERROR_MEMORY * self.errors[task] + (1 - ERROR_MEMORY) * (not right)
        self.step += 1
        return loss.item(), len(batch.tasks)

    # ---- measuring, saving

    @torch.no_grad()
    def validate(self):
        right, total = dict.fromkeys(tasks.TASKS, 0), dict.fromkeys(tasks.TASKS, 0)
        for batch, part in batches.question_batches(self.tok, self.validation):
            for i, ok in zip(part, batch.exact(self.forward(self.weights, batch))):
                task = self.validation[i][-1][0]
                right[task] += int(ok)
                total[task] += 1
        return {t: 100 * right[t] / total[t] for t in tasks.TASKS}

    def save(self):
        path = os.path.join(self.args.out, "checkpoint.pt")
        state = {
            "step": self.step, "seconds": self.seconds, "errors": self.errors,
            "weights": {n: w.detach() for n, w in self.weights.items()},
            "adam": self.adam.state_dict(),
            "muon": self.muon and self.muon.state_dict(),
            "settings": {k: getattr(self.args, k) for k in ("rate", "muon")},
        }
        torch.save(state, path + ".new")
        os.replace(path + ".new", path)  # a kill in between leaves the old one whole

    def load(self):
        state = torch.load(os.path.join(self.args.out, "checkpoint.pt"), weights_only=True)
        for k, v in state["settings"].items():
            if getattr(self.args, k) != v:
                raise SystemExit(f"the checkpoint was trained with {k}={v}: give the same")
        self.step, self.seconds, self.errors = state["step"], state["seconds"], state["errors"]
        with torch.no_grad():
            for n, w in self.weights.items():
                w.copy_(state["weights"][n])
        self.adam.load_state_dict(state["adam"])
        if self.muon:
            self.muon.load_state_dict(state["muon"])

    def run(self):
        a = self.args
        last, losses, answers = time.time(), [], 0
        stop = min(a.steps, a.stop or a.steps)
        # A polite kill ends after the current step with a checkpoint.
        asked = []
        signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
        while self.step < stop and not asked:
            loss, n = self.train_step()
            losses.append(loss)
            answers += n
            if self.step % 50 == 0 or self.step == stop:
                now = time.time()
                self.seconds += now - last
                left = (a.steps - self.step) * (now - last) / len(losses)
                print(f"step {self.step}/{a.steps} loss {sum(losses) / len(losses):.4f} "
                      f"{answers / (now - last):.0f} answers/s, {self.seconds / 60:.1f} min, "
                      f"left {left / 60:.1f} min", flush=True)
                last, losses, answers = now, [], 0
            if self.step % a.save_every == 0:
                self.save()
            if self.step % a.validate_every == 0 or self.step == stop:
                scores = self.validate()
                line = " ".join(f"{t}={v:.0f}" for t, v in scores.items())
                print(f"  validation {sum(scores.values()) / len(scores):.1f}: {line}", flush=True)
        self.save()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--out", required=True)
    p.add_argument("--resume", action="store_true")
    p.add_argument("--steps", type=int, default=6000, help="length of the schedule")
    p.add_argument("--stop", type=int, help="stop after this step, for a test")
    p.add_argument("--rate", type=float, default=3e-3, help="peak AdamW rate")
    p.add_argument("--muon", type=float, default=0.02, help="peak Muon rate of the linears; 0: AdamW for all")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--save-every", type=int, default=250)
    p.add_argument("--validate-every", type=int, default=250)
    p.add_argument("--no-compile", action="store_true", help="slower by 40 %% but without a C++ compiler")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    os.makedirs(args.out, exist_ok=True)
    if not args.no_compile:
        model.compile_parts()
    trainer = Trainer(args)
    print(json.dumps({"vocabulary": trainer.tok.vocab,
                      "parameters": sum(w.numel() for w in trainer.weights.values()),
                      "tasks": tasks.TASKS, **vars(args)}), flush=True)
    if args.resume:
        trainer.load()
    trainer.run()


if __name__ == "__main__":
    main()
