// The health check of the container: asks this process's own probe port for the path that is given, /livez or /readyz.
const { GLM_RELAY_PROBE_PORT: port } = process.env;
const limitMs = 4_000;

if (port) {
  const url = `http://127.0.0.1:${port}${process.argv[2] ?? "/livez"}`;
  const status = await fetch(url, { signal: AbortSignal.timeout(limitMs) }).then(
    async (response) => (response.ok ? null : `${response.status} ${await response.text()}`),
    (error) => `${error}`,
  );
  if (status !== null) {
    console.error(`${url}: ${status}`);
    process.exit(1);
  }
}
