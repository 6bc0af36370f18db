/** What is said of the peer, held against the published models. */
import { describe, expect, it } from "vitest";
import { fitsPeer, peerDifferences } from "../../../bench/peer-network.js";
import { published, publishedNames } from "../../../models/published.js";

describe("the peer's network", () => {
  it("holds the matrices of models with a gate and without experts", () => {
    expect(publishedNames.filter((name) => !fitsPeer(published[name].card))).toEqual([
      "glm-10b",
      "chatglm-6b",
      "glm-4.5-air",
      "glm-4.5",
    ]);
  });

  it("is that of ChatGLM2, ChatGLM3 and GLM-4-9B", () => {
    for (const name of ["chatglm2-6b", "chatglm3-6b", "glm-4-9b", "glm-4-9b-chat-1m"] as const)
      expect(peerDifferences(published[name].card)).toEqual([]);
  });

  it("is not that of GLM-130B and of GLM-4-0414, and says where", () => {
    expect(peerDifferences(published["glm-130b"].card)).toEqual([
      "RMSNorm for LayerNorm",
      "plain residuals for DeepNorm's",
      "a gate of SiLU for one of GELU",
      "biases behind queries, keys and values only",
      "causal prompts for ones that are read in both directions",
    ]);
    expect(peerDifferences(published["glm-4-9b-0414"].card)).toEqual(["no norms behind the branches"]);
  });
});
