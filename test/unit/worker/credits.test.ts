import { expect, test } from "vitest";
import { ReceiveCredits, SendCredits } from "../../../proto/link/credits.js";

test("a sender without credits waits until some come back", () => {
  const credits = new SendCredits(2);
  expect([credits.take(), credits.take(), credits.take()]).toEqual([true, true, false]);
  credits.give(1);
  expect([credits.take(), credits.take()]).toEqual([true, false]);
});

test("more credits than were taken are refused", () => {
  const credits = new SendCredits(2);
  credits.take();
  expect(() => credits.give(2)).toThrow("receiver returned 2 credits with 1 of 2 taken");
});

test("a receiver saves credits up and returns a quarter at once", () => {
  const credits = new ReceiveCredits(8);
  expect([credits.consumed(), credits.consumed(), credits.consumed()]).toEqual([0, 2, 0]);
});

test("a receiver with one credit returns it at once", () => {
  expect(new ReceiveCredits(1).consumed()).toBe(1);
});

test("a frame beyond the credits is refused", () => {
  const credits = new ReceiveCredits(1);
  credits.arrived();
  expect(() => credits.arrived()).toThrow("sender exceeded its 1 credits");
  credits.consumed();
  credits.arrived();
});

test("sender and receiver together never stop, whatever the number of credits", () => {
  for (let granted = 1; granted <= 9; granted++) {
    const sender = new SendCredits(granted);
    const receiver = new ReceiveCredits(granted);
    for (let frame = 0; frame < 40; frame++) {
      expect(sender.take()).toBe(true);
      receiver.arrived();
      const back = receiver.consumed();
      if (back > 0) sender.give(back);
    }
  }
});
