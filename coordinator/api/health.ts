/**
 * Probes and figures. All answer from state already held and call nobody: a probe that waits for a busy
 * part gets a healthy process killed.
 */
import type { ApiContext, Route } from "./context.js";

export function healthRoutes({ service, metrics }: ApiContext): Route[] {
  const ready = () => {
    const error = service.notReady();
    if (error !== null) throw error;
    return { status: "ok" };
  };
  return [
    {
      method: "GET",
      path: "/livez",
      quiet: true,
      open: true,
      summary: "200 while the event loop turns.",
      handler: () => ({ status: "ok" }),
    },
    {
      method: "GET",
      path: "/readyz",
      quiet: true,
      open: true,
      summary: "200 while requests are taken, else 503 with the error that one would get.",
      handler: ready,
    },
    {
      method: "GET",
      path: "/health",
      quiet: true,
      open: true,
      summary: "The same as /readyz.",
      handler: ready,
    },
    {
      method: "GET",
      path: "/metrics",
      quiet: true,
      open: true,
      summary: "Prometheus metrics.",
      handler: async (_request, reply) => {
        const page = await metrics.scrape();
        return reply.header("content-type", metrics.contentType).send(page);
      },
    },
    {
      method: "GET",
      path: "/api/cluster",
      quiet: true,
      summary: "Workers, plan and live figures.",
      handler: () => service.cluster(),
    },
  ];
}
