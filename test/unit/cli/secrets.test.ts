import { describe, expect, it } from "vitest";
import { authorization, clientKey, readSecretFile, redisWithPassword } from "../../../cli/secrets.js";
import { redisOptions } from "../../../coordinator/queue/redis.js";
import { scratchFile } from "./support.js";

describe("the password of a Redis", () => {
  it.each(["simple", "with space", "%41:@/?#[]&=+", "§ü€", "'\"\\", " edge "])(
    "%j arrives as it is",
    (password) => {
      const file = scratchFile("password", `${password}\n`);
      const url = redisWithPassword("redis://user:old@[::1]:6379/2", file);
      expect(redisOptions(url, false)).toMatchObject({
        host: "::1",
        port: 6379,
        db: 2,
        username: "user",
        password,
      });
      expect(redisOptions(redisWithPassword("redis://h:1", file), false)).toMatchObject({
        host: "h",
        password,
      });
    },
  );

  it("stays what it was without a file", () => {
    expect(redisWithPassword("redis://u:p@h:1", undefined)).toBe("redis://u:p@h:1");
  });
});

describe("a file with a secret", () => {
  it.each(["", "\n", "one\ntwo\n", "x".repeat(5_000)])(
    "%# is refused, naming option and file, never its content",
    (text) => {
      const file = scratchFile("secret", text);
      expect(() => readSecretFile(file, "--o <file>")).toThrow(
        `option '--o <file>' argument '${file}' is invalid.`,
      );
      expect(() => readSecretFile(file, "--o <file>")).not.toThrow(/two|xxx/);
    },
  );

  it("that is not there is refused", () => {
    expect(() => readSecretFile("/nowhere/secret", "--o <file>")).toThrow(/cannot be read: ENOENT/);
  });

  it("may end in CR and LF", () => {
    expect(readSecretFile(scratchFile("secret", "a b\r\n"), "--o")).toBe("a b");
  });
});

describe("the key that a command sends", () => {
  it("is that of the flag, of the file in the environment, ours, OpenAI's, or none", () => {
    const apiKeyFile = scratchFile("one", "of-flag\n");
    const file = scratchFile("two", "of-file\n");
    const all = { GLM_RELAY_API_KEY_FILE: file, GLM_RELAY_API_KEY: "ours", OPENAI_API_KEY: "theirs" };
    expect(clientKey({ apiKeyFile }, all)).toBe("of-flag");
    expect(clientKey({}, all)).toBe("of-file");
    expect(clientKey({}, { ...all, GLM_RELAY_API_KEY_FILE: "" })).toBe("ours");
    expect(clientKey({}, { GLM_RELAY_API_KEY: "", OPENAI_API_KEY: "theirs" })).toBe("theirs");
    expect(clientKey({}, {})).toBeNull();
    expect([authorization("k"), authorization(null)]).toEqual([{ authorization: "Bearer k" }, {}]);
  });

  it("is refused before it is sent when it can be none", () => {
    expect(() => clientKey({}, { GLM_RELAY_API_KEY: "a b" })).toThrow(/GLM_RELAY_API_KEY holds no API key/);
    expect(() => clientKey({ apiKeyFile: scratchFile("k", "a\u00e9\n") }, {})).toThrow(/holds no API key/);
    expect(() => clientKey({}, { OPENAI_API_KEY: "a\nb" })).toThrow(/^((?!a\nb).)*$/);
  });
});
