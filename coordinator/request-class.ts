/** What a request says of its place among others: who goes first, and whose turn it is. */

/** In order: a later class gets what those before it leave over. */
export const requestClasses = ["interactive", "batch"] as const;
export type RequestClass = (typeof requestClasses)[number];

/** Of requests that name none. */
export const defaultTenant = "default";

/** Whether one class has precedence over another. */
export const goesBefore = (one: RequestClass, other: RequestClass): boolean =>
  requestClasses.indexOf(one) < requestClasses.indexOf(other);
