/**
 * GET /openapi.json, made from the routes that are registered and the fields that are read, so that it
 * cannot promise what the server does not do.
 */
import { softwareVersion } from "../../common/package.js";
import { batchFields } from "./batch-body.js";
import { chatFields } from "./chat-body.js";
import { completionFields } from "./completion-body.js";
import type { Route } from "./context.js";
import type { Fields, JsonSchema } from "./fields.js";
import { requestHeaders } from "./request-headers.js";
import { detokenizeFields, tokenizeDialects } from "./tokenize-body.js";

const bodies: Record<string, { fields: Fields[]; required: string[] }> = {
  "/v1/chat/completions": { fields: [chatFields], required: ["messages"] },
  "/v1/completions": { fields: [completionFields], required: ["prompt"] },
  "/tokenize": { fields: tokenizeDialects, required: [] },
  "/detokenize": { fields: [detokenizeFields], required: ["tokens"] },
  "/v1/batches": { fields: [batchFields], required: ["input_file_id", "endpoint", "completion_window"] },
};

const generationPaths = new Set(["/v1/chat/completions", "/v1/completions"]);
/** What is there belongs to the tenant who made it. */
const tenantPaths = /^\/v1\/(requests|files|batches)(\/|$)/;

const errorSchema: JsonSchema = {
  type: "object",
  required: ["error"],
  properties: {
    error: {
      type: "object",
      required: ["message", "type", "param", "code"],
      properties: {
        message: { type: "string" },
        type: { type: "string" },
        param: { type: ["string", "null"] },
        code: { type: "string" },
      },
    },
  },
};

const keyScheme = "apiKey";

/** How a route says that an id stands in its path. */
const idParameter = /\*$|:id(?=\/|$)/;

/** @param hasKeys Callers have to send a key, but for open routes. */
export function openApiDocument(routes: Route[], hasKeys: boolean): JsonSchema {
  const paths: Record<string, Record<string, JsonSchema>> = {};
  for (const route of routes) {
    const path = route.path.replace(idParameter, "{id}");
    paths[path] = { ...paths[path], [route.method.toLowerCase()]: operation(route, hasKeys) };
  }
  return {
    openapi: "3.1.0",
    info: { title: "GLM Relay", version: softwareVersion, license: { name: "Apache-2.0" } },
    paths,
    ...(hasKeys ? { security: [{ [keyScheme]: [] }] } : {}),
    components: {
      schemas: { Error: errorSchema },
      ...(hasKeys ? { securitySchemes: { [keyScheme]: { type: "http", scheme: "bearer" } } } : {}),
    },
  };
}

function operation(route: Route, hasKeys: boolean): JsonSchema {
  const { path, summary, parameters = [], open = false } = route;
  const content = bodyContent(route);
  return {
    summary,
    ...(hasKeys && open ? { security: [] } : {}),
    ...parametersOf(path, parameters),
    ...(content === null ? {} : { requestBody: { required: true, content } }),
    responses: {
      ...(path === "/v1/embeddings" ? {} : { "200": { description: "The answer." } }),
      default: {
        description: "An error.",
        content: { "application/json": { schema: { $ref: "#/components/schemas/Error" } } },
      },
    },
  };
}

function bodyContent({ method, path, form }: Route): JsonSchema | null {
  if (form !== undefined) return { "multipart/form-data": { schema: form } };
  const body = method === "POST" ? bodies[path] : undefined;
  return body === undefined ? null : { "application/json": { schema: bodySchema(body) } };
}

function parametersOf(path: string, ofRoute: JsonSchema[]): JsonSchema {
  const parameters = [
    ...(idParameter.test(path)
      ? [{ name: "id", in: "path", required: true, schema: { type: "string" } }]
      : []),
    ...ofRoute,
    ...headersOf(path).map(([name, { summary, schema }]) => {
      return { name, in: "header", required: false, description: summary, schema };
    }),
  ];
  return parameters.length === 0 ? {} : { parameters };
}

function headersOf(path: string) {
  const all = Object.entries(requestHeaders);
  if (generationPaths.has(path)) return all;
  return tenantPaths.test(path) ? all.filter(([name]) => name === "x-glm-tenant") : [];
}

function bodySchema({ fields, required }: { fields: Fields[]; required: string[] }): JsonSchema {
  const properties: Record<string, JsonSchema> = {};
  for (const [name, field] of fields.flatMap((group) => Object.entries(group)))
    properties[name] = field.schema;
  return { type: "object", required, properties };
}
