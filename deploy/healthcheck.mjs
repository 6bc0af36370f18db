// The health check of the container: asks this process's own probe port for the path that is given, /livez or /readyz.
const { GLM_RELAY_PROBE_PORT: port, GLM_RELAY_PROBE_HOST: listensOn = "" } = process.env;
const host = ["", "0.0.0.0", "::"].includes(listensOn) ? "127.0.0.1" : listensOn;
const limitMs = 4_000;

if (port) {
  const url = `http://${host}:${port}${process.argv[2] ?? "/livez"}`;
  const failure = await fetch(url, { signal: AbortSignal.timeout(limitMs) }).then(
    async (response) => (response.ok ? null : `${response.status} ${await response.text()}`),
    (error) => `${error}`,
  );
  if (failure !== null) {
    console.error(`${url}: ${failure}`);
    process.exit(1);
  }
}
