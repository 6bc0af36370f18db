/**
 * Newer releases of the transformers package save some fields of config.json under other names. The cards
 * know the names under which the models were published.
 */
import { isObject } from "./json.js";

/**
 * The config under the published names. Without this a RoPE base in "rope_parameters" would be overlooked,
 * and the default would be used in silence.
 */
export function withPublishedNames(config: Record<string, unknown>): Record<string, unknown> {
  const { dtype, rope_parameters: rope } = config;
  const added: Record<string, unknown> = {};
  if (dtype !== undefined) added.torch_dtype = dtype;
  if (isObject(rope)) {
    const { rope_theta, partial_rotary_factor, ...scaling } = rope;
    if (rope_theta !== undefined) added.rope_theta = rope_theta;
    if (partial_rotary_factor !== undefined) added.partial_rotary_factor = partial_rotary_factor;
    // What is left says how positions are scaled, or that they are not.
    if ((scaling.rope_type ?? "default") !== "default") added.rope_scaling = scaling;
  }
  // A field that has its published name as well decides, unless it says nothing.
  const named = Object.entries(config).filter(([field, value]) => value !== null || !(field in added));
  return { ...added, ...Object.fromEntries(named) };
}
