/** Names that a chat template knows without being told, or that the conversation itself has. */
export const reservedVariables: ReadonlySet<string> = new Set([
  ..."true false none True False None raise_exception range strftime_now namespace".split(" "),
  ..."messages tools documents add_generation_prompt".split(" "),
]);
