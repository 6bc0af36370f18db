/**
 * Which networks llama.cpp is measured beside, and what it computes otherwise: its file has the layers of ChatGLM2
 * (architecture `chatglm`), whatever the model is. A network with as many matrices of the same sizes asks the same
 * bytes and products of it; norms, activations and biases are hardly anything beside them.
 */
import type { ModelCard } from "../models/card.js";

/** For people. */
export const peerNetwork = "ChatGLM2's network (architecture chatglm)";

type Network = Pick<ModelCard, "form" | "attention" | "experts" | "tensors">;

/** The file can hold its matrices: a gated feed-forward part, without experts. */
export function fitsPeer({ form, experts }: Network): boolean {
  return form.ffn !== "gelu" && experts === undefined;
}

/** What the peer computes in place of what the model says, for people; empty for a network that it has. */
export function peerDifferences({ form, attention, tensors: { layer } }: Network): string[] {
  const differences: string[] = [];
  if (form.norm === "layer") differences.push("RMSNorm for LayerNorm");
  if (layer.attentionOutNorm !== undefined) differences.push("no norms behind the branches");
  if (form.residual === "normed") differences.push("plain residuals for DeepNorm's");
  if (form.ffn === "gatedGelu") differences.push("a gate of SiLU for one of GELU");
  if (layer.attentionOutBias !== undefined) differences.push("biases behind queries, keys and values only");
  if (attention.kind === "prefix")
    differences.push("causal prompts for ones that are read in both directions");
  return differences;
}
